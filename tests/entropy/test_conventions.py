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
from tests.entropy._helpers import ALL, float64, normal

N, D = 11, 3
_Z = normal(2, N, D, dtype=np.float32)


def _moved(*rows):
  """The rows with those of ``(index, value)`` moved."""
  z = _Z.copy()
  for i, value in rows:
    z[i] = value
  return z


_COLLAPSED = ("gaussian", "gaussian_shrunk", "knn", "spacing", "marginal_gaussian")
# A rule's bandwidth is floored at a number that depends on the dtype.
_BY_RULE = ("kde", "kde_median", "kde_tiled", "kde_student", "marginal_kde", "renyi")
_BY_RULE += ("vmf_median",)
# Name: (rows, number of valid rows, estimators whose quantity is minus infinity there,
# estimators that float32 cannot hold to float64 there)
EDGES = {
  "ordinary": (_Z, N, (), ()),
  "all rows equal": (np.ones((N, D), np.float32), N, _COLLAPSED, _BY_RULE),
  "one row far away": (_moved((3, 1e15)), N, (), ()),
  "first row far away": (_moved((0, -1e15)), N, (), ()),
  "two far": (_moved((3, 1e15), (5, [1e13, -3e14, 2e9])), N, (), ()),
  # two distinct rows, five or six times each
  "duplicates": (_Z[np.arange(N) % 2], N, ("gaussian", "knn", "spacing"), ()),
  "large": (np.float32(1e15) * _Z, N, (), ()),
  "small": (np.float32(1e-15) * _Z, N, (), ()),
  "columns of different size": (_Z * np.float32([1e-9, 1, 1e9]), N, (), ()),
  "constant column": (
    _Z * np.float32([1, 0, 1]),
    N,
    ("gaussian", "spacing", "marginal_gaussian"),
    ("marginal_kde",),
  ),
  "dependent columns": (_Z[:, [0, 1, 0]], N, ("gaussian",), ()),
  "far from the origin": (_Z + np.float32(1000), N, (), ()),
  "two rows": (_Z, 2, ("gaussian",), ()),
  "no row": (_Z, 0, (), ()),
  "one row": (np.roll(_Z, -4, axis=0), 1, (), ()),
  # Squares of what follows do not exist in float32. A fixed bandwidth then gives a
  # distance that is finite but too short; the covariance cannot hold 1e38 beside 1.
  "vast": (np.float32(1e30) * _Z, N, (), ("kde_fixed", "bounds")),
  "tiny": (np.float32(1e-25) * _Z, N, (), ()),
  "a row at 1e19": (_moved((3, 1e19)), N, (), ("kde_fixed", "kde_median")),
  "a row at -3e38": (
    _moved((3, -3e38)),
    N,
    (),
    ("kde_fixed", "kde_median", "gaussian"),
  ),
  "rows at both ends": (
    _moved((2, 3e38), (5, -3e38)),
    N,
    ("gaussian",),
    ("kde_fixed", "kde_median", "bounds"),
  ),
  "a tiny row": (_moved((3, 1e-25)), N, (), ()),
  "columns at both ends": (
    _Z * np.float32([1e-25, 1, 1e25]),
    N,
    (),
    ("kde_fixed", "bounds", "vmf_median"),  # as below
  ),
  "a column at 1e25": (
    _Z * np.float32([1, 1e25, 1]),
    N,
    (),
    ("kde_fixed", "bounds", "vmf_median"),  # two points on the sphere
  ),
}
NAMES = list(EDGES)


def _edge_batch():
  """Every edge, and as last a row with nan."""
  rows = np.stack([case[0] for case in EDGES.values()] + [_Z])
  rows[-1, 1, 1] = np.nan
  valid = np.array([case[1] for case in EDGES.values()] + [N])
  return rows, np.arange(N)[None, :] < valid[:, None]


def _with_first(masks, first):
  return np.concatenate([first[None], masks[1:]])


@functools.cache
def _batched(name, x64=False):
  del x64  # one compiled function per precision
  f = jax.value_and_grad(lambda z, w: ALL[name](z, where=w))
  return jax.jit(jax.vmap(f))


