"""Residual blocks and stages of the published networks."""

from flax import linen as nn
import jax

from mer_dg.networks.published.layers import ConvNorm, Mode


class Bottleneck(nn.Module):
  """1x1x1 or 3x1x1, 1x3x3 with the stride, 1x1x1 to four times the channels.

  Attributes:
    planes: Channels inside; the output has ``4 * planes``.
    stride: Spatial stride, on the second convolution.
    inflated: Whether the first convolution spans three frames.
    project: Whether the shortcut is a strided 1x1x1 convolution and not the identity.
    mode: See ``Mode``.
  """

  planes: int
  stride: int
  inflated: bool
  project: bool
  mode: Mode

  @nn.compact
  def __call__(self, x: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    mode, strides = self.mode, (1, self.stride, self.stride)
    first = (3 if self.inflated else 1, 1, 1)
    y = ConvNorm(self.planes, first, (1, 1, 1), mode, name="conv1")(x, rows)
    y = ConvNorm(self.planes, (1, 3, 3), strides, mode, name="conv2")(y, rows)
    y = ConvNorm(4 * self.planes, (1, 1, 1), (1, 1, 1), mode, relu=False, name="conv3")(
      y, rows
    )
    if self.project:
      x = ConvNorm(
        4 * self.planes, (1, 1, 1), strides, mode, relu=False, name="downsample"
      )(x, rows)
    return nn.relu(x + y)


class BasicBlock(nn.Module):
  """3x3 with the stride, 3x3; two spatial axes.

  Attributes:
    planes: Output channels.
    stride: Spatial stride, on the first convolution.
    project: Whether the shortcut is a strided 1x1 convolution and not the identity.
    mode: See ``Mode``.
  """

  planes: int
  stride: int
  project: bool
  mode: Mode

  @nn.compact
  def __call__(self, x: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    mode, strides = self.mode, (self.stride, self.stride)
    y = ConvNorm(self.planes, (3, 3), strides, mode, name="conv1")(x, rows)
    y = ConvNorm(self.planes, (3, 3), (1, 1), mode, relu=False, name="conv2")(y, rows)
    if self.project:
      x = ConvNorm(self.planes, (1, 1), strides, mode, relu=False, name="downsample")(
        x, rows
      )
    return nn.relu(x + y)


class BottleneckStage(nn.Module):
  """``blocks`` bottlenecks; the first one strides and projects.

  Attributes:
    planes: Channels inside the blocks.
    blocks: Number of blocks.
    stride: Spatial stride of the stage.
    inflated: Whether its blocks span three frames.
    mode: See ``Mode``.
  """

  planes: int
  blocks: int
  stride: int
  inflated: bool
  mode: Mode

  @nn.compact
  def __call__(self, x: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    block = nn.remat(Bottleneck) if self.mode.remat else Bottleneck
    for i in range(self.blocks):
      x = block(
        planes=self.planes,
        stride=self.stride if i == 0 else 1,
        inflated=self.inflated,
        project=i == 0,
        mode=self.mode,
        name=f"block{i}",
      )(x, rows)
    return x


class BasicStage(nn.Module):
  """``blocks`` basic blocks; the first one strides, and projects if shapes change.

  Attributes:
    planes: Output channels.
    blocks: Number of blocks.
    stride: Spatial stride of the stage.
    mode: See ``Mode``.
  """

  planes: int
  blocks: int
  stride: int
  mode: Mode

  @nn.compact
  def __call__(self, x: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    block = nn.remat(BasicBlock) if self.mode.remat else BasicBlock
    for i in range(self.blocks):
      stride = self.stride if i == 0 else 1
      x = block(
        planes=self.planes,
        stride=stride,
        project=stride != 1 or x.shape[-1] != self.planes,
        mode=self.mode,
        name=f"block{i}",
      )(x, rows)
    return x
