"""Gaussian, nearest-neighbour, Renyi, marginal, spectral estimators, released loss."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.neighbors import NearestNeighbors

from mer_dg import entropy
from tests.entropy._helpers import float64, normal

Z = normal(0, 40, 5)


def _call(f, *args, **options):
  return jax.jit(lambda *a: f(*a, **options))(*args)


# --- Gaussian -------------------------------------------------------------------------


def test_gaussian_equals_scipy_for_any_covariance():
  z = Z @ normal(1, 5, 5) * 3
  want = scipy.stats.multivariate_normal(np.zeros(5), np.cov(z.T)).entropy()
  with float64():
    np.testing.assert_allclose(_call(entropy.gaussian_entropy, z), want, rtol=1e-12)


@pytest.mark.parametrize("shape", [(40, 5), (6, 20)])
def test_gaussian_shrinkage_value_and_gradient(shape):
  def naive(z, rho):
    c = jnp.cov(z.T)
    c = (1 - rho) * c + rho * jnp.trace(c) / len(c) * jnp.eye(len(c))
    return 0.5 * jnp.linalg.slogdet(2 * math.pi * math.e * c)[1]

  ours = lambda z, rho: entropy.gaussian_entropy(z, shrinkage=rho)
  with float64():
    z = normal(0, *shape)
    got, want = (_call(jax.value_and_grad(f, (0, 1)), z, 0.3) for f in (ours, naive))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), got, want)


def test_gaussian_singular_is_minus_infinity_with_zero_gradient():
  z = Z.astype(np.float32)
  f = jax.value_and_grad(lambda z, w: entropy.gaussian_entropy(z, where=w))
  few = np.arange(40) < 5  # n <= d by the mask
  for rows, where in ((z[:4], None), (z, few), (np.hstack([z, z]), None)):
    value, g = _call(f, rows, where)
    assert jnp.isneginf(value)
    assert not g.any()


# --- nearest neighbours ---------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("d", [5, 12])  # distances by differences, by a product
def test_knn_equals_the_formula_with_sklearn_distances(k, d):
  z = normal(5, 40, d) * 2 + 5
  distance = NearestNeighbors(n_neighbors=k + 1).fit(z).kneighbors(z)[0][:, k]
  log_ball = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)
  psi = scipy.special.digamma
  want = psi(40) - psi(k) + log_ball + d * np.mean(np.log(distance))
  with float64():
    np.testing.assert_allclose(_call(entropy.knn_entropy, z, k=k), want, rtol=1e-12)
  got = _call(entropy.knn_entropy, z.astype(np.float32), k=k)
  np.testing.assert_allclose(got, want, atol=2e-5 * d)


def test_knn_in_blocks_equals_all_at_once(monkeypatch):
  want = _call(jax.value_and_grad(entropy.knn_entropy), Z.astype(np.float32))
  monkeypatch.setattr("mer_dg.entropy.knn._TILE_PAIRS", 9 * 40)
  got = _call(jax.value_and_grad(entropy.knn_entropy), Z.astype(np.float32))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


def test_knn_duplicates_and_too_few_rows():
  twice = np.concatenate([Z, Z]).astype(np.float32)
  value, g = _call(jax.value_and_grad(entropy.knn_entropy), twice)
  assert jnp.isfinite(value)
  value, g = _call(jax.value_and_grad(lambda z: entropy.knn_entropy(z, k=1)), twice)
  assert jnp.isneginf(value)
  assert jnp.isfinite(g).all()
  a, b = (_call(entropy.knn_entropy, Z[:3].astype(np.float32), k=k) for k in (5, 2))
  assert a == b  # k = 5 > n - 1 = 2


# --- gradients that no formula gives --------------------------------------------------


@pytest.mark.parametrize(
  "f",
  [
    entropy.knn_entropy,
    entropy.marginal_entropy,
    entropy.effective_rank,
    lambda z: entropy.renyi_entropy(z, alpha=0.7, bandwidth=1.0, form="matrix"),
  ],
)
def test_gradient_equals_finite_differences(f):
  with float64():
    run, g = jax.jit(f), _call(jax.grad(f), Z)
    for i, j in ((0, 0), (7, 3), (39, 4)):
      step = np.zeros_like(Z)
      step[i, j] = 1e-6
      want = (run(Z + step) - run(Z - step)) / 2e-6
      np.testing.assert_allclose(g[i, j], want, rtol=1e-4, atol=1e-8)


# --- Renyi ----------------------------------------------------------------------------


def test_quadratic_renyi_is_minus_log_of_the_mean_kernel():
  h, d2 = 0.9, np.sum((Z[:, None] - Z[None, :]) ** 2, -1)
  k = np.exp(-d2 / (2 * h**2)) / (2 * math.pi * h**2) ** 2.5
  want = -np.log(np.sum(k * (1 - np.eye(40))) / (40 * 39))
  with float64():
    got = _call(entropy.renyi_entropy, Z, bandwidth=h)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    # With self-pairs and width sqrt(2) s it is the exact Renyi-2 entropy of the mixture
    # of N(z_i, s^2): integrate it in one dimension.
    x, s = Z[:6, :1], 0.4
    grid = np.linspace(-8, 8, 20001)
    p = scipy.stats.norm.pdf(grid[:, None], x[:, 0][None, :], s).mean(1)
    got = _call(entropy.renyi_entropy, x, bandwidth=2**0.5 * s, leave_one_out=False)
    np.testing.assert_allclose(got, -np.log(np.trapezoid(p**2, grid)), rtol=1e-9)


def test_renyi_tends_to_shannon_and_decreases_in_alpha():
  with float64():
    shannon = _call(entropy.kde_entropy, Z, bandwidth=1.0)
    alphas = (0.5, 1, 1 + 1e-7, 2, 5)
    values = [_call(entropy.renyi_entropy, Z, alpha=a, bandwidth=1.0) for a in alphas]
  np.testing.assert_allclose(values[1:3], [shannon, shannon], rtol=1e-6)
  assert values[0] > values[1] > values[3] > values[4]


def test_uniformity_loss_is_a_special_case():
  # Wang & Isola 2020: log mean_{i != j} exp(-t |u_i - u_j|^2).
  u, t = Z / np.linalg.norm(Z, axis=1, keepdims=True), 2.0
  d2 = np.sum((u[:, None] - u[None, :]) ** 2, -1)
  want = np.log(np.mean(np.exp(-t * d2)[~np.eye(40, dtype=bool)]))
  with float64():
    got = -_call(entropy.renyi_entropy, Z, kernel="vmf", bandwidth=(2 * t) ** -0.5)
    log_norm = entropy.vmf_log_normalizer(5, jnp.asarray(2 * t), scaled=True)
    np.testing.assert_allclose(got - log_norm, want, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.7, 1.0, 2.0])
def test_matrix_renyi_equals_the_eigenvalue_definition(alpha):
  d2 = np.sum((Z[:, None] - Z[None, :]) ** 2, -1)
  values = np.linalg.eigvalsh(np.exp(-d2 / 2) / 40)
  want = (
    -np.sum(scipy.special.xlogy(values, values))
    if alpha == 1
    else np.log(np.sum(values**alpha)) / (1 - alpha)
  )
  options = dict(alpha=alpha, bandwidth=1.0, form="matrix")
  with float64():
    got = _call(entropy.renyi_entropy, Z, **options)
    np.testing.assert_allclose(got, want, rtol=1e-9)
  got = _call(entropy.renyi_entropy, 100 * jnp.eye(8), **options)
  np.testing.assert_allclose(got, math.log(8), rtol=1e-6)


# --- marginals, spectra ---------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 40])
def test_spacing_equals_scipy(n):
  ebrahimi = lambda x: scipy.stats.differential_entropy(x, method="ebrahimi")
  want = sum(map(ebrahimi, Z[:n].T))
  with float64():
    np.testing.assert_allclose(_call(entropy.marginal_entropy, Z[:n]), want, rtol=1e-12)


@pytest.mark.parametrize("estimator", ["kde", "gaussian"])
def test_marginals_are_sums_over_dimensions(estimator):
  f = {"kde": entropy.kde_entropy, "gaussian": entropy.gaussian_entropy}[estimator]
  with float64():
    want = jnp.sum(_call(f, Z.T[:, :, None]))
    got = _call(entropy.marginal_entropy, Z, estimator=estimator)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_effective_rank_and_von_neumann_equal_numpy():
  sigma = np.linalg.svd(Z, compute_uv=False)
  p, q = sigma / sigma.sum(), sigma**2 / np.sum(sigma**2)
  with float64():
    want = np.exp(-np.sum(p * np.log(p)))
    np.testing.assert_allclose(_call(entropy.effective_rank, Z), want, rtol=1e-12)
    got = _call(entropy.von_neumann_entropy, Z)
    np.testing.assert_allclose(got, -np.sum(q * np.log(q)), rtol=1e-12)
    shifted = _call(entropy.von_neumann_entropy, Z + 9, center=True)
    centered = _call(entropy.von_neumann_entropy, Z - Z.mean(0))
    np.testing.assert_allclose(shifted, centered, rtol=1e-10)


# --- released MER-DG loss -------------------------------------------------------------


def _released(z):
  """The official formulas: (marginal, spectral), primal, slogdet."""
  n, d = z.shape
  var = jnp.var(z, axis=0, ddof=1)
  marginal = jnp.mean(jnp.maximum(0, 1 - jnp.sqrt(var + 1e-4)))
  x = z - jnp.mean(z, axis=0)[None, :]
  x = x / (jnp.sqrt(jnp.mean(x**2, axis=0)) + 1e-4)[None, :]
  c = x.T @ x / (n - 1) + 1e-4 * jnp.eye(d)
  return marginal, -jnp.linalg.slogdet(c)[1] / d


@pytest.mark.parametrize("form", ["primal", "dual", "auto"])
@pytest.mark.parametrize("shape", [(16, 128), (48, 20), (9, 9), (2, 5)])
def test_mer_equals_the_released_formulas_in_float64(shape, form):
  z = normal(0, *shape) * 0.7 + 3
  ours = lambda z: (
    entropy.marginal_entropy_loss(z),
    entropy.spectral_entropy_loss(z, form=form),
  )
  with float64():
    got, want = (_call(jax.jacrev(f), z) for f in (ours, _released))
    for a, b in zip(got, want, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-9 * (1 + np.abs(b).max()))
    got, want = _call(ours, z), _call(_released, z)
    np.testing.assert_allclose(got, want, atol=1e-9)
    loss = _call(entropy.mer_loss, z, marginal_weight=2.0, spectral_weight=3.0)
    np.testing.assert_allclose(loss, 2 * want[0] + 3 * want[1], atol=1e-9)
    # log det Sigma = 2 sum log sigma + log det C, epsilons as in the loss.
    n, d = shape
    log_std = jnp.sum(jnp.log(jnp.sqrt(jnp.var(z, axis=0, ddof=1) + 1e-4)))
    want = d / 2 * math.log(2 * math.pi * math.e) + log_std - d * want[1] / 2
    np.testing.assert_allclose(_call(entropy.logdet_entropy, z), want, rtol=1e-10)


def test_mer_published_values():
  # Constant features, N 16, D 128: 1 - sqrt(1e-4) and -ln 1e-4, gradient 0.
  z = np.full((16, 128), 3.0)
  with float64():
    value, g = _call(jax.value_and_grad(entropy.mer_loss), z)
    np.testing.assert_allclose(value, 0.99 + 9.210340371976, atol=1e-9)
    assert not g.any()
    spectral = jax.jit(entropy.spectral_entropy_loss)
    # Rank one: 9.09997, the std-eps shifts the fifth decimal.
    z = normal(0, 16, 1) * normal(1, 1, 128)
    np.testing.assert_allclose(spectral(z), 9.09997, atol=5e-5)
    for n, want in ((16, 7.878), (48, 5.534), (129, 0.972), (1024, 0.064)):
      # one draw each in the source, hence the tolerance
      assert abs(spectral(normal(n, n, 128)) - want) < 0.012


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_collapsed_wide_features_stay_accurate_in_low_precision(dtype):
  # eps * |C| exceeds the ridge here: a float32 Cholesky factor of C is noise or nan.
  z = (normal(0, 48, 1) * normal(1, 1, 2304)).astype(dtype)
  with float64():
    want = _call(lambda z: entropy.spectral_entropy_loss(z), z.astype(np.float64))
  value, g = _call(jax.value_and_grad(entropy.spectral_entropy_loss), z)
  np.testing.assert_allclose(value, want, rtol=1e-4)
  assert g.dtype == dtype
  assert jnp.isfinite(g.astype(jnp.float32)).all()


def test_mer_of_one_dimension_and_beyond_the_hinge():
  z = np.float32([[0.0], [0.1], [0.3]])
  assert _call(entropy.spectral_entropy_loss, z) == 0
  want = 1 - math.sqrt(np.var(z, ddof=1) + 1e-4)
  np.testing.assert_allclose(_call(entropy.marginal_entropy_loss, z), want, rtol=1e-6)
  value, g = _call(jax.value_and_grad(entropy.marginal_entropy_loss), 10 * z)
  assert value == 0
  assert not g.any()
