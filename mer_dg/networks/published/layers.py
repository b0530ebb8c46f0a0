"""Convolution, batch norm and pooling as the published PyTorch networks have them.

Channels are last, windows are odd, and padding is always ``(window - 1) / 2`` on both
sides: every layer of the three networks is of that form. ("SAME" is not: with strides
XLA then pads asymmetrically.)
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

# Both as in PyTorch; its momentum of 0.1 is the weight of the *new* value.
_EPSILON = 1e-5
_MOMENTUM = 0.1


class Mode(NamedTuple):
  """How a network computes; nothing here changes its parameters.

  Attributes:
    dtype: Compute dtype of convolutions and activations; parameters, batch
      statistics and the arithmetic of batch norms are float32.
    batch_statistics: Batch norms use, and record, the statistics of the batch.
    remat: The activations inside a residual block are computed again in the
      backward pass instead of being stored.
  """

  dtype: str = "float32"
  batch_statistics: bool = False
  remat: bool = False


def convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int]) -> jax.Array:
  """Cross-correlation with padding ``(window - 1) / 2``, in as few axes as possible.

  A ``(1, k, k)`` window is a 2-D convolution with time among the samples; a
  ``(k, 1, 1)`` window one with all pixels in one axis; a window of ones a matrix
  product. The reshapes move no data, and the 3-D form of the same layer is slower on a
  CPU: five times for the stem, a hundred times with gradients (docs/encoders.md). Any
  other window without a temporal stride runs on a CPU as a 2-D convolution whose
  channels are those of the frames under it, side by side.

  Args:
    x: ``[B, *spatial, I]``, two or three spatial axes.
    kernel: ``[*window, I, O]``, odd windows, dtype of ``x``.
    strides: One per spatial axis.

  Returns:
    ``[B, *ceil(spatial / strides), O]``, dtype of ``x``.

  Raises:
    ValueError: For an even window or a wrong number of axes.

  Example:
    >>> x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    >>> print(convolve(x, jnp.ones((3, 1, 1, 1)), (2, 1)).ravel())
    [1. 6. 7.]
  """
  window, spatial = kernel.shape[:-2], x.shape[1:-1]
  if not len(window) == len(strides) == len(spatial) or len(window) not in (2, 3):
    raise ValueError(
      f"x {x.shape}, kernel {kernel.shape} and strides {tuple(strides)} must have the "
      "same number of spatial axes, 2 or 3."
    )
  if not all(w % 2 for w in window):
    raise ValueError(f"window={tuple(window)} must be odd.")
  if math.prod(window) == 1:
    x = x[(slice(None), *(slice(None, None, s) for s in strides))]
    flat = jnp.dot(x.reshape(-1, x.shape[-1]), kernel.reshape(kernel.shape[-2:]))
    return flat.reshape(*x.shape[:-1], -1)
  if len(window) == 2:
    return _convolve(x, kernel, strides)
  batch, time, height, width, channels = x.shape
  if window[0] == strides[0] == 1:
    x = x.reshape(batch * time, height, width, channels)
    x = _convolve(x, kernel[0], strides[1:])
    return x.reshape(batch, time, *x.shape[1:])
  if window[1:] == (1, 1) and tuple(strides[1:]) == (1, 1):
    x = x.reshape(batch, time, height * width, channels)
    x = _convolve(x, kernel[:, 0], strides[:2])
    return x.reshape(batch, x.shape[1], height, width, -1)
  if strides[0] != 1:
    return _convolve(x, kernel, strides)
  return lax.platform_dependent(
    x,
    kernel,
    cpu=lambda x, kernel: _frames_as_channels(x, kernel, strides[1:]),
    default=lambda x, kernel: _convolve(x, kernel, strides),
  )


def _frames_as_channels(x, kernel, strides):
  """A 3-D convolution without a temporal stride as a 2-D one; copies the input."""
  span, height, width, _, features = kernel.shape
  batch, time = x.shape[:2]
  padded = jnp.pad(x, ((0, 0), (span // 2, span // 2), (0, 0), (0, 0), (0, 0)))
  frames = [padded[:, i : i + time] for i in range(span)]
  x = jnp.concatenate(frames, axis=-1).reshape(batch * time, *x.shape[2:4], -1)
  kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(height, width, -1, features)
  out = _convolve(x, kernel, strides)
  return out.reshape(batch, time, *out.shape[1:])


def _convolve(x, kernel, strides):
  order = ("NHWC", "HWIO", "NHWC") if x.ndim == 4 else ("NDHWC", "DHWIO", "NDHWC")
  padding = [((w - 1) // 2, (w - 1) // 2) for w in kernel.shape[:-2]]
  return lax.conv_general_dilated(
    x, kernel, tuple(strides), padding, dimension_numbers=order
  )


class Conv(nn.Module):
  """``convolve`` with a kernel and no bias.

  Attributes:
    features: Output channels.
    window: Odd window, one size per spatial axis.
    strides: One per spatial axis.
    dtype: Compute dtype.
  """

  features: int
  window: tuple[int, ...]
  strides: tuple[int, ...]
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (*self.window, x.shape[-1], self.features)
    # Values come from a checkpoint, or are drawn for all kernels at once.
    kernel = self.param("kernel", nn.initializers.zeros, shape)
    return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.strides)


class BatchNorm(nn.Module):
  """Batch norm over all axes but the last, as in PyTorch.

  With batch statistics the running variance records the *unbiased* variance of the
  batch, while the biased one normalises, and only the rows named by ``rows`` count:
  neither padding nor a missing modality has any influence. A batch without such rows
  is normalised with the running statistics and leaves them alone.

  Attributes:
    mode: See ``Mode``.
  """

  mode: Mode = Mode()

  @nn.compact
  def __call__(self, x: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    """Normalises ``x [B, ..., C]``; ``rows`` bool ``[B]``, all when None."""
    shape = x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
    running_var = self.variable("batch_stats", "var", jnp.ones, shape)
    mean, var = running_mean.value, running_var.value
    if self.mode.batch_statistics and not self.is_initializing():
      count, batch_mean, batch_var = moments(x, rows)
      unbiased = batch_var * count / jnp.maximum(count - 1, 1)
      for running, new in ((running_mean, batch_mean), (running_var, unbiased)):
        old = running.value
        moved = old + _MOMENTUM * (lax.stop_gradient(new) - old)
        running.value = jnp.where(count > 0, moved, old)
      mean = jnp.where(count > 0, batch_mean, mean)
      var = jnp.where(count > 0, batch_var, var)
    over = lambda v: v.reshape((1,) * (x.ndim - 1) + shape)
    y = (x.astype(jnp.float32) - over(mean)) * over(scale * lax.rsqrt(var + _EPSILON))
    return (y + over(bias)).astype(self.mode.dtype)


def moments(
  x: jax.Array, rows: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Number of values per channel, their mean and their biased variance, in float32.

  Args:
    x: ``[B, ..., C]``.
    rows: bool ``[B]``, the samples that count; all when None.

  Returns:
    ``count`` scalar, ``mean [C]``, ``variance [C]``; zeros when no row counts.

  Example:
    >>> count, mean, var = moments(jnp.array([[1.0], [3.0], [9.0]]), jnp.arange(3) < 2)
    >>> print(count, mean, var)
    2.0 [2.] [1.]
  """
  x = x.astype(jnp.float32)
  axes = tuple(range(x.ndim - 1))
  if rows is None:
    rows = jnp.ones(x.shape[0], bool)
  keep = rows.reshape(-1, *(1 for _ in x.shape[1:]))
  count = jnp.sum(rows) * float(math.prod(x.shape[1:-1]))
  divisor = jnp.maximum(count, 1)
  mean = jnp.sum(jnp.where(keep, x, 0), axes) / divisor
  # Two passes: E[x^2] - E[x]^2 loses all digits where the mean dominates.
  centred = jnp.where(keep, x - mean.reshape((1,) * len(axes) + (-1,)), 0)
  return count, mean, jnp.sum(centred**2, axes) / divisor


