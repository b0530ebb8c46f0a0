"""Expected values: XLA's own convolution."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.networks import convolution


@pytest.mark.parametrize(
  ("spatial", "window", "strides", "padding"),
  [
    ((7,), (5,), (2,), (2,)),
    ((2,), (5,), (1,), (2,)),
    ((5, 8), (3, 2), (2, 3), (1, 0)),
    ((3, 4, 5), (3, 1, 3), (2, 1, 2), (1, 0, 1)),
  ],
)
def test_equals_lax_convolution_in_value_and_gradient(
  spatial, window, strides, padding
):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (2, *spatial, 3))
  kernel = jax.random.normal(keys[1], (*window, 3, 4))
  letters = "DHW"[: len(spatial)]
  layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")

  def reference(x, kernel):
    return lax.conv_general_dilated(
      x, kernel, strides, [(p, p) for p in padding], dimension_numbers=layout
    )

  def ours(x, kernel):
    return convolution.convolve(x, kernel, strides=strides, padding=padding)

  shape = jax.eval_shape(reference, x, kernel).shape
  cotangent = jax.random.normal(keys[2], shape)

  @jax.jit
  def both(x, kernel):
    results = []
    for convolve in (ours, reference):
      value, pull = jax.vjp(convolve, x, kernel)
      results.append((value, *pull(cotangent)))
    return results

  for a, e in zip(*both(x, kernel), strict=True):
    assert a.shape == e.shape
    # Sums of up to 60 products of unit normals, in another order, in float32.
    np.testing.assert_allclose(a, e, atol=2e-5)


@pytest.mark.parametrize(
  ("x", "kernel", "match"),
  [
    ((1, 5, 3), (3, 3, 3, 4), "disagree"),
    ((1, 5, 3), (3, 2, 4), "channels"),
    ((1, 2, 3), (5, 3, 4), "too small"),
  ],
)
def test_shapes_that_do_not_fit(x, kernel, match):
  with pytest.raises(ValueError, match=match):
    convolution.convolve(jnp.ones(x), jnp.ones(kernel), strides=(1,), padding=(1,))
