import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.special
import scipy.stats
from sklearn.neighbors import KernelDensity

import mer_dg
from mer_dg.entropy import kernels
from tests.entropy import _helpers

entropy = _helpers.Compiled(mer_dg.entropy)

H = 0.8  # bandwidth of most tests

# Normalised kernels written out from textbooks, for d = 3 and bandwidth H.
LOG_KERNELS = {
  "gaussian": lambda x: (
    -jnp.sum(x**2, -1) / (2 * H**2) - 1.5 * math.log(2 * math.pi) - 3 * math.log(H)
  ),
  # radial exp(-|x| / h) / (8 pi h^3)
  "laplace": lambda x: (
    -jnp.sqrt(jnp.sum(x**2, -1) + 1e-300) / H - math.log(8 * math.pi * H**3)
  ),
  # multivariate t, 3 degrees of freedom, scale h: Gamma(3) / (Gamma(3/2) (3 pi)^(3/2))
  "student-t": lambda x: (
    -3 * jnp.log1p(jnp.sum(x**2, -1) / (3 * H**2))
    + math.log(2 / math.gamma(1.5))
    - 1.5 * math.log(3 * math.pi)
    - 3 * math.log(H)
  ),
}


def test_two_points_by_hand():
  # Each point sees the other at distance 2: -log N(2; 0, 1) = 2 + log(2 pi) / 2.
  h = entropy.kde_entropy(jnp.array([[0.0], [2.0]]), bandwidth=1.0)
  assert h.dtype == jnp.float32
  np.testing.assert_allclose(h, 2 + 0.5 * math.log(2 * math.pi), rtol=1e-6)


@pytest.mark.parametrize("rule", ["scott", "silverman"])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_scipy_in_one_dimension(rule, weighted):
  x = _helpers.normal(0, 50) * 3 + 7
  w = np.random.default_rng(1).uniform(0.1, 1, 50) if weighted else None
  kde = scipy.stats.gaussian_kde(x, bw_method=rule, weights=w)
  want = -np.average(np.log(kde(x)), weights=w)
  with _helpers.float64():
    got = entropy.kde_entropy(
      jnp.asarray(x)[:, None], bandwidth=rule, leave_one_out=False, weights=w
    )
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize(
  ("ours", "theirs"),
  [("gaussian",) * 2, ("laplace", "exponential"), ("epanechnikov",) * 2],
)
def test_log_density_equals_sklearn(ours, theirs):
  z, q = _helpers.normal(0, 40, 3), _helpers.normal(1, 9, 3)
  h = 2.5  # wide enough for the compact kernel to reach every query
  model = KernelDensity(kernel=theirs, bandwidth=h, rtol=0, atol=0).fit(z)
  with _helpers.float64():
    got = entropy.kde_log_density(q, z, bandwidth=h, kernel=ours)
    np.testing.assert_allclose(got, model.score_samples(q), rtol=1e-9)


def test_student_t_kernel_is_the_multivariate_t():
  z = np.zeros((1, 4))
  q = _helpers.normal(1, 6, 4)
  want = scipy.stats.multivariate_t(shape=2.25 * np.eye(4), df=1.7).logpdf(q)
  with _helpers.float64():
    got = entropy.kde_log_density(q, z, bandwidth=1.5, kernel=mer_dg.student_t(1.7))
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("kernel", sorted(LOG_KERNELS))
@pytest.mark.parametrize("block_size", [None, 7, 16])
def test_value_and_gradients_equal_autodiff_of_the_definition(kernel, block_size):
  with _helpers.float64():
    z, w = jnp.asarray(_helpers.normal(0, 33, 3)), jnp.linspace(0.1, 2, 33)

    def ours(z, w):
      return entropy.kde_entropy(
        z, bandwidth=H, kernel=kernel, weights=w, block_size=block_size
      )

    def naive(z, w):
      log_p = _helpers.naive_log_density(z, z, w, LOG_KERNELS[kernel], self_pairs=True)
      return -jnp.sum(w * log_p) / jnp.sum(w)

    got = jax.jit(jax.value_and_grad(ours, (0, 1)))(z, w)
    want = jax.value_and_grad(naive, (0, 1))(z, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), got, want)


