import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.networks.published import layers

KEY = jax.random.key(0)


# One case for each of the forms a convolution is reduced to.
@pytest.mark.parametrize(
  ("shape", "window", "strides"),
  [
    ((2, 5, 9, 7, 3), (1, 1, 1), (1, 2, 2)),  # Matrix product.
    ((2, 5, 9, 7, 3), (1, 3, 3), (1, 2, 2)),  # 2-D, frame by frame.
    ((2, 9, 4, 3, 3), (7, 1, 1), (4, 1, 1)),  # 1-D, pixel by pixel.
    ((2, 9, 4, 3, 3), (1, 1, 1), (4, 1, 1)),
    ((2, 5, 9, 8, 3), (5, 7, 7), (1, 2, 2)),  # 3-D.
    ((2, 5, 9, 8, 3), (1, 3, 3), (2, 1, 1)),  # 3-D: it strides in time.
    ((2, 5, 9, 8, 3), (3, 1, 1), (1, 2, 2)),  # 3-D: it strides in space.
    ((2, 9, 8, 3), (3, 5), (2, 1)),
  ],
)
def test_convolve_is_the_plain_convolution(shape, window, strides):
  x = jax.random.normal(KEY, shape)
  kernel = jax.random.normal(KEY, (*window, 3, 4))
  order = ("NDHWC", "DHWIO", "NDHWC") if len(shape) == 5 else ("NHWC", "HWIO", "NHWC")
  padding = [(w // 2, w // 2) for w in window]
  expected = lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=order
  )
  actual = layers.convolve(x, kernel, strides)
  assert actual.shape == expected.shape
  np.testing.assert_allclose(actual, expected, atol=2e-5)  # Summation order.


def test_convolve_refuses_what_it_does_not_mean():
  x = jnp.ones((1, 4, 4, 1))
  with pytest.raises(ValueError, match=r"window=\(2, 3\) must be odd"):
    layers.convolve(x, jnp.ones((2, 3, 1, 1)), (1, 1))
  with pytest.raises(ValueError, match="same number of spatial axes"):
    layers.convolve(x, jnp.ones((3, 3, 3, 1, 1)), (1, 1))
  with pytest.raises(ValueError, match="same number of spatial axes"):
    layers.convolve(x[..., 0], jnp.ones((3, 1, 1)), (1,))


def test_pooling_pads_with_minus_infinity():
  # All negative: zeros in the padding would win at the border.
  x = -1.0 - jax.random.uniform(KEY, (1, 2, 5, 4, 1))
  actual = layers.stem_pool(x)
  assert actual.shape == (1, 2, 3, 2, 1)
  padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  for i in range(3):
    for j in range(2):
      window = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
      np.testing.assert_array_equal(actual[:, :, i, j], window.max((2, 3)))


def _norm(x, rows, *, train, stats=None):
  module = layers.BatchNorm(layers.Mode(batch_statistics=train))
  channels = x.shape[-1]
  params = {"scale": jnp.full(channels, 2.0), "bias": jnp.full(channels, 0.5)}
  stats = stats or {"mean": jnp.full(channels, 0.3), "var": jnp.full(channels, 4.0)}
  y, changed = module.apply(
    {"params": params, "batch_stats": stats}, x, rows, mutable=["batch_stats"]
  )
  return y, changed["batch_stats"]


def test_batch_norm_by_hand():
  # Values 1, 3: mean 1, then 2 * (x - 0.3) / sqrt(4 + 1e-5) + 0.5 in eval mode.
  x = jnp.array([[1.0], [3.0]])
  y, stats = _norm(x, None, train=False)
  np.testing.assert_allclose(y[:, 0], [1.2, 3.2], rtol=1e-5)
  np.testing.assert_array_equal(stats["mean"], np.float32([0.3]))
  y, stats = _norm(x, None, train=True)
  np.testing.assert_allclose(y[:, 0], [-1.5, 2.5], rtol=1e-4)  # 2 * -+1 + 0.5
  np.testing.assert_allclose(stats["mean"], [0.9 * 0.3 + 0.1 * 2.0], rtol=1e-6)
  # The biased variance is 1, the unbiased one 2.
  np.testing.assert_allclose(stats["var"], [0.9 * 4.0 + 0.1 * 2.0], rtol=1e-6)


def test_rows_that_do_not_count_have_no_influence():
  x = jax.random.normal(KEY, (3, 4, 2))
  rows = jnp.array([True, False, True, True])
  expected, expected_stats = _norm(x, None, train=True)
  with_nan = jnp.concatenate([x[:1], jnp.full((1, 4, 2), jnp.nan), x[1:]])
  actual, stats = _norm(with_nan, rows, train=True)
  np.testing.assert_allclose(actual[jnp.array([0, 2, 3])], expected, atol=1e-6)
  for name in ("mean", "var"):
    np.testing.assert_allclose(stats[name], expected_stats[name], rtol=1e-6)

  def loss(x, rows):
    y, _ = _norm(x, rows, train=True)
    keep = jnp.ones(3, bool) if rows is None else rows
    return jnp.sum(jnp.where(keep[:, None, None], y, 0) ** 3)

  padded = jnp.concatenate([x, 9 * x[:1]])
  keep = jnp.arange(4) < 3
  actual = jax.grad(lambda x: loss(x, keep))(padded)
  np.testing.assert_allclose(actual[:3], jax.grad(loss)(x, None), atol=1e-4)
  np.testing.assert_array_equal(actual[3], 0.0)


def test_no_row_at_all_is_eval_mode():
  x = jax.random.normal(KEY, (3, 4, 2))
  nobody = jnp.zeros(3, bool)
  actual, stats = _norm(x, nobody, train=True)
  expected, old = _norm(x, None, train=False)
  np.testing.assert_array_equal(actual, expected)
  jax.tree.map(np.testing.assert_array_equal, stats, old)
  gradient = jax.grad(lambda x: jnp.sum(_norm(x, nobody, train=True)[0] ** 2))(x)
  assert np.all(np.isfinite(gradient))


def test_moments_survive_a_large_mean():
  x = 1e4 + jax.random.normal(KEY, (64, 50, 1))
  _, mean, var = layers.moments(x)
  # float32 resolves 1e4 to 1e-3; E[x^2] - E[x]^2 would be off by more than 1.
  np.testing.assert_allclose(mean, np.mean(np.float64(x)), rtol=1e-6)
  np.testing.assert_allclose(var, np.var(np.float64(x)), rtol=1e-2)
