"""Initial values, drawn for a whole branch of the network at once.

An initialiser here returns the *standard deviation* of a parameter, in a box that says
so, and ``draw`` multiplies all boxed parameters by one draw of noise. The habit, a draw
per kernel, costs a fifth of a second of compilation each on a CPU, so that a network of
a few modalities would take longer to initialise than to train for a while. Parameters
of modules with ordinary initialisers are not boxed and stay as they are.
"""

from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np


class Deviation(struct.PyTreeNode, nn.meta.AxisMetadata[Any]):
  """Marks a parameter that still has to be multiplied by unit-variance noise."""

  value: jax.Array

  def unbox(self) -> jax.Array:
    return self.value

  def replace_boxed(self, val: jax.Array) -> "Deviation":
    return self.replace(value=val)

  def add_axis(self, index: int, params: dict[Any, Any]) -> "Deviation":
    del index, params
    return self

  def remove_axis(self, index: int, params: dict[Any, Any]) -> "Deviation":
    del index, params
    return self


def constant(deviation: float):
  """Initialiser ``(key, shape) -> Deviation`` of one given standard deviation."""

  def initializer(key, shape, dtype=jnp.float32) -> Deviation:
    del key
    return Deviation(jnp.full(shape, deviation, dtype))

  return initializer


def fan_in(gain: float = 1.0):
  """Deviation ``sqrt(gain / fan_in)`` of a kernel ``[*window, I, O]``.

  Args:
    gain: 2 before a ReLU (He et al., 2015, eq. 10), 1 otherwise (LeCun).

  Example:
    >>> print(fan_in(2.0)(None, (3, 6, 4)).value[0, 0, 0].round(4))  # sqrt(2 / 18)
    0.3333
  """

  def initializer(key, shape, dtype=jnp.float32) -> Deviation:
    return constant(float(np.sqrt(gain / np.prod(shape[:-1]))))(key, shape, dtype)

  return initializer


def dense(
  features: int,
  *,
  gain: float = 1.0,
  bias: float = 0.0,
  dtype: str = "float32",
  name: str | None = None,
) -> nn.Dense:
  """``nn.Dense`` with a boxed kernel and its bias at ``bias``."""
  return nn.Dense(
    features,
    kernel_init=fan_in(gain),
    bias_init=nn.initializers.constant(bias),
    dtype=dtype,
    name=name,
  )


def draw(key: jax.Array, params: Any) -> Any:
  """Multiplies each boxed leaf by independent noise, uniform with variance 1.

  Args:
    key: Typed key.
    params: Tree with ``Deviation`` among its leaves.

  Returns:
    The tree without boxes.

  Example:
    >>> params = draw(jax.random.key(0), {"kernel": fan_in()(None, (400, 100))})
    >>> print(f"{params['kernel'].std():.3f}")  # 1 / sqrt(400)
    0.050
  """
  is_box = lambda leaf: isinstance(leaf, Deviation)
  leaves, treedef = jax.tree.flatten(params, is_leaf=is_box)
  sizes = [leaf.value.size if is_box(leaf) else 0 for leaf in leaves]
  limit = 3.0**0.5  # Uniform on [-a, a] has variance a^2 / 3.
  noise = jax.random.uniform(key, (sum(sizes),), minval=-limit, maxval=limit)
  parts = jnp.split(noise, np.cumsum(sizes)[:-1])
  drawn = [
    leaf.value * part.reshape(leaf.value.shape) if is_box(leaf) else leaf
    for leaf, part in zip(leaves, parts, strict=True)
  ]
  return jax.tree.unflatten(treedef, drawn)