@pytest.mark.parametrize("name", sorted(ALL))
def test_edges_masks_and_precision(name):
  """The conventions: finite value and gradient wherever the quantity is finite.

  Finite is not enough: float32 must agree with float64 on the same rows.
  """
  rows, masks = _edge_batch()
  value, g = _batched(name)(rows, masks)
  with float64():
    f = _batched(name, x64=True)
    # Masking equals deleting the rows, whatever was in them; the two batches differ in
    # their first member only.
    dirty = rows.astype(np.float64)
    dirty[0, [2, 6, 10]] = [[np.nan], [1e15], [np.inf]]
    keep = np.ones(N, bool)
    keep[[2, 6, 10]] = False
    # A new array for each call: a CPU program may still be reading the last one.
    exact, exact_g = f(dirty, _with_first(masks, keep))
    packed = _Z[keep]
    again = rows.astype(np.float64)
    again[0, : len(packed)] = packed
    want, want_g = f(again, _with_first(masks, np.arange(N) < len(packed)))
    np.testing.assert_allclose(exact[0], want[0], rtol=1e-11)
    np.testing.assert_allclose(exact_g[0, keep], want_g[0, : len(packed)], atol=1e-10)
    assert not exact_g[0, ~keep].any()
    exact, _ = f(rows.astype(np.float64), masks)
  if name != "kde_tiled":  # long to compile
    alone = jax.jit(jax.value_and_grad(lambda z: ALL[name](z)))
    for edge in ("ordinary", "a row at -3e38", "vast"):
      i = NAMES.index(edge)
      one, one_g = alone(rows[i])
      np.testing.assert_allclose(value[i], one, rtol=1e-4, err_msg=edge)
      # Where eigenvalues coincide or two rows are equally near, a gradient may jump.
      near = 2e-2 * np.abs(one_g).max()
      np.testing.assert_allclose(g[i], one_g, atol=near, err_msg=edge)
  for i, edge in enumerate(NAMES):
    _, _, infinite, imprecise = EDGES[edge]
    assert jnp.isfinite(g[i]).all(), edge
    if name in infinite:
      assert np.isneginf(value[i]), edge
      continue
    assert jnp.isfinite(value[i]), edge
    if name not in imprecise:
      np.testing.assert_allclose(value[i], exact[i], rtol=2e-3, atol=2e-3, err_msg=edge)
  none, one = NAMES.index("no row"), NAMES.index("one row")
  assert value[none] == (1 if name == "effective_rank" else 0)
  assert not g[none].any()
  if name == "bounds":  # one component: both bounds are its entropy
    assert value[one] == pytest.approx(D * math.log(2 * math.pi * math.e), rel=1e-5)
  else:
    assert value[one] == pytest.approx(1 if name == "effective_rank" else 0, abs=1e-6)
  assert jnp.isnan(value[-1])


@pytest.mark.parametrize("name", ["kde", "gaussian_shrunk", "knn", "mer", "vmf_median"])
def test_leading_axes_wide_rows_and_half_precision(name):
  z = jnp.asarray(normal(3, 2, 4, 9, dtype=np.float32))  # more columns than rows
  f = ALL[name]
  both = jax.jit(jax.value_and_grad(lambda z: jnp.sum(f(z))))
  value, g = both(z)
  np.testing.assert_allclose(value, f(z[0]) + f(z[1]), rtol=1e-4)  # jax 0.12: 4e-5
  assert jnp.isfinite(g).all()
  low = z.astype(jnp.bfloat16)
  value, g = both(low)
  # The only loss is the rounding of the input itself.
  np.testing.assert_allclose(value, both(low.astype(jnp.float32))[0], rtol=3e-5)
  assert value.dtype == jnp.float32
  assert g.dtype == jnp.bfloat16


# --- laws -----------------------------------------------------------------------------

_LAWFUL = {
  "kde": entropy.kde_entropy,
  "kde_median": lambda z: entropy.kde_entropy(z, bandwidth="median"),
  "gaussian": entropy.gaussian_entropy,
  "knn": entropy.knn_entropy,
}