@pytest.mark.parametrize("block_size", [None, 5])
@pytest.mark.parametrize("offset", [None, 4])
def test_reference_value_and_gradients(block_size, offset):
  with _helpers.float64():
    z, r = (
      jnp.asarray(_helpers.normal(0, 12, 3)),
      jnp.asarray(_helpers.normal(1, 20, 3)),
    )
    if offset is not None:
      r = r.at[offset : offset + 12].set(z)
    keep = jnp.arange(20) != 18

    def ours(z, r):
      return entropy.kde_entropy(
        z,
        bandwidth=H,
        reference=r,
        reference_where=keep,
        reference_offset=offset,
        block_size=block_size,
      )

    def naive(z, r):
      diff = z[:, None, :] - r[None, :, :]
      w = jnp.broadcast_to(keep[None, :], diff.shape[:2]).astype(z.dtype)
      if offset is not None:
        w = w.at[jnp.arange(12), jnp.arange(12) + offset].set(0)
      k = jnp.exp(LOG_KERNELS["gaussian"](diff))
      return -jnp.mean(jnp.log(jnp.sum(w * k, 1) / jnp.sum(w, 1)))

    got = jax.value_and_grad(ours, (0, 1))(z, r)
    want = jax.value_and_grad(naive, (0, 1))(z, r)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), got, want)


def test_bandwidth_per_dimension_equals_scaling_the_samples():
  with _helpers.float64():
    z = jnp.asarray(_helpers.normal(0, 30, 3))
    h = jnp.array([0.5, 1.0, 2.0])
    got = entropy.kde_entropy(z, bandwidth=h)
    want = entropy.kde_entropy(z / h[None, :], bandwidth=1.0) + jnp.sum(jnp.log(h))
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_median_rule_is_the_median_pairwise_distance():
  z = _helpers.normal(0, 15, 4)
  median = np.median(scipy.spatial.distance.pdist(z))
  with _helpers.float64():
    np.testing.assert_allclose(
      entropy.kde_entropy(z, bandwidth="median"),
      entropy.kde_entropy(z, bandwidth=median),
      rtol=1e-12,
    )


@pytest.mark.parametrize("rule", ["scott", "silverman", "median"])
def test_gradient_through_the_rule_is_a_choice(rule):
  # H(aZ) = H(Z) + d log a with the rule differentiated: d/da at a = 1 is exactly d.
  with _helpers.float64():
    z = jnp.asarray(_helpers.normal(0, 25, 3))
    slope = lambda flow: jax.grad(
      lambda a: entropy.kde_entropy(a * z, bandwidth=rule, bandwidth_gradient=flow)
    )(1.0)
    np.testing.assert_allclose(slope(True), 3.0, rtol=1e-9)
    h = mer_dg.entropy.bandwidth.bandwidth_rule(rule, z, jnp.ones(25), z[0])
    want = jax.grad(lambda a: entropy.kde_entropy(a * z, bandwidth=h))(1.0)
    np.testing.assert_allclose(slope(False), want, rtol=1e-9)
    assert abs(slope(False) - 3.0) > 1e-3


def test_traced_bandwidth_under_vmap_equals_a_loop():
  z = jnp.asarray(_helpers.normal(0, 3, 16, 8, dtype=np.float32))
  where = jnp.arange(16)[None, :] < jnp.array([16, 9, 2])[:, None]
  bandwidths = jnp.array([0.5, 1.0, 2.0])
  f = lambda z, h, w: entropy.kde_entropy(z, bandwidth=h, where=w)
  grads = jax.vmap(jax.value_and_grad(f, (0, 1)))
  got = jax.jit(grads)(z, bandwidths, where)
  for i in range(3):
    want = jax.value_and_grad(f, (0, 1))(z[i], bandwidths[i], where[i])
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=2e-5, atol=1e-6),
      got,
      want,
    )
  np.testing.assert_allclose(  # leading axes are the same as vmap
    entropy.kde_entropy(z, bandwidth=1.0), jax.vmap(lambda z: f(z, 1.0, None))(z)
  )


