"""Kernel estimates and the sphere against formulas, scipy, scikit-learn, mpmath."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.special
import scipy.stats
from sklearn.neighbors import KernelDensity

from mer_dg import entropy
from mer_dg.entropy import pairwise, sphere, tiles
from tests.entropy._helpers import float64, normal

H = 0.8  # bandwidth of most tests

# Normalised kernels written out from textbooks, for d = 3 and bandwidth H.
KERNELS = {
  "gaussian": lambda x: (
    -jnp.sum(x**2, -1) / (2 * H**2) - 1.5 * math.log(2 * math.pi) - 3 * math.log(H)
  ),
  # multivariate t, 3 degrees of freedom, scale h: Gamma(3) / (Gamma(3/2) (3 pi)^(3/2))
  "student-t": lambda x: (
    -3 * jnp.log1p(jnp.sum(x**2, -1) / (3 * H**2))
    + math.log(2 / math.gamma(1.5))
    - 1.5 * math.log(3 * math.pi)
    - 3 * math.log(H)
  ),
}


def _definition(z, r, keep, log_kernel):
  """Minus the mean log density at z of the rows of r, itself left out, by differences.

  ``keep [n, m]`` says which pairs count.
  """
  k = jnp.exp(log_kernel(z[:, None, :] - r[None, :, :]))
  return -jnp.mean(jnp.log(jnp.sum(keep * k, 1) / jnp.sum(keep, 1)))


@pytest.mark.parametrize("kernel", sorted(KERNELS))
@pytest.mark.parametrize("form", ["dense", "tiles"])
def test_value_and_gradient_equal_autodiff_of_the_definition(kernel, form, monkeypatch):
  monkeypatch.setattr(tiles, "TILE", 16)  # 33 rows: three blocks, one of them padded
  z = normal(0, 33, 3)
  far = np.array([30.0, -40.0, 0.0])  # out of the range of the tiles' one constant
  with float64():
    for rows in (z, z + far * (np.arange(33) == 5)[:, None]):
      ours = lambda z: entropy.kde_entropy(
        z, bandwidth=H, kernel=kernel, dense=form == "dense"
      )
      want = lambda z: _definition(z, z, 1 - np.eye(33), KERNELS[kernel])
      got, want = (jax.jit(jax.value_and_grad(f))(rows) for f in (ours, want))
      if kernel == "gaussian" and rows is not z:
        assert jnp.isinf(want[0])  # the definition underflows, ours does not
        continue
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), got, want)


def test_dense_and_tiles_agree_far_out(monkeypatch):
  monkeypatch.setattr(tiles, "TILE", 16)
  z = normal(0, 33, 3)
  z[5] = [300.0, -400.0, 0.0]
  with float64():
    f = lambda dense: jax.jit(
      jax.value_and_grad(lambda z: entropy.kde_entropy(z, bandwidth=H, dense=dense))
    )
    got, want = f(False)(z), f(True)(z)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), got, want)


@pytest.mark.parametrize("pairs", [2**20, 64])
def test_memory_adds_constants_to_the_density(pairs, monkeypatch):
  monkeypatch.setattr(pairwise, "DENSE_PAIRS", pairs)  # 64: three blocks of queries
  z, memory, kept = normal(0, 12, 3), normal(1, 14, 3), np.arange(14) != 4
  with float64():
    ours = lambda z, r: entropy.kde_entropy(
      z, bandwidth=H, memory=jnp.where(kept[:, None], r, jnp.nan), memory_where=kept
    )
    keep = np.concatenate([1 - np.eye(12), np.tile(kept, (12, 1))], 1)
    stopped = lambda z, r: _definition(
      z, jnp.concatenate([z, r]), keep, KERNELS["gaussian"]
    )
    got = jax.jit(jax.value_and_grad(ours))(z, memory)
    want = jax.jit(jax.value_and_grad(stopped))(z, memory)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), got, want)
    assert not jax.jit(jax.grad(ours, 1))(z, memory).any()


@pytest.mark.parametrize("rule", ["scott", "silverman"])
def test_equals_scipy_in_one_dimension(rule):
  x = normal(0, 50) * 3 + 7
  want = -np.mean(scipy.stats.gaussian_kde(x, bw_method=rule).logpdf(x))
  with float64():
    f = lambda x: entropy.kde_entropy(x, bandwidth=rule, leave_one_out=False)
    np.testing.assert_allclose(jax.jit(f)(x[:, None]), want, rtol=1e-12)


def test_equals_sklearn():
  z = normal(0, 40, 3)
  want = -np.mean(KernelDensity(bandwidth=H, rtol=0, atol=0).fit(z).score_samples(z))
  with float64():
    f = lambda z: entropy.kde_entropy(z, bandwidth=H, leave_one_out=False)
    np.testing.assert_allclose(jax.jit(f)(z), want, rtol=1e-9)


def test_student_t_is_the_multivariate_t():
  z = normal(1, 2, 4)
  want = -scipy.stats.multivariate_t(shape=2.25 * np.eye(4), df=1.7).logpdf(z[0] - z[1])
  with float64():
    f = lambda z: entropy.kde_entropy(z, bandwidth=1.5, kernel=entropy.student_t(1.7))
    np.testing.assert_allclose(jax.jit(f)(z), want, rtol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4, 7, 300])
def test_median_rule_is_the_median_pairwise_distance(n):
  z = normal(0, n, 4)
  seen = z[:: -(-n // 128)]
  median = np.median(scipy.spatial.distance.pdist(seen))
  with float64():
    f = lambda z, h: entropy.kde_entropy(z, bandwidth=h)
    got = jax.jit(lambda z: f(z, "median"))(z)
    np.testing.assert_allclose(got, jax.jit(f)(z, median), rtol=1e-10)


@pytest.mark.parametrize("rule", ["scott", "median"])
def test_gradient_through_the_rule_is_a_choice(rule):
  # H(aZ) = H(Z) + d log a with the rule differentiated: d/da at a = 1 is exactly d.
  z = normal(0, 25, 3)
  slope = lambda flow: jax.jit(
    jax.grad(
      lambda a: entropy.kde_entropy(a * z, bandwidth=rule, bandwidth_gradient=flow)
    )
  )(1.0)
  with float64():
    np.testing.assert_allclose(slope(True), 3.0, rtol=1e-9)
    assert abs(slope(False) - 3.0) > 1e-3


def test_traced_bandwidth_and_masks_under_vmap_equal_a_loop():
  z = normal(0, 3, 16, 8, dtype=np.float32)
  where = np.arange(16)[None, :] < np.array([16, 9, 2])[:, None]
  bandwidths = np.float32([0.5, 1.0, 2.0])
  f = jax.value_and_grad(lambda z, h, w: entropy.kde_entropy(z, bandwidth=h, where=w))
  got = jax.jit(jax.vmap(f))(z, bandwidths, where)
  one = jax.jit(f)
  for i in range(3):
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=2e-5, atol=1e-6),
      got,
      one(z[i], bandwidths[i], where[i]),
    )


# --- sphere ---------------------------------------------------------------------------


def test_unit_sphere_keeps_directions_and_bounds_gradients():
  z = np.float32([[3, 4], [3e-30, 4e-30], [3e38, -3e38], [0, 0], [1e-3, 0]])
  u = np.asarray(jax.jit(entropy.unit_sphere)(z))
  want = [[0.6, 0.8], [0.6, 0.8], [2**-0.5, -(2**-0.5)], [0, 0], [1, 0]]
  np.testing.assert_allclose(u, want, rtol=1e-6)
  g = jax.jit(jax.jacobian(entropy.unit_sphere))(z)
  g = np.asarray(g)[range(5), :, range(5), :]
  project = lambda u: np.eye(2) - np.outer(u, u)
  np.testing.assert_allclose(g[0], project(u[0]) / 5, atol=1e-6)
  np.testing.assert_allclose(g[4], project(u[4]) / 1e-3, rtol=1e-4)
  assert 1e5 < np.abs(g[1]).max() <= 1e6  # not 1e29
  assert not g[3].any()


@pytest.mark.parametrize("d", [1, 2, 3, 8, 64, 100])
def test_bessel_equals_scipy(d):
  order = d / 2 - 1
  kappa = np.geomspace(1e-3, 3e3, 40)
  want = np.log(scipy.special.ive(order, kappa)) - order * np.log(kappa)
  finite = np.isfinite(want)
  assert finite.sum() > 15  # scipy underflows for large order and small kappa
  with float64():
    got = jax.jit(lambda k: sphere.log_scaled_bessel(order, k))(kappa)
    np.testing.assert_allclose(got[finite], want[finite], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
  ("order", "kappa", "want"),
  [  # mpmath 1.3, 40 digits: log(besseli(order, kappa)) - order log(kappa) - kappa
    (1151.0, 1.0, -7764.9481483878902),
    (1151.0, 2000.0, -9076.2828702313626),
    (0.0, 1e-6, -9.9999974999999995e-7),
    (4999.0, 50.0, -41097.544072866652),
  ],
)
def test_bessel_equals_mpmath(order, kappa, want):
  with float64():
    got = jax.jit(lambda k: sphere.log_scaled_bessel(order, k))(kappa)
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-13)


def test_vmf_density_equals_scipy_and_the_gradient_of_its_normaliser():
  z = normal(0, 2, 5)
  u = z / np.linalg.norm(z, axis=1, keepdims=True)
  kappa = 7.0
  want = -scipy.stats.vonmises_fisher(u[0], kappa).logpdf(u[1])
  with float64():
    f = lambda z: entropy.kde_entropy(z, bandwidth=kappa**-0.5, kernel="vmf")
    np.testing.assert_allclose(jax.jit(f)(z), want, rtol=1e-11)
    # d log C / d kappa = - I_{d/2} / I_{d/2-1}
    slope = jax.jit(jax.grad(lambda k: entropy.vmf_log_normalizer(5, k)))(kappa)
    ratio = scipy.special.ive(2.5, kappa) / scipy.special.ive(1.5, kappa)
    np.testing.assert_allclose(slope, -ratio, rtol=1e-10)
    area = -jax.jit(lambda k: entropy.vmf_log_normalizer(5, k))(0.0)
    np.testing.assert_allclose(entropy.sphere_log_area(5), area, rtol=1e-12)


@pytest.mark.parametrize("d", [3, 16, 128])
def test_uniform_directions_reach_the_maximum_and_others_do_not(d):
  f = jax.jit(entropy.sphere_entropy)
  z = normal(0, 512, d, dtype=np.float32)
  uniform = f(z)
  np.testing.assert_allclose(uniform["maximum"], entropy.sphere_log_area(d), rtol=1e-6)
  assert abs(uniform["gap"]) < 0.01
  gaps = [f(z + np.float32(shift))["gap"] for shift in (0.5, 1.0, 2.0)]
  assert 0.03 < gaps[0] < gaps[1] < gaps[2]


def test_estimate_of_a_von_mises_fisher_sample_is_close_in_few_dimensions():
  law = scipy.stats.vonmises_fisher([1, 0, 0], 6.0)
  z = law.rvs(1000, random_state=np.random.default_rng(0)).astype(np.float32)
  f = lambda z: entropy.kde_entropy(z, kernel="vmf", bandwidth="scott")
  np.testing.assert_allclose(jax.jit(f)(z), law.entropy(), atol=0.06)


def test_vmf_is_the_uniformity_part_of_a_contrastive_loss():
  # Wang & Isola 2020, 4.1.2: mean_i log mean_j exp(z_i.z_j / tau), tau = h^2.
  z = normal(0, 50, 3)
  u = z / np.linalg.norm(z, axis=1, keepdims=True)
  logits = np.where(np.eye(50) > 0, -np.inf, u @ u.T / 0.09)
  want = np.mean(scipy.special.logsumexp(logits, axis=1)) - math.log(49)
  with float64():
    f = lambda z: entropy.kde_entropy(z, bandwidth=0.3, kernel="vmf")
    constant = entropy.vmf_log_normalizer(3, jnp.asarray(1 / 0.09))
    np.testing.assert_allclose(-jax.jit(f)(z) - constant, want, rtol=1e-12)


# --- bounds, memory -------------------------------------------------------------------


def test_bounds_enclose_the_monte_carlo_entropy_of_the_mixture():
  rng = np.random.default_rng(0)
  f = jax.jit(lambda z: entropy.mixture_entropy_bounds(z, bandwidth=1.0))
  for spread in (0.3, 1.0, 3.0):
    centers = spread * rng.standard_normal((6, 2))
    x = centers[rng.integers(0, 6, 40_000)] + rng.standard_normal((40_000, 2))
    log_p = KernelDensity(bandwidth=1.0, rtol=0, atol=0).fit(centers).score_samples(x)
    error = 4 * np.std(log_p) / 200
    lower, upper = f(centers.astype(np.float32))
    assert lower - error <= -np.mean(log_p) <= upper + error
    assert lower < upper


def test_bounds_meet_when_components_coincide_or_are_far_apart():
  f = jax.jit(lambda z: entropy.mixture_entropy_bounds(z, bandwidth=1.0))
  single = 2 * math.log(2 * math.pi * math.e)
  np.testing.assert_allclose(f(jnp.zeros((4, 4))), single, rtol=1e-6)
  np.testing.assert_allclose(f(100 * jnp.eye(4)), single + math.log(4), rtol=1e-6)


@pytest.mark.parametrize(
  ("f", "shape", "most"),
  [  # n x n float32 would be 17 GB and 1 GB
    (entropy.kde_entropy, (65536, 128), 256e6),
    (lambda z: entropy.renyi_entropy(z, form="matrix"), (16384, 4), 64e6),
  ],
)
def test_memory_does_not_grow_as_n_squared(f, shape, most):
  z = jax.ShapeDtypeStruct(shape, jnp.float32)
  analysis = jax.jit(jax.value_and_grad(f)).lower(z).compile().memory_analysis()
  beyond_input = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
  assert 4 * math.prod(shape) < beyond_input < most  # it saw the gradient at all
