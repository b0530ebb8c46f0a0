"""The improved Sheather-Jones rule against an independent solution of its equation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from mer_dg import entropy
from mer_dg.entropy.isj import isj_bandwidth
from tests.entropy import _helpers


def _samples(name):
  rng = np.random.default_rng(0)
  return {
    "normal": 5 + rng.standard_normal(500),
    "mixture": np.where(rng.random(800) < 0.3, -3, 1) + 0.2 * rng.standard_normal(800),
    "exponential": rng.exponential(1, 300),
    "few": rng.standard_normal(20),
  }[name]


def _by_definition(x):
  """Botev et al. 2010, eqs. 29 and 30, with exact cosine sums instead of a grid."""
  n, spread = len(x), np.ptp(x)
  k = np.arange(1, 2048)
  position = (x - x.min()) / (2 * spread) + 0.25
  power = np.mean(np.cos(np.pi * np.outer(k, position)), axis=1) ** 2

  def norm(s, t):
    return 2 * np.sum(
      (np.pi * k) ** (2.0 * s) * power * np.exp(-((np.pi * k) ** 2) * t)
    )

  def gap(t):
    f = norm(7, t)
    for s in range(6, 1, -1):
      constant = (1 + 0.5 ** (s + 0.5)) / 3
      constant *= 2 * math.prod(range(1, 2 * s, 2)) / math.sqrt(2 * math.pi)
      f = norm(s, (constant / n / f) ** (2 / (3 + 2 * s)))
    return t - (2 * n * math.sqrt(math.pi) * f) ** -0.4

  return 2 * spread * math.sqrt(brentq(gap, 1e-9, 0.05, xtol=1e-16))


@pytest.mark.parametrize("name", ["normal", "mixture", "exponential", "few"])
def test_equals_the_fixed_point_solved_by_scipy(name):
  x = _samples(name)
  want = _by_definition(x)
  f = jax.jit(lambda x: isj_bandwidth(x, jnp.ones(x.shape, x.dtype)))
  # The grid of 4096 cells stands for the exact sums up to 2e-5 here.
  np.testing.assert_allclose(f(x.astype(np.float32)), want, rtol=5e-5)


def test_agrees_with_kdepy():
  selection = pytest.importorskip("KDEpy.bw_selection")
  utils = pytest.importorskip("KDEpy.utils")
  x = _samples("mixture")
  grid = utils.autogrid(x[:, None], boundary_abs=6, num_points=1024, boundary_rel=0.5)
  # KDEpy 1.1.12 solves in units of its padded grid and returns in units of the range.
  units = np.ptp(grid) / np.ptp(x)
  want = selection.improved_sheather_jones(x[:, None]) * units
  got = isj_bandwidth(jnp.asarray(x, jnp.float32), jnp.ones(len(x)))
  np.testing.assert_allclose(got, want, rtol=0.01)  # its grid has 1024 cells


def test_gradient_is_that_of_the_root_and_is_stopped_by_default():
  with _helpers.float64():
    x = jnp.asarray(_samples("few"))
    f = jax.jit(lambda x: isj_bandwidth(x, jnp.ones(20)))
    g = jax.grad(f)(x)
    step = jnp.zeros(20).at[7].set(1e-6)
    np.testing.assert_allclose(g[7], (f(x + step) - f(x - step)) / 2e-6, rtol=1e-5)
    np.testing.assert_allclose(g @ x, f(x), rtol=1e-9)  # h(a x) = a h(x)
    z = x[:, None]
    stopped, free = (
      jax.jit(
        jax.grad(
          lambda a, flow=flow: entropy.kde_entropy(
            a * z, bandwidth="isj", bandwidth_gradient=flow
          )
        )
      )(1.0)
      for flow in (False, True)
    )
    np.testing.assert_allclose(free, 1.0, rtol=1e-8)  # H(aZ) = H(Z) + log a
    assert abs(stopped - 1.0) > 1e-3


def test_identical_samples_have_no_scale():
  value, g = jax.value_and_grad(isj_bandwidth)(jnp.ones(5), jnp.ones(5))
  assert value == 0
  assert not g.any()


def test_a_handful_of_samples_gets_silvermans_rule():
  z = jnp.array([-1.0, 1.0])  # The equation has no root for two samples.
  expected = math.sqrt(2) * (4 / (3 * 2)) ** 0.2  # sigma (4 / (3 n))^(1/5)
  np.testing.assert_allclose(isj_bandwidth(z, jnp.ones(2)), expected, rtol=1e-5)