class ConvNorm(nn.Module):
  """Convolution, batch norm and, unless told otherwise, ReLU.

  Attributes:
    features: Output channels.
    window: Odd window, one size per spatial axis.
    strides: One per spatial axis.
    mode: See ``Mode``.
    relu: Whether a ReLU follows.
  """

  features: int
  window: tuple[int, ...]
  strides: tuple[int, ...]
  mode: Mode = Mode()
  relu: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    conv = Conv(self.features, self.window, self.strides, self.mode.dtype, name="conv")
    x = BatchNorm(self.mode, name="bn")(conv(x), rows)
    return nn.relu(x) if self.relu else x


def stem_pool(x: jax.Array) -> jax.Array:
  """Maximum over 3 x 3 pixels with stride 2 and padding 1, frame by frame.

  Args:
    x: ``[B, (T,) H, W, C]``; padding counts as minus infinity.

  Example:
    >>> print(stem_pool(-jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1))[0, :, :, 0])
    [[-1. -2.]
     [-5. -6.]]
  """
  time = (1,) * (x.ndim - 4)
  padding = ((0, 0),) * len(time) + ((1, 1), (1, 1))
  return nn.max_pool(x, (*time, 3, 3), (*time, 2, 2), padding)


def global_pool(x: jax.Array) -> jax.Array:
  """Mean over all axes but the first and the last, in float32: ``[B, C]``."""
  return jnp.mean(x.astype(jnp.float32), axis=tuple(range(1, x.ndim - 1)))