# --- sphere ---------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3, 8, 64, 100])
def test_bessel_equals_scipy(d):
  order = d / 2 - 1
  kappa = np.geomspace(1e-3, 3e3, 40)
  want = np.log(scipy.special.ive(order, kappa)) - order * np.log(kappa)
  finite = np.isfinite(want)
  assert finite.sum() > 15  # scipy underflows for large order and small kappa
  with _helpers.float64():
    got = kernels.log_scaled_bessel(order, jnp.asarray(kappa))
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
  with _helpers.float64():
    np.testing.assert_allclose(
      kernels.log_scaled_bessel(order, jnp.asarray(kappa)), want, rtol=1e-13, atol=1e-13
    )


def test_vmf_density_equals_scipy_and_gradient_of_normaliser():
  z = _helpers.normal(0, 6, 5)
  z /= np.linalg.norm(z, axis=1, keepdims=True)
  kappa = 7.0
  want = scipy.stats.vonmises_fisher(z[0], kappa).logpdf(z)
  with _helpers.float64():
    got = entropy.kde_log_density(z, z[:1], bandwidth=kappa**-0.5, kernel="vmf")
    np.testing.assert_allclose(got, want, rtol=1e-11)
    # d log C / d kappa = - I_{d/2} / I_{d/2-1}
    slope = jax.grad(lambda k: entropy.vmf_log_normalizer(5, k))(kappa)
    ratio = scipy.special.ive(2.5, kappa) / scipy.special.ive(1.5, kappa)
    np.testing.assert_allclose(slope, -ratio, rtol=1e-10)


def test_vmf_gradient_is_tangent_and_scale_free():
  with _helpers.float64():
    z = jnp.asarray(_helpers.normal(0, 20, 6))
    f = lambda z: entropy.kde_entropy(z, bandwidth=0.5, kernel="vmf")
    g = jax.grad(f)(z)
    np.testing.assert_allclose(jnp.sum(g * z, axis=1), 0, atol=1e-14)
    scale = jnp.linspace(0.1, 9, 20)[:, None]
    np.testing.assert_allclose(f(z * scale), f(z), rtol=1e-12)


def test_vmf_converges_to_the_uniform_entropy_and_contrastive_form():
  with _helpers.float64():
    z = jnp.asarray(_helpers.normal(0, 4000, 3))
    h = entropy.kde_entropy(z, bandwidth=0.3, kernel="vmf")
    np.testing.assert_allclose(h, math.log(4 * math.pi), atol=0.02)
    # Wang & Isola 2020, 4.1.2: mean_i log mean_j exp(z_i.z_j / tau), tau = h^2.
    u = z[:50] / jnp.linalg.norm(z[:50], axis=1, keepdims=True)
    tau = 0.09
    logits = jnp.where(jnp.eye(50) > 0, -jnp.inf, u @ u.T / tau)
    want = jnp.mean(jax.nn.logsumexp(logits, axis=1)) - math.log(49)
    got = -entropy.kde_entropy(u, bandwidth=0.3, kernel="vmf")
    constant = entropy.vmf_log_normalizer(3, jnp.asarray(1 / tau))
    np.testing.assert_allclose(got - constant, want, rtol=1e-12)


# --- bounds, rates --------------------------------------------------------------------


def test_bounds_enclose_the_monte_carlo_entropy_of_the_mixture():
  rng = np.random.default_rng(0)
  with _helpers.float64():
    for spread in (0.3, 1.0, 3.0):
      centers = spread * rng.standard_normal((6, 2))
      x = centers[rng.integers(0, 6, 40_000)] + rng.standard_normal((40_000, 2))
      log_p = entropy.kde_log_density(x, centers, bandwidth=1.0)
      error = 4 * np.std(log_p) / 200
      lower, upper = entropy.mixture_entropy_bounds(centers, bandwidth=1.0)
      assert lower - error <= -np.mean(log_p) <= upper + error
      assert lower < upper


