"""Gaussian, nearest-neighbour, Renyi, marginal and spectral estimators."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.neighbors import NearestNeighbors

import mer_dg
from tests.entropy import _helpers

entropy = _helpers.Compiled(mer_dg.entropy)

Z = _helpers.normal(0, 40, 5)


# --- Gaussian -------------------------------------------------------------------------


def test_gaussian_equals_scipy_for_any_covariance():
  z = Z @ _helpers.normal(1, 5, 5) * 3
  want = scipy.stats.multivariate_normal(np.zeros(5), np.cov(z.T)).entropy()
  with _helpers.float64():
    np.testing.assert_allclose(entropy.gaussian_entropy(z), want, rtol=1e-12)


@pytest.mark.parametrize("shape", [(40, 5), (6, 20)])
def test_gaussian_shrinkage_value_and_gradient(shape):
  with _helpers.float64():
    z = jnp.asarray(_helpers.normal(0, *shape))
    n, d = shape

    def naive(z, rho):
      c = jnp.cov(z.T)
      c = (1 - rho) * c + rho * jnp.trace(c) / d * jnp.eye(d)
      return 0.5 * jnp.linalg.slogdet(2 * math.pi * math.e * c)[1]

    ours = lambda z, rho: entropy.gaussian_entropy(z, shrinkage=rho)
    got = jax.jit(jax.value_and_grad(ours, (0, 1)))(z, 0.3)
    want = jax.value_and_grad(naive, (0, 1))(z, 0.3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), got, want)


def test_gaussian_singular_is_minus_infinity_with_zero_gradient():
  f = jax.value_and_grad(entropy.gaussian_entropy)
  copied = jnp.concatenate([jnp.asarray(Z, jnp.float32)] * 2, axis=1)
  for z, where in (
    (jnp.asarray(Z[:4], jnp.float32), None),  # n <= d
    (jnp.asarray(Z, jnp.float32), jnp.arange(40) < 5),  # n <= d by the mask
    (copied, None),  # dependent columns
    (jnp.ones((9, 3)), None),
  ):
    value, g = f(z, where=where)
    assert jnp.isneginf(value)
    assert not g.any()


def test_gaussian_is_subadditive():
  f = jax.jit(entropy.gaussian_entropy)
  with _helpers.float64():
    for seed in range(200):
      z = _helpers.normal(seed, 12, 5) @ _helpers.normal(seed + 1000, 5, 5)
      assert f(z) <= f(z[:, :2]) + f(z[:, 2:]) + 1e-10


# --- nearest neighbours ---------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("block_size", [None, 9])
def test_knn_equals_the_formula_with_sklearn_distances(k, block_size):
  z = Z * 2 + 5
  distance = NearestNeighbors(n_neighbors=k + 1).fit(z).kneighbors(z)[0][:, k]
  log_ball = 2.5 * math.log(math.pi) - math.lgamma(3.5)
  psi = scipy.special.digamma
  want = psi(40) - psi(k) + log_ball + 5 * np.mean(np.log(distance))
  with _helpers.float64():
    got = entropy.knn_entropy(z, k=k, block_size=block_size)
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("d", [1, 12])
def test_knn_finds_the_right_neighbours_in_float32(d):
  z = _helpers.normal(5, 1000, d, dtype=np.float32) + 3
  with _helpers.float64():
    want = entropy.knn_entropy(z.astype(np.float64))
  np.testing.assert_allclose(entropy.knn_entropy(z), want, atol=2e-5)


def test_knn_gradient_equals_finite_differences():
  with _helpers.float64():
    z = jnp.asarray(Z)
    g = jax.grad(entropy.knn_entropy)(z)
    for i, j in ((0, 0), (7, 3), (39, 4)):
      step = jnp.zeros_like(z).at[i, j].set(1e-6)
      up, down = entropy.knn_entropy(z + step), entropy.knn_entropy(z - step)
      np.testing.assert_allclose(g[i, j], (up - down) / 2e-6, rtol=1e-4, atol=1e-8)


def test_knn_duplicates_and_too_few_rows():
  twice = jnp.concatenate([jnp.asarray(Z, jnp.float32)] * 2)
  value, g = jax.value_and_grad(lambda z: entropy.knn_entropy(z, k=1))(twice)
  assert jnp.isneginf(value)
  assert jnp.isfinite(g).all()
  z = jnp.asarray(Z[:3], jnp.float32)  # k = 5 > n - 1 = 2
  np.testing.assert_allclose(entropy.knn_entropy(z, k=5), entropy.knn_entropy(z, k=2))


def test_infomeasure_agrees_where_it_computes_the_same():
  infomeasure = pytest.importorskip("infomeasure")
  x = Z[:, :1]
  with _helpers.float64():
    want = infomeasure.entropy(
      x, approach="metric", k=4, noise_level=0, minkowski_p=2, base="e"
    )
    # In one dimension its ball and ours are the same interval.
    got = entropy.knn_entropy(x, k=4)
    np.testing.assert_allclose(got, want, rtol=1e-9)


# --- Renyi ----------------------------------------------------------------------------


def test_quadratic_renyi_is_minus_log_of_the_mean_kernel():
  with _helpers.float64():
    z = jnp.asarray(Z)
    d2 = jnp.sum((z[:, None] - z[None, :]) ** 2, -1)
    h = 0.9
    k = jnp.exp(-d2 / (2 * h**2)) / (2 * math.pi * h**2) ** 2.5
    off = 1 - jnp.eye(40)
    want = -jnp.log(jnp.sum(k * off) / (40 * 39))
    np.testing.assert_allclose(entropy.renyi_entropy(z, bandwidth=h), want, rtol=1e-12)
    # With self-pairs and width sqrt(2) s it is the exact Renyi-2 entropy of the mixture
    # of N(z_i, s^2): integrate it in one dimension.
    x, s = Z[:6, :1], 0.4
    grid = np.linspace(-8, 8, 20001)
    p = scipy.stats.norm.pdf(grid[:, None], x[:, 0][None, :], s).mean(1)
    got = entropy.renyi_entropy(x, bandwidth=2**0.5 * s, leave_one_out=False)
    np.testing.assert_allclose(got, -np.log(np.trapezoid(p**2, grid)), rtol=1e-9)


def test_renyi_tends_to_shannon_and_decreases_in_alpha():
  with _helpers.float64():
    shannon = entropy.kde_entropy(Z, bandwidth=1.0)
    f = lambda a: entropy.renyi_entropy(Z, alpha=a, bandwidth=1.0)
    np.testing.assert_allclose(f(1.0), shannon, rtol=1e-12)
    np.testing.assert_allclose(f(1 + 1e-7), shannon, rtol=1e-6)
    values = [float(f(a)) for a in (0.5, 1, 2, 5)]
    assert values == sorted(values, reverse=True)


def test_uniformity_loss_is_a_special_case():
  # Wang & Isola 2020: log mean_{i != j} exp(-t |u_i - u_j|^2).
  with _helpers.float64():
    u = jnp.asarray(Z / np.linalg.norm(Z, axis=1, keepdims=True))
    t = 2.0
    d2 = jnp.sum((u[:, None] - u[None, :]) ** 2, -1)
    off = ~jnp.eye(40, dtype=bool)
    want = jnp.log(jnp.mean(jnp.exp(-t * d2)[off]))
    h = (2 * t) ** -0.5
    got = -entropy.renyi_entropy(u, kernel="vmf", bandwidth=h)
    log_norm = entropy.vmf_log_normalizer(5, jnp.asarray(2 * t), scaled=True)
    np.testing.assert_allclose(got - log_norm, want, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.7, 1.0, 1.01, 2.0, 3.0])
def test_matrix_renyi_equals_the_eigenvalue_definition(alpha):
  with _helpers.float64():
    d2 = np.sum((Z[:, None] - Z[None, :]) ** 2, -1)
    values = np.linalg.eigvalsh(np.exp(-d2 / 2) / 40)
    want = (
      -np.sum(scipy.special.xlogy(values, values))
      if alpha == 1
      else np.log(np.sum(values**alpha)) / (1 - alpha)
    )
    f = lambda z: entropy.renyi_entropy(z, alpha=alpha, bandwidth=1.0, form="matrix")
    np.testing.assert_allclose(f(Z), want, rtol=1e-9)
    g = jax.grad(f)(jnp.asarray(Z))
    step = jnp.zeros_like(g).at[3, 2].set(1e-6)
    want = (f(Z + step) - f(Z - step)) / 2e-6
    np.testing.assert_allclose(g[3, 2], want, rtol=1e-5)


def test_matrix_renyi_extremes():
  for alpha in (1.0, 2.0):
    f = lambda z, a=alpha: entropy.renyi_entropy(
      z, alpha=a, bandwidth=1.0, form="matrix"
    )
    np.testing.assert_allclose(f(jnp.ones((8, 3))), 0, atol=1e-6)
    np.testing.assert_allclose(f(100 * jnp.eye(8)), math.log(8), rtol=1e-6)
    assert jnp.isfinite(jax.grad(f)(jnp.ones((8, 3)))).all()


# --- marginals ------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 40])
def test_spacing_equals_scipy(n):
  z = Z[:n]
  want = sum(
    scipy.stats.differential_entropy(z[:, k], method="ebrahimi") for k in range(5)
  )
  with _helpers.float64():
    np.testing.assert_allclose(entropy.marginal_entropy(z), want, rtol=1e-12)


def test_marginals_are_sums_over_dimensions():
  with _helpers.float64():
    want = sum(entropy.kde_entropy(Z[:, k : k + 1]) for k in range(5))
    got = entropy.marginal_entropy(Z, estimator="kde")
    np.testing.assert_allclose(got, want, rtol=1e-12)
    want = sum(entropy.gaussian_entropy(Z[:, k : k + 1]) for k in range(5))
    got = entropy.marginal_entropy(Z, estimator="gaussian")
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_spacing_gradient_equals_finite_differences():
  with _helpers.float64():
    z = jnp.asarray(Z)
    g = jax.grad(entropy.marginal_entropy)(z)
    step = jnp.zeros_like(z).at[11, 1].set(1e-7)
    up, down = entropy.marginal_entropy(z + step), entropy.marginal_entropy(z - step)
    np.testing.assert_allclose(g[11, 1], (up - down) / 2e-7, rtol=1e-5)


# --- spectra --------------------------------------------------------------------------


def test_effective_rank_and_von_neumann_equal_numpy():
  sigma = np.linalg.svd(Z, compute_uv=False)
  p = sigma / sigma.sum()
  q = sigma**2 / np.sum(sigma**2)
  with _helpers.float64():
    want = np.exp(-np.sum(p * np.log(p)))
    np.testing.assert_allclose(entropy.effective_rank(Z), want, rtol=1e-12)
    want = -np.sum(q * np.log(q))
    np.testing.assert_allclose(entropy.von_neumann_entropy(Z), want, rtol=1e-12)
    shifted = entropy.von_neumann_entropy(Z + 9, center=True)
    centered = entropy.von_neumann_entropy(Z - Z.mean(0))
    np.testing.assert_allclose(shifted, centered, rtol=1e-10)


def test_spectra_at_the_edges():
  f = jax.value_and_grad(entropy.effective_rank)
  for z, want in ((jnp.zeros((4, 3)), 1), (jnp.ones((4, 3)), 1), (jnp.eye(5), 5)):
    value, g = f(z)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert jnp.isfinite(g).all()
  assert entropy.von_neumann_entropy(1e15 * jnp.eye(4)) == pytest.approx(math.log(4))
