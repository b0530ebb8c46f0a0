"""What every estimator has in common: masks, laws, edges, dtypes, bad input."""

import functools
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import entropy
from mer_dg.entropy import pairwise
from mer_dg.entropy.kernels import get_kernel
from tests.entropy import _helpers

ALL = {
  "kde": entropy.kde_entropy,
  "kde_tiled": lambda z, **k: entropy.kde_entropy(z, block_size=4, **k),
  "kde_fixed": lambda z, **k: entropy.kde_entropy(z, bandwidth=0.7, **k),
  "kde_median": lambda z, **k: entropy.kde_entropy(z, bandwidth="median", **k),
  "kde_laplace": lambda z, **k: entropy.kde_entropy(z, kernel="laplace", **k),
  "kde_student": lambda z, **k: entropy.kde_entropy(z, kernel="student-t", **k),
  "kde_vmf": lambda z, **k: entropy.kde_entropy(z, kernel="vmf", bandwidth=0.5, **k),
  "bounds": lambda z, **k: sum(entropy.mixture_entropy_bounds(z, bandwidth=1.0, **k)),
  "gaussian": entropy.gaussian_entropy,
  "gaussian_shrunk": lambda z, **k: entropy.gaussian_entropy(z, shrinkage=0.2, **k),
  "knn": entropy.knn_entropy,
  "renyi": entropy.renyi_entropy,
  "renyi_matrix": lambda z, **k: entropy.renyi_entropy(
    z, alpha=1.5, form="matrix", **k
  ),
  "renyi_matrix_2": lambda z, **k: entropy.renyi_entropy(z, form="matrix", **k),
  "spacing": entropy.marginal_entropy,
  "marginal_kde": lambda z, **k: entropy.marginal_entropy(z, estimator="kde", **k),
  "marginal_isj": lambda z, **k: entropy.marginal_entropy(
    z, estimator="kde", bandwidth="isj", **k
  ),
  "marginal_gaussian": lambda z, **k: entropy.marginal_entropy(
    z, estimator="gaussian", **k
  ),
  "mer": entropy.mer_loss,
  "logdet": entropy.logdet_entropy,
  "effective_rank": entropy.effective_rank,
  "von_neumann": entropy.von_neumann_entropy,
}
N, D = 11, 3


@functools.cache
def _batched(name, x64=False):
  del x64  # one compiled function per precision
  f = jax.value_and_grad(lambda z, w: ALL[name](z, where=w))
  return jax.jit(jax.vmap(f))


@pytest.mark.parametrize("name", sorted(ALL))
def test_masking_equals_deleting_rows(name):
  with _helpers.float64():
    z = jnp.asarray(_helpers.normal(0, N, D))
    keep = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0], bool)
    dirty = z.at[2].set(jnp.nan).at[6].set(1e15).at[10].set(jnp.inf)
    f = _batched(name, x64=True)
    rows, masks, _ = _edge_batch()
    value, g = f(jnp.asarray(rows, jnp.float64).at[0].set(dirty), masks.at[0].set(keep))
    want, want_g = f(z[keep][None], np.ones((1, 8), bool))
    np.testing.assert_allclose(value[0], want[0], rtol=1e-11)
    np.testing.assert_allclose(g[0, keep], want_g[0], atol=1e-10)
    assert not g[0, ~keep].any()


@pytest.mark.parametrize("name", ["kde", "gaussian_shrunk", "knn", "mer"])
def test_batch_axes_equal_a_loop_and_half_precision_is_close(name):
  z = _helpers.normal(1, 2, N, D, dtype=np.float32)
  got = jax.jit(ALL[name])(jnp.asarray(z))
  assert got.shape == (2,)
  both = jax.jit(jax.value_and_grad(ALL[name]))
  np.testing.assert_allclose(got[1], both(z[1])[0], rtol=3e-5)
  for dtype in (jnp.bfloat16, jnp.float16):
    low = jnp.asarray(z[0], dtype)
    value, g = both(low)
    # The only loss is the rounding of the input itself.
    np.testing.assert_allclose(value, both(low.astype(jnp.float32))[0], rtol=3e-5)
    assert value.dtype == jnp.float32
    assert g.dtype == dtype