def test_bounds_meet_when_components_coincide_or_are_far_apart():
  single = 0.5 * math.log(2 * math.pi * math.e)
  same = entropy.mixture_entropy_bounds(jnp.zeros((5, 1)), bandwidth=1.0)
  np.testing.assert_allclose(same, single, rtol=1e-6)
  far = entropy.mixture_entropy_bounds(100 * jnp.eye(4), bandwidth=1.0)
  np.testing.assert_allclose(far, 4 * single + math.log(4), rtol=1e-6)


def _mixture(rng, n):
  return np.where(rng.random(n) < 0.3, -3, 1) + 0.5 * rng.standard_normal(n)


def _mixture_entropy():
  x = np.linspace(-8, 8, 20001)
  p = 0.3 * scipy.stats.norm.pdf(x, -3, 0.5) + 0.7 * scipy.stats.norm.pdf(x, 1, 0.5)
  return -np.trapezoid(scipy.special.xlogy(p, p), x)


SAMPLERS = {  # name: (sampler, entropy in nats)
  "gaussian": (lambda rng, n: 2 * rng.standard_normal(n), math.log(2) + 1.4189385),
  "uniform": (lambda rng, n: rng.random(n) * 3, math.log(3)),
  "exponential": (lambda rng, n: rng.exponential(2, n), 1 + math.log(2)),
  "mixture": (_mixture, _mixture_entropy()),
}


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("estimator", ["kde", "knn", "spacing"])
def test_closed_forms_and_rate_of_convergence(name, estimator):
  sample, truth = SAMPLERS[name]
  f = {
    # A left-out point in an exponential tail is many Gaussian bandwidths from the rest,
    # which costs (distance / h)^2 / 2 nats; the Laplace kernel has the right tail.
    "kde": lambda z: entropy.kde_entropy(
      z,
      bandwidth=0.9 * z.shape[-2] ** -0.25,
      kernel="laplace" if name == "exponential" else "gaussian",
    ),
    "knn": entropy.knn_entropy,
    "spacing": entropy.marginal_entropy,
  }[estimator]
  rng = np.random.default_rng(0)
  rmse = []
  for n in (50, 800):
    z = np.stack([sample(rng, n) for _ in range(24)]).astype(np.float32)[..., None]
    rmse.append(float(np.sqrt(np.mean((np.asarray(jax.jit(f)(z)) - truth) ** 2))))
  # 16 times the rows: n^-1/2 gives a factor 4; smoothing bias of the KDE (h ~ n^-1/4)
  # allows no more than about n^-1/4 .. n^-1/2.
  assert rmse[1] < 0.1
  assert rmse[1] < rmse[0] / 1.9


# --- memory ---------------------------------------------------------------------------


def test_memory_of_65536_rows_stays_below_256_mb():
  n, d = 65536, 128
  z = jax.ShapeDtypeStruct((n, d), jnp.float32)
  f = jax.jit(jax.value_and_grad(lambda z: entropy.kde_entropy(z)))
  analysis = f.lower(z).compile().memory_analysis()
  beyond_input = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
  assert beyond_input < 256e6
  assert beyond_input > n * d * 4  # the analysis saw the gradient at all


@pytest.mark.parametrize(
  "f",
  [
    mer_dg.renyi_entropy,
    lambda z: mer_dg.renyi_entropy(z, form="matrix"),
    lambda z: mer_dg.marginal_entropy(z, estimator="kde"),
  ],
)
def test_memory_of_the_relatives_does_not_grow_as_n_squared(f):
  z = jax.ShapeDtypeStruct((16384, 4), jnp.float32)  # n x n float32 would be 1074 MB
  analysis = jax.jit(jax.value_and_grad(f)).lower(z).compile().memory_analysis()
  assert analysis.temp_size_in_bytes < 64e6