@jax.jit
@jax.vmap
def _law_values(z):
  lawful = jnp.stack([f(z) for f in _LAWFUL.values()])
  parts = entropy.gaussian_entropy(z[:, :1]) + entropy.gaussian_entropy(z[:, 1:])
  return lawful, entropy.sphere_entropy(z)["entropy"], parts


@settings(max_examples=200, deadline=None)
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
  scale = sign * math.exp(log_scale)
  moved = z[rng.permutation(N)] + shift
  # The last for the sphere: every row at its own scale.
  variants = [z, moved, z @ rotation, scale * z, z * np.exp(rng.uniform(-9, 9, (N, 1)))]
  with float64():
    values, sphere, parts = map(np.asarray, _law_values(np.stack(variants)))
  np.testing.assert_allclose(values[1], values[0], rtol=1e-8, atol=1e-8)
  np.testing.assert_allclose(values[2], values[0], rtol=1e-8, atol=1e-8)
  np.testing.assert_allclose(values[3], values[0] + D * log_scale, atol=1e-8)
  np.testing.assert_allclose(sphere[[2, 4]], sphere[0], atol=1e-8)
  gaussian = values[:, list(_LAWFUL).index("gaussian")]
  assert (gaussian <= parts + 1e-9).all()  # H(Z1, Z2) <= H(Z1) + H(Z2)


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ALL))
def test_bad_samples(name):
  with pytest.raises(TypeError, match="z must be floating, got dtype int32"):
    ALL[name](jnp.zeros((4, 2), jnp.int32))
  with pytest.raises(ValueError, match=r"z must have shape \[..., n, d\], got \(4,\)"):
    ALL[name](jnp.zeros(4))
  with pytest.raises(ValueError, match=r"where must have shape \(4,\).*\(5,\)"):
    ALL[name](jnp.zeros((4, 2)), where=jnp.ones(5, bool))


_KDE, _KNN, _RENYI = entropy.kde_entropy, entropy.knn_entropy, entropy.renyi_entropy


@pytest.mark.parametrize(
  ("f", "options", "match"),
  [
    (_KDE, {"bandwidth": 0.0}, "bandwidth must be > 0"),
    (_KDE, {"bandwidth": -1.0}, "bandwidth.*-1.0"),
    (_KDE, {"bandwidth": "rule"}, "bandwidth='rule' is not one of .*scott.*median"),
    (_KDE, {"bandwidth": np.ones(2)}, r"bandwidth must be a number.*\(2,\)"),
    (_KDE, {"kernel": "box"}, "kernel='box' is not one of .*gaussian.*vmf"),
    (_KDE, {"kernel": entropy.Kernel("student-t", 0.0)}, "df must be > 0"),
    (_KDE, {"memory": np.ones((3, 5))}, r"memory must have 2 columns.*\(3, 5\)"),
    (_KDE, {"memory_where": np.ones(3, bool)}, "memory_where needs memory"),
    (_KNN, {"k": 0}, "k must be >= 1, got 0"),
    (_RENYI, {"alpha": 0}, "alpha must be"),
    (_RENYI, {"form": "x"}, "form='x'.*matrix"),
    (_RENYI, {"form": "matrix", "kernel": "student-t"}, "kernel='student-t'"),
    (entropy.gaussian_entropy, {"shrinkage": 2.0}, "shrinkage.*2.0"),
    (entropy.marginal_entropy, {"estimator": "x"}, "estimator='x'.*spacing"),
    (entropy.mer_loss, {"eps": 0.0}, "eps"),
    (entropy.mer_loss, {"form": "both"}, "form='both'"),
  ],
)
def test_bad_options(f, options, match):
  with pytest.raises(ValueError, match=match):
    f(jnp.zeros((4, 2)), **options)


def test_bad_types():
  with pytest.raises(TypeError, match="k must be an int"):
    entropy.knn_entropy(jnp.zeros((4, 2)), k=1.5)
  with pytest.raises(TypeError, match="z must be floating"):
    entropy.unit_sphere(jnp.zeros((4, 2), jnp.int32))
