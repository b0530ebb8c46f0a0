"""Convolution as strided slices and one matrix product, in any number of axes.

On CPUs XLA's convolution is slow in training, because of the gradient of its kernel,
and slower still under ``vmap`` over kernels, where it becomes a grouped convolution.
A matrix product is neither. The parameters keep the usual layout, so the choice can
be undone without touching a checkpoint. It costs the memory of the patches, which is
why the published networks, on large maps, have ``published.layers.convolve``.

CPU time of a training step of `encoders` (batch 32, width 128), ``flax.linen.Conv``
against this one, on 2 shared cores, median of 3 (jax 0.10.2):

=====================  ========  =========  =====
input                  runs      flax (ms)  here
=====================  ========  =========  =====
image 32 x 32 x 3      16 vmap   2774       232
image 32 x 32 x 3      1         38         9
sequence 128 x 9       16 vmap   710        128
=====================  ========  =========  =====
"""

from collections.abc import Sequence
import itertools
import math

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from mer_dg.networks.initialization import fan_in


def convolve(
  x: jax.Array,
  kernel: jax.Array,
  *,
  strides: Sequence[int],
  padding: Sequence[int],
) -> jax.Array:
  """Cross-correlation over all middle axes, as deep learning calls convolution.

  Equal to ``lax.conv_general_dilated`` with channels last and symmetric padding.

  Args:
    x: ``[B, *spatial, I]``, floating.
    kernel: ``[*window, I, O]``, one window size for every spatial axis.
    strides: Step of the window, one for every spatial axis.
    padding: Zeros added on *both* sides, one number for every spatial axis. There is
      no "SAME": with strides it pads one side only, depending on the length.

  Returns:
    ``[B, *out, O]``, ``out = (spatial + 2 padding - window) // strides + 1``.

  Raises:
    ValueError: If the shapes do not fit or an output axis would be empty.

  Example:
    >>> x = jnp.arange(5.0).reshape(1, 5, 1)
    >>> print(convolve(x, jnp.ones((3, 1, 1)), strides=(2,), padding=(1,)).ravel())
    [1. 6. 7.]
  """
  window, spatial = kernel.shape[:-2], x.shape[1:-1]
  axes = len(spatial)
  if not len(window) == len(strides) == len(padding) == axes:
    raise ValueError(
      f"x {x.shape}, kernel {kernel.shape}, strides {tuple(strides)} and padding "
      f"{tuple(padding)} disagree on the number of spatial axes."
    )
  if x.shape[-1] != kernel.shape[-2]:
    raise ValueError(f"x {x.shape} and kernel {kernel.shape}: channels differ.")
  out = tuple(
    (n + 2 * p - w) // s + 1
    for n, w, s, p in zip(spatial, window, strides, padding, strict=True)
  )
  if min(out) < 1:
    raise ValueError(f"x {x.shape} is too small for the window {window}.")
  batch, channels = x.shape[0], x.shape[-1]
  x = jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
  patches = []
  for offset in itertools.product(*map(range, window)):
    limit = (o + (n - 1) * s + 1 for o, n, s in zip(offset, out, strides, strict=True))
    patches.append(
      lax.slice(x, (0, *offset, 0), (batch, *limit, channels), (1, *strides, 1))
    )
  # [B, *out, prod(window) * I]; the order of `itertools.product` is the kernel's.
  columns = patches[0] if len(patches) == 1 else jnp.concatenate(patches, axis=-1)
  flat = jnp.dot(
    columns.reshape(batch * math.prod(out), -1), kernel.reshape(-1, kernel.shape[-1])
  )
  return flat.reshape(batch, *out, kernel.shape[-1])


class Conv(nn.Module):
  """``convolve`` with odd windows, a bias, and padding ``(window - 1) / 2``.

  An output then stands at every ``stride``-th input, so ``mask[:, ::stride]`` is the
  validity of the outputs whatever the length: the base of exact padding.

  Attributes:
    features: Output channels.
    window: Odd window size, one per spatial axis.
    strides: One per spatial axis.
    dtype: Compute dtype; parameters are float32.
  """

  features: int
  window: tuple[int, ...]
  strides: tuple[int, ...]
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param(
      "kernel", fan_in(2.0), (*self.window, x.shape[-1], self.features)
    )
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    y = convolve(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      strides=self.strides,
      padding=tuple((w - 1) // 2 for w in self.window),
    )
    return y + bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
