import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mer_dg
from tests.entropy import _helpers

entropy = _helpers.Compiled(mer_dg.entropy)


def released(z, eps=1e-4):
  """The official formulas in numpy: (marginal, spectral), primal, slogdet."""
  n, d = z.shape
  var = z.var(axis=0, ddof=1)
  marginal = np.maximum(0, 1 - np.sqrt(var + 1e-4)).mean()
  x = z - z.mean(axis=0)
  x = x / (np.sqrt((x**2).mean(axis=0)) + eps)
  c = x.T @ x / (n - 1) + eps * np.eye(d)
  return marginal, -np.linalg.slogdet(c)[1] / d


def released_jax(z):
  n, d = z.shape
  var = jnp.var(z, axis=0, ddof=1)
  marginal = jnp.mean(jnp.maximum(0, 1 - jnp.sqrt(var + 1e-4)))
  x = z - jnp.mean(z, axis=0)[None, :]
  x = x / (jnp.sqrt(jnp.mean(x**2, axis=0)) + 1e-4)[None, :]
  c = x.T @ x / (n - 1) + 1e-4 * jnp.eye(d)
  return marginal - jnp.linalg.slogdet(c)[1] / d


@pytest.mark.parametrize("form", ["primal", "dual", "auto"])
@pytest.mark.parametrize("shape", [(16, 128), (48, 20), (9, 9), (2, 5)])
def test_equals_the_released_formulas_in_float64(shape, form):
  z = _helpers.normal(0, *shape) * 0.7 + 3
  marginal, spectral = released(z)
  with _helpers.float64():
    got = entropy.spectral_entropy_loss(z, form=form)
    np.testing.assert_allclose(got, spectral, rtol=0, atol=1e-9)
    got = entropy.marginal_entropy_loss(z)
    np.testing.assert_allclose(got, marginal, rtol=0, atol=1e-12)
    ours = lambda z: entropy.mer_loss(z, form=form)
    g, want = jax.grad(ours)(jnp.asarray(z)), jax.grad(released_jax)(jnp.asarray(z))
    np.testing.assert_allclose(g, want, rtol=0, atol=1e-9 * (1 + jnp.abs(want).max()))


def test_published_values():
  # Constant features, N 16, D 128: 1 - sqrt(1e-4) and -ln 1e-4, gradient 0.
  with _helpers.float64():
    z = jnp.full((16, 128), 3.0)
    np.testing.assert_allclose(entropy.marginal_entropy_loss(z), 0.99, atol=1e-12)
    spectral = entropy.spectral_entropy_loss(z)
    np.testing.assert_allclose(spectral, 9.210340371976, atol=1e-9)
    assert not jax.grad(entropy.mer_loss)(z).any()
    # Rank one: 9.09997, the std-eps shifts the fifth decimal.
    z = jnp.asarray(_helpers.normal(0, 16, 1) * _helpers.normal(1, 1, 128))
    np.testing.assert_allclose(entropy.spectral_entropy_loss(z), 9.09997, atol=5e-5)
    for n, gaussian, unit in (
      (16, 7.878, 7.877),
      (48, 5.534, 5.533),
      (129, 0.972, 0.968),
      (256, 0.293, 0.292),
      (1024, 0.064, 0.066),
    ):  # one draw each in the source, hence the tolerance
      z = jnp.asarray(_helpers.normal(n, n, 128))
      assert abs(entropy.spectral_entropy_loss(z) - gaussian) < 0.012
      z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
      assert abs(entropy.spectral_entropy_loss(z) - unit) < 0.012
      assert abs(entropy.marginal_entropy_loss(z) - 0.9115) < 0.0015


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_collapsed_wide_features_stay_accurate_in_low_precision(dtype):
  # eps * |C| exceeds the ridge here: a float32 Cholesky factor of C is noise or nan.
  z = (_helpers.normal(0, 48, 1) * _helpers.normal(1, 1, 2304)).astype(np.float32)
  z = jnp.asarray(z, dtype)
  _, want = released(np.asarray(z, np.float64))
  value, g = jax.value_and_grad(entropy.spectral_entropy_loss)(z)
  np.testing.assert_allclose(value, want, rtol=1e-4)
  assert g.dtype == dtype
  assert jnp.isfinite(g.astype(jnp.float32)).all()


def test_below_two_rows_or_dimensions():
  f = jax.value_and_grad(entropy.mer_loss)
  for z, where in (
    (jnp.ones((1, 4)), None),
    (jnp.ones((5, 4)), jnp.zeros(5, bool)),
    (jnp.ones((5, 4)), jnp.arange(5) == 2),
  ):
    value, g = f(z, where=where)
    assert value == 0
    assert not g.any()
  one_dimension = jnp.array([[0.0], [0.1], [0.3]])
  assert entropy.spectral_entropy_loss(one_dimension) == 0
  want = released(np.asarray(one_dimension, np.float64))[0]
  np.testing.assert_allclose(
    entropy.marginal_entropy_loss(one_dimension), want, rtol=1e-6
  )


def test_hinge_has_subgradient_zero_and_weights_are_factors():
  z = 10 * jnp.asarray(_helpers.normal(0, 8, 3, dtype=np.float32))
  assert entropy.marginal_entropy_loss(z) == 0
  assert not jax.grad(entropy.marginal_entropy_loss)(z).any()
  f = lambda a, b: entropy.mer_loss(z, marginal_weight=a, spectral_weight=b, gamma=50.0)
  got = jax.jit(jax.grad(f, (0, 1)))(1.0, 1.0)
  np.testing.assert_allclose(got[0], entropy.marginal_entropy_loss(z, gamma=50.0))
  np.testing.assert_allclose(got[1], entropy.spectral_entropy_loss(z), rtol=1e-6)


def _laws(z, scale, shift, order):
  f = lambda z: (
    entropy.marginal_entropy_loss(z),
    entropy.spectral_entropy_loss(z, form="primal"),
    entropy.spectral_entropy_loss(z, form="dual"),
  )
  return f(z), f(z[order] + shift[None, :]), f(z * scale[None, :])


_laws = jax.jit(_laws)


@settings(max_examples=1000, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), log_scale=st.floats(-2, 6))
def test_laws(seed, log_scale):
  rng = np.random.default_rng(seed)
  z = rng.standard_normal((7, 4)) * math.exp(log_scale)
  with _helpers.float64():
    base, moved, scaled = _laws(
      z, np.exp(rng.uniform(0, 2, 4)), 10 * rng.standard_normal(4), rng.permutation(7)
    )
    np.testing.assert_allclose(base[1], base[2], atol=1e-9)  # primal = dual
    np.testing.assert_allclose(moved, base, atol=1e-9)
    # Invariance to rescaling holds up to eps / std.
    np.testing.assert_allclose(
      scaled[1], base[1], atol=0.02 / math.exp(log_scale) + 1e-9
    )
    floor = math.sqrt(1 - 1e-4)
    assert (base[0] == 0) == bool((z.std(axis=0, ddof=1) >= floor).all())


@pytest.mark.parametrize(
  ("name", "value"), [("eps", 0.0), ("eps", -1.0), ("form", "both")]
)
def test_bad_options(name, value):
  with pytest.raises(ValueError, match=name):
    entropy.spectral_entropy_loss(jnp.ones((4, 3)), **{name: value})