_Z = _helpers.normal(2, N, D, dtype=np.float32)


def _far(*rows):
  """The rows with those of ``(index, value)`` moved."""
  z = _Z.copy()
  for i, value in rows:
    z[i] = value
  return z


_COLLAPSED = ("gaussian", "gaussian_shrunk", "knn", "spacing", "marginal_gaussian")
# Name: (rows, number of valid rows, estimators whose quantity is minus infinity there)
EDGES = {
  "ordinary": (_Z, N, ()),
  "all rows equal": (np.ones((N, D), np.float32), N, _COLLAPSED),
  "one row far away": (_far((3, 1e15)), N, ()),
  "first row far away": (_far((0, -1e15)), N, ()),
  "two rows far away": (_far((3, 1e15), (5, [1e13, -3e14, 2e9])), N, ()),
  # two distinct rows, five or six times each
  "duplicates": (_Z[np.arange(N) % 2], N, ("gaussian", "knn", "spacing")),
  "large": (np.float32(1e15) * _Z, N, ()),
  "small": (np.float32(1e-15) * _Z, N, ()),
  "columns of different size": (_Z * np.float32([1e-9, 1, 1e9]), N, ()),
  "constant column": (
    _Z * np.float32([1, 0, 1]),
    N,
    ("gaussian", "spacing", "marginal_gaussian"),
  ),
  "dependent columns": (_Z[:, [0, 1, 0]], N, ("gaussian",)),
  "far from the origin": (_Z + np.float32(1000), N, ()),
  "two rows": (_Z, 2, ("gaussian",)),
  "no row": (_Z, 0, ()),
  "one row": (np.roll(_Z, -4, axis=0), 1, ()),
}
# A rule's bandwidth is floored at a number that depends on the dtype.
_FLOORED = ("all rows equal", "constant column")
_BY_RULE = ("kde", "marginal_kde", "marginal_isj", "renyi")


def _edge_batch():
  rows = jnp.stack([jnp.asarray(case[0]) for case in EDGES.values()])
  valid = jnp.array([case[1] for case in EDGES.values()])
  broken = jnp.asarray(_Z).at[1, 1].set(jnp.nan)
  masks = jnp.arange(N)[None, :] < jnp.append(valid, N)[:, None]
  return jnp.concatenate([rows, broken[None]]), masks, list(EDGES)


@pytest.mark.parametrize("name", sorted(ALL))
def test_edges(name):
  """The conventions: finite value and gradient wherever the quantity is finite.

  Finite is not enough: float32 must agree with float64 on the same rows.
  """
  rows, masks, names = _edge_batch()
  value, g = _batched(name)(rows, masks)
  with _helpers.float64():
    exact, _ = _batched(name, x64=True)(jnp.asarray(rows, jnp.float64), masks)
  for i, edge in enumerate(names):
    if name in EDGES[edge][2]:
      assert np.isneginf([value[i], exact[i]]).all(), edge
    else:
      assert jnp.isfinite(value[i]), edge
      if not (edge in _FLOORED and name.startswith(_BY_RULE)):
        np.testing.assert_allclose(
          value[i], exact[i], rtol=2e-3, atol=2e-3, err_msg=edge
        )
    assert jnp.isfinite(g[i]).all(), edge
  none, one = names.index("no row"), names.index("one row")
  assert value[none] == (1 if name == "effective_rank" else 0)
  assert not g[none].any()
  if name == "bounds":  # one component: both bounds are its entropy
    assert value[one] == pytest.approx(D * math.log(2 * math.pi * math.e), rel=1e-5)
  else:
    assert value[one] == pytest.approx(1 if name == "effective_rank" else 0, abs=1e-6)
  assert jnp.isnan(value[-1])


@pytest.mark.parametrize("name", sorted(ALL))
def test_shapes_at_the_edge(name):
  wide = jnp.asarray(_helpers.normal(3, 4, 9, dtype=np.float32))  # d > n
  value, g = jax.jit(jax.value_and_grad(ALL[name]))(wide)
  assert jnp.isneginf(value) if name == "gaussian" else jnp.isfinite(value)
  assert jnp.isfinite(g).all()
  value, g = jax.jit(jax.value_and_grad(ALL[name]))(jnp.asarray(_Z[:, :1]))  # d = 1
  assert jnp.isfinite(value)
  assert jnp.isfinite(g).all()
  assert jnp.isnan(jax.jit(ALL[name])(jnp.full((1, D), jnp.nan)))  # n = 1


