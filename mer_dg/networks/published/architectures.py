"""SlowFast, SlowOnly and the audio ResNet, each as a trunk and a last stage.

The trunk ends after ``layer3`` (SlowFast: after ``layer3_lateral`` and the
concatenation). Module names repeat those of the published checkpoints:
``slow_layer3/block0/conv1/bn`` is ``slow_path.layer3.0.conv1.bn``.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from mer_dg.networks.published.layers import (
  Conv,
  ConvNorm,
  Mode,
  global_pool,
  stem_pool,
)
from mer_dg.networks.published.residual import BasicStage, BottleneckStage

# SlowFast 8x8: the slow path sees every fourth frame, the fast path has an eighth of
# the channels.
TIME_RATIO = 4
CHANNEL_RATIO = 8

# Which of layer1..layer4 span three frames.
_SLOW_INFLATED = (False, False, True, True)
_FAST_INFLATED = (True, True, True, True)


class SlowFastTrunk(nn.Module):
  """Both paths up to ``layer3`` (Feichtenhofer et al., 2019), laterals included.

  A lateral connection is a 7x1x1 convolution of the fast path with temporal stride
  4, without norm or activation, to twice the channels; it is appended to the slow
  path's channels after the stem's pooling and after every stage of the trunk.

  Attributes:
    depths: Blocks of layer1..layer4.
    width: Channels of the slow stem; the fast one has an eighth.
    mode: See ``Mode``.
  """

  depths: tuple[int, ...]
  width: int
  mode: Mode

  @nn.compact
  def __call__(
    self, x: jax.Array, rows: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    """``[B, T, H, W, 3]``, T a multiple of 4, to ``{"slow": ..., "fast": ...}``."""
    if x.shape[1] % TIME_RATIO:
      raise ValueError(
        f"x {x.shape}: the number of frames must be a multiple of {TIME_RATIO}."
      )
    mode, fast_width = self.mode, self.width // CHANNEL_RATIO
    stem = ConvNorm(self.width, (1, 7, 7), (1, 2, 2), mode, name="slow_conv1")
    slow = stem_pool(stem(x[:, ::TIME_RATIO], rows))
    stem = ConvNorm(fast_width, (5, 7, 7), (1, 2, 2), mode, name="fast_conv1")
    fast = stem_pool(stem(x, rows))
    slow = self._join(slow, fast, "conv1")
    for i in range(3):
      name = f"layer{i + 1}"
      slow = _stage(self, i, self.width, _SLOW_INFLATED, f"slow_{name}")(slow, rows)
      fast = _stage(self, i, fast_width, _FAST_INFLATED, f"fast_{name}")(fast, rows)
      slow = self._join(slow, fast, name)
    return {"slow": slow, "fast": fast}

  def _join(self, slow, fast, after):
    lateral = Conv(
      2 * fast.shape[-1],
      (7, 1, 1),
      (TIME_RATIO, 1, 1),
      self.mode.dtype,
      name=f"slow_{after}_lateral",
    )
    return jnp.concatenate([slow, lateral(fast)], axis=-1)


class SlowFastLayer4(nn.Module):
  """``layer4`` of both paths, pooled: ``[B, fast | slow]`` in this order.

  The published head swaps the names of the two paths twice, which puts the fast
  path's 256 channels first; its classifier fits no other order.

  Attributes:
    depths: Blocks of layer1..layer4.
    width: Channels of the slow stem.
    mode: See ``Mode``.
  """

  depths: tuple[int, ...]
  width: int
  mode: Mode

  @nn.compact
  def __call__(
    self, maps: dict[str, jax.Array], rows: jax.Array | None = None
  ) -> jax.Array:
    fast_width = self.width // CHANNEL_RATIO
    slow = _stage(self, 3, self.width, _SLOW_INFLATED, "slow_layer4")
    fast = _stage(self, 3, fast_width, _FAST_INFLATED, "fast_layer4")
    pooled = (fast(maps["fast"], rows), slow(maps["slow"], rows))
    return jnp.concatenate([global_pool(m) for m in pooled], axis=-1)


class ResNetTrunk(nn.Module):
  """Stem to ``layer3`` of one path.

  Of clips ``[B, T, H, W, C]`` the slow path alone, for any number of channels: maps are
  ``[B, T, H / 16, W / 16, 16 * width]``. Of log-spectrograms ``[B, 257, 1004, 1]`` a
  ResNet of basic blocks.

  Attributes:
    depths: Blocks of layer1..layer4.
    width: Channels of the stem.
    mode: See ``Mode``.
  """

  depths: tuple[int, ...]
  width: int
  mode: Mode

  @nn.compact
  def __call__(self, x: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    time = (1,) * (x.ndim - 4)
    stem = ConvNorm(self.width, (*time, 7, 7), (*time, 2, 2), self.mode, name="conv1")
    x = stem_pool(stem(x, rows))
    for i in range(3):
      x = _path_stage(self, i, x)(x, rows)
    return x


class ResNetLayer4(nn.Module):
  """``layer4`` of one path and its pooling; attributes as of the trunk."""

  depths: tuple[int, ...]
  width: int
  mode: Mode

  @nn.compact
  def __call__(self, maps: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    return global_pool(_path_stage(self, 3, maps)(maps, rows))


def _stage(parent, i, width, inflated, name) -> BottleneckStage:
  """``layer{i + 1}``; called while ``parent`` runs, which makes it a submodule."""
  return BottleneckStage(
    planes=width * 2**i,
    blocks=parent.depths[i],
    stride=1 if i == 0 else 2,
    inflated=inflated[i],
    mode=parent.mode,
    name=name,
  )


def _path_stage(parent, i, x) -> BottleneckStage | BasicStage:
  if x.ndim == 5:
    return _stage(parent, i, parent.width, _SLOW_INFLATED, f"layer{i + 1}")
  return BasicStage(
    planes=parent.width * 2**i,
    blocks=parent.depths[i],
    stride=1 if i == 0 else 2,
    mode=parent.mode,
    name=f"layer{i + 1}",
  )
