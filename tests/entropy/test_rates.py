"""How fast estimates converge: slope of log error against log n, against theory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mer_dg import entropy

SIZES = (64, 192, 576, 1728)
REPEATS = 32


def _slope(errors):
  return np.polyfit(np.log(SIZES), np.log(errors), 1)[0]


def _normal(n, d):
  return np.random.default_rng(n + d).standard_normal((REPEATS, n, d))


def _estimates(f, d):
  """Estimates and minus the mean log density of the same samples, per size."""
  every = jax.jit(lambda z: jax.lax.map(f, z))
  for n in SIZES:
    z = _normal(n, d)
    oracle = 0.5 * d * math.log(2 * math.pi) + 0.5 * np.mean(np.sum(z**2, 2), 1)
    yield np.asarray(every(jnp.asarray(z, jnp.float32)), np.float64), oracle


@pytest.mark.parametrize(
  ("f", "d"),
  [(entropy.kde_entropy, 1), (entropy.knn_entropy, 1), (entropy.gaussian_entropy, 2)],
)
def test_root_mean_square_error_decays_like_the_root_of_n(f, d):
  # The standard error of a mean of n logs dominates where the bias decays faster:
  # Tsybakov & van der Meulen 1996 (kNN), Hall & Morton 1993 (KDE, d <= 3).
  truth = 0.5 * d * math.log(2 * math.pi * math.e)
  rmse = [np.sqrt(np.mean((h - truth) ** 2)) for h, _ in _estimates(f, d)]
  assert _slope(rmse) == pytest.approx(-0.5, abs=0.12)


@pytest.mark.parametrize("d", [1, 4])
def test_bias_of_the_kde_has_the_exponent_of_its_bandwidth(d):
  # Scott's h ~ n^(-1/(d+4)) balances h^4 (Kullback-Leibler divergence to the smoothed
  # density) and 1 / (n h^d) (variance): both are n^(-4/(d+4)). Comparing with the true
  # log density of the same samples takes the n^(-1/2) of sampling out.
  errors = [np.mean(h - oracle) for h, oracle in _estimates(entropy.kde_entropy, d)]
  assert min(errors) > 0
  assert _slope(errors) == pytest.approx(-4 / (d + 4), abs=0.15)


def test_bias_of_the_gaussian_is_that_of_the_wishart_log_determinant():
  # E log det S = sum_j psi((n - j) / 2) + d log(2 / (n - 1)): about -d (d + 1) / (2 n).
  d, exact = 4, []
  for (h, _), n in zip(_estimates(entropy.gaussian_entropy, d), SIZES, strict=True):
    psi = sum(scipy.special.digamma((n - j) / 2) for j in range(1, d + 1))
    exact.append(0.5 * (psi + d * math.log(2 / (n - 1))))
    error = h - 0.5 * d * math.log(2 * math.pi * math.e)
    assert abs(np.mean(error) - exact[-1]) < 4 * np.std(error) / math.sqrt(REPEATS)
  assert _slope(-np.array(exact)) == pytest.approx(-1, abs=0.05)