def test_compact_kernel_out_of_reach_is_infinite_with_zero_gradient():
  z = jnp.array([[0.0], [1.0], [100.0]])
  f = lambda z: entropy.kde_entropy(z, bandwidth=2.0, kernel="epanechnikov")
  value, g = jax.value_and_grad(f)(z)
  assert jnp.isposinf(value)
  assert jnp.isfinite(g).all()
  assert g[2, 0] == 0


def test_weights_of_zero_equal_deleting_rows():
  with _helpers.float64():
    z = jnp.asarray(_helpers.normal(0, N, D))
    w = jnp.arange(N) % 4.0
    f = lambda z, w: entropy.kde_entropy(z, weights=w)
    got, g = jax.jit(jax.value_and_grad(f, 1))(z, w)
    keep = w > 0
    want = jax.jit(f)(z[keep], w[keep])
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert jnp.isfinite(g).all()


@pytest.mark.parametrize("bandwidth", ["scott", 1.0])
def test_far_rows_without_weight_cost_no_digits(bandwidth):
  # Most rows are far away but weigh nothing; a center among them would lose the others.
  z = jnp.asarray(_helpers.normal(0, 20, 3, dtype=np.float32))
  w = (jnp.arange(20) < 5).astype(jnp.float32)
  got = entropy.kde_entropy(
    jnp.where((w > 0)[:, None], z, 1e12), weights=w, bandwidth=bandwidth
  )
  want = entropy.kde_entropy(z[:5], bandwidth=bandwidth)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_row_without_any_kernel_passes_no_gradient_to_its_weight():
  # One row counts and leaves itself out: its sum is empty, in one tile and in many.
  z = jnp.asarray(_helpers.normal(0, 4, 2, dtype=np.float32))
  log_v = jnp.array([0.0, -jnp.inf, -jnp.inf, -jnp.inf])
  for block_size in (None, 2):
    first = lambda log_v, b=block_size: pairwise.log_kernel_sums(
      z, z, log_v, kernel=get_kernel("gaussian"), self_offset=0, block_size=b
    )[0]
    value, g = jax.value_and_grad(first)(log_v)
    assert jnp.isneginf(value)
    np.testing.assert_array_equal(g, 0)


# --- laws -----------------------------------------------------------------------------

_LAWFUL = {
  "kde": entropy.kde_entropy,
  "kde_median": lambda z: entropy.kde_entropy(z, bandwidth="median"),
  "kde_student": lambda z: entropy.kde_entropy(z, kernel="student-t"),
  "gaussian": entropy.gaussian_entropy,
  "knn": entropy.knn_entropy,
  "renyi": entropy.renyi_entropy,
}


def _law_values(z, rotation, shift, order, scale):
  """Rows: as is, permuted and moved, rotated, scaled; columns: estimators and vMF."""
  variants = (z, z[order] + shift[None, :], z @ rotation, z * scale)
  rows = [jnp.stack([f(v) for f in _LAWFUL.values()]) for v in variants]
  sphere = [
    entropy.kde_entropy(v, kernel="vmf", bandwidth=0.5) for v in (z, z @ rotation)
  ]
  joint, parts = entropy.gaussian_entropy(z), (z[:, :1], z[:, 1:])
  return (
    jnp.stack(rows),
    jnp.stack(sphere),
    joint - sum(map(entropy.gaussian_entropy, parts)),
  )


_law_values = jax.jit(_law_values)


@settings(max_examples=1500, deadline=None)
@given(
  seed=st.integers(0, 2**32 - 1),
  log_scale=st.floats(-8, 8),
  sign=st.sampled_from([-1, 1]),
  shift=st.floats(-100, 100),
)
def test_laws(seed, log_scale, sign, shift):
  """Translation, permutation, rotation invariance; H(aZ) = H(Z) + d log|a|."""
  rng = np.random.default_rng(seed)
  z = rng.standard_normal((N, D)) * np.exp(rng.uniform(-1, 1, D))[None, :]
  rotation = np.linalg.qr(rng.standard_normal((D, D)))[0]
  with _helpers.float64():
    values, sphere, excess = _law_values(
      z, rotation, np.full(D, shift), rng.permutation(N), sign * math.exp(log_scale)
    )
    values = np.asarray(values)
  np.testing.assert_allclose(values[1], values[0], rtol=1e-8, atol=1e-8)
  np.testing.assert_allclose(values[2], values[0], rtol=1e-8, atol=1e-8)
  np.testing.assert_allclose(values[3], values[0] + D * log_scale, atol=1e-8)
  np.testing.assert_allclose(sphere[0], sphere[1], atol=1e-8)
  assert excess <= 1e-9  # H(Z1, Z2) <= H(Z1) + H(Z2)


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ALL))
def test_bad_samples(name):
  with pytest.raises(TypeError, match="z must be floating, got dtype int32"):
    ALL[name](jnp.zeros((4, 2), jnp.int32))
  with pytest.raises(ValueError, match=r"z must have shape \[..., n, d\], got \(4,\)"):
    ALL[name](jnp.zeros(4))
  with pytest.raises(ValueError, match=r"where must have shape \(4,\).*\(5,\)"):
    ALL[name](jnp.zeros((4, 2)), where=jnp.ones(5, bool))


@pytest.mark.parametrize(
  ("call", "error", "match"),
  [
    (
      lambda z: entropy.kde_entropy(z, bandwidth=0.0),
      ValueError,
      "bandwidth must be > 0",
    ),
    (lambda z: entropy.kde_entropy(z, bandwidth=-1.0), ValueError, "bandwidth.*-1.0"),
    (
      lambda z: entropy.kde_entropy(z, bandwidth="rule"),
      ValueError,
      "bandwidth='rule' is not one of .*scott.*silverman.*median",
    ),
    (
      lambda z: entropy.kde_entropy(z, bandwidth="isj"),
      ValueError,
      "bandwidth='isj' is for samples with d = 1, got d = 2",
    ),
    (
      lambda z: entropy.kde_entropy(z, bandwidth=jnp.ones(3)),
      ValueError,
      r"bandwidth must be a scalar, an array of shape \(2,\).*\(3,\)",
    ),
    (
      lambda z: entropy.kde_entropy(z, kernel="box"),
      ValueError,
      "kernel='box' is not one of .*gaussian.*laplace.*vmf",
    ),
    (lambda z: entropy.kde_entropy(z, kernel="vmf"), ValueError, "kernel='vmf' needs"),
    (lambda z: entropy.student_t(0.0), ValueError, "df must be > 0"),
    (
      lambda z: entropy.kde_entropy(z, block_size=0),
      ValueError,
      "block_size must be > 0",
    ),
    (lambda z: entropy.kde_entropy(z, block_size=2.5), TypeError, "block_size.*2.5"),
    (
      lambda z: entropy.kde_entropy(z, weights=-np.ones(4)),
      ValueError,
      "weights.*>= 0",
    ),
    (
      lambda z: entropy.kde_entropy(z, reference=jnp.ones((3, 5))),
      ValueError,
      r"reference must have d=2 columns.*\(3, 5\)",
    ),
    (
      lambda z: entropy.kde_entropy(z, reference_offset=1),
      ValueError,
      "needs reference",
    ),
    (lambda z: entropy.knn_entropy(z, k=0), ValueError, "k must be >= 1, got 0"),
    (lambda z: entropy.knn_entropy(z, k=1.5), TypeError, "k must be an int"),
    (
      lambda z: entropy.gaussian_entropy(z, shrinkage=2.0),
      ValueError,
      "shrinkage.*2.0",
    ),
    (lambda z: entropy.renyi_entropy(z, alpha=0), ValueError, "alpha must be"),
    (lambda z: entropy.renyi_entropy(z, form="x"), ValueError, "form='x'.*matrix"),
    (
      lambda z: entropy.marginal_entropy(z, estimator="x"),
      ValueError,
      "estimator='x' is not one of .*spacing.*kde.*gaussian",
    ),
  ],
)
def test_bad_options(call, error, match):
  with pytest.raises(error, match=match):
    jax.jit(call)(jnp.zeros((4, 2)))
