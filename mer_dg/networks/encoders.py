"""Encoders: raw material -> embedding, one per kind of modality.

Small on purpose: they are trained from scratch, hundreds of times, on CPUs. There are
no norm layers. Batch statistics would let a padded row matter; LayerNorm, tried on
spoken and written digits and on accelerometers, cost up to 1.6 times the time of a step
and won nothing.

Every encoder ends in a linear layer without a non-linearity or norm. The embedding
then ranges over R^D, where differential entropy means something: after a ReLU part of
it lies on faces of measure zero (entropy -inf), and a norm would tie it to a sphere.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from mer_dg.contracts import KINDS, InputSpec, Registry
from mer_dg.networks import convolution
from mer_dg.networks.initialization import dense

ENCODERS = ("auto", "mlp", "linear", "conv")
# What users add: `PureEncoder` by name.
REGISTERED = Registry("encoder")

# Longest grid side that is flattened; longer sides are halved by strides before.
_GRID = 4
# Longest grid side that is convolved pixel by pixel.
_MAX_SIDE = 32
# Sequences are shortened to about this many steps by strides before pooling.
_STEPS = 8
# Longest sequence that is convolved step by step.
_MAX_STEPS = 256
# Added to variances under a square root, in squared units of a scaled feature; keeps
# the gradient at zero variance finite.
_VARIANCE_FLOOR = 1e-5


class PureEncoder(NamedTuple):
  """An encoder as two pure functions; see `register_encoder`."""

  init: Callable[..., Any]
  apply: Callable[..., jax.Array]
  kinds: tuple[str, ...]


def register_encoder(
  name: str,
  init: Callable[..., Any],
  apply: Callable[..., jax.Array],
  *,
  kinds: Sequence[str] = tuple(KINDS),
  replace: bool = False,
) -> None:
  """Adds an encoder that ``config.network.encoder`` may name.

  Args:
    name: Its name.
    init: ``(key, spec, embedding_dim, hidden_dim) -> params``, a pytree of float32.
    apply: ``(params, x [B, *shape], mask [B, T] or None) -> [B, embedding_dim]``, pure;
      ``x`` is scaled and has no validity channel, ``mask`` tells valid steps of a
      padded sequence.
    kinds: Kinds of modality that it encodes.
    replace: Whether it may replace one that another file registered.

  Raises:
    ValueError: For a name that exists, or an unknown kind.

  Example:
    >>> init = lambda key, spec, d, h: jax.random.normal(key, (spec.channels, d))
    >>> register_encoder("mean_linear", init, lambda w, x, mask: x.mean(axis=1) @ w,
    ...                  kinds=("sequence",), replace=True)
  """
  if unknown := [kind for kind in kinds if kind not in KINDS]:
    raise ValueError(f"kinds {unknown} are not among {tuple(KINDS)}.")
  if name in ENCODERS:
    raise ValueError(f"the encoder {name!r} exists already; choose another name.")
  encoder = PureEncoder(init, apply, tuple(kinds))
  REGISTERED.add(name, encoder, maker=init, replace=replace)


class _Registered(NamedTuple):
  """A `PureEncoder` that looks like a module."""

  encoder: PureEncoder
  spec: InputSpec
  embedding_dim: int
  hidden_dim: int

  def init(self, key, x):
    del x
    own = self.encoder.init(key, self.spec, self.embedding_dim, self.hidden_dim)
    return {"params": own}

  def apply(self, variables, x, mask=None):
    z = self.encoder.apply(variables["params"], x, mask)
    if z.shape != (x.shape[0], self.embedding_dim):
      raise ValueError(
        f"a registered encoder gave {z.shape}, not {(x.shape[0], self.embedding_dim)}."
      )
    return z


def make_encoder(
  name: str,
  spec: InputSpec,
  *,
  embedding_dim: int,
  hidden_dim: int,
  dtype: str = "float32",
) -> Any:
  """The encoder module called ``name`` for inputs like ``spec``.

  Args:
    name: ``auto`` (vector: ``mlp``, all else: ``conv``), ``mlp`` (flatten, one hidden
      layer), ``linear`` (flatten), ``conv``, or one of `register_encoder`.
    spec: Kind and shape of the input.
    embedding_dim: Width D of the embedding.
    hidden_dim: Width of the hidden layer; convolutions have up to half as many
      channels.
    dtype: Compute dtype.

  Returns:
    A module called as ``(x [B, *shape], mask [B, T] or None) -> [B, D]``, where ``x``
    has no validity channel.

  Raises:
    ValueError: For an unknown name, or one that does not encode this kind.

  Example:
    >>> spec = InputSpec("image", (16, 16, 1))
    >>> type(make_encoder("auto", spec, embedding_dim=8, hidden_dim=16)).__name__
    'GridEncoder'
  """
  if name in REGISTERED:
    own: PureEncoder = REGISTERED[name]
    if spec.kind not in own.kinds:
      raise ValueError(f"encoder={name!r} encodes {own.kinds}, got a {spec.kind}.")
    return _Registered(own, spec, embedding_dim, hidden_dim)
  if name not in ENCODERS:
    raise ValueError(f"encoder={name!r} is not one of {(*ENCODERS, *REGISTERED)}.")
  if name == "conv" and spec.kind == "vector":
    raise ValueError("encoder='conv' needs a sequence, image or clip, got a vector.")
  name = resolve(name, spec.kind)
  if name == "linear":
    return Mlp(embedding_dim, hidden_layers=0, hidden_dim=hidden_dim, dtype=dtype)
  if name == "mlp":
    return Mlp(embedding_dim, hidden_layers=1, hidden_dim=hidden_dim, dtype=dtype)
  if spec.kind == "sequence":
    return SequenceEncoder(
      embedding_dim, hidden_dim=hidden_dim, length=spec.shape[0], dtype=dtype
    )
  return GridEncoder(embedding_dim, hidden_dim=hidden_dim, dtype=dtype)


def resolve(name: str, kind: str) -> str:
  """What ``auto`` stands for; other names stand for themselves.

  Example:
    >>> resolve("auto", "vector"), resolve("auto", "image"), resolve("mlp", "image")
    ('mlp', 'conv', 'mlp')
  """
  return ("mlp" if kind == "vector" else "conv") if name == "auto" else name


class Mlp(nn.Module):
  """Flattens the input, then ``hidden_layers`` x (Linear, ReLU), then Linear."""

  embedding_dim: int
  hidden_layers: int
  hidden_dim: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    x = _hide(x, mask)
    x = x.reshape(x.shape[0], -1)
    for _ in range(self.hidden_layers):
      x = nn.relu(dense(self.hidden_dim, gain=2.0, dtype=self.dtype)(x))
    return dense(self.embedding_dim, dtype=self.dtype, name="embedding")(x)


class SequenceEncoder(nn.Module):
  """1-D convolutions of the centred signal, pooled over time; plus raw statistics.

  A sequence of T steps padded to any longer length has the embedding it has at length
  T: padded steps are zeroed after every layer, windows are padded symmetrically, and
  all statistics run over valid steps.

  The convolutions see each channel minus its own mean over time. What stands in that
  mean (a posture, the response of a microphone) is often peculiar to a person or a
  device; a convolution would spread it over all its features. It stays available,
  once, in the raw statistics: mean, deviation and mean absolute step of each channel.
  Without norms in between, features keep the amplitude of the signal.

  Attributes:
    embedding_dim: Width D of the embedding.
    hidden_dim: Width of the hidden layer, and twice the most channels.
    length: Steps that the layout is made for; shorter and longer input is accepted.
    dtype: Compute dtype.
  """

  embedding_dim: int
  hidden_dim: int
  length: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    x = x.astype(self.dtype)
    if mask is None:
      mask = jnp.ones(x.shape[:2], bool)
    x = _hide(x, mask)
    mean, deviation, _ = masked_statistics(x, mask)
    raw = [mean, deviation, mean_absolute_step(x, mask)]
    x = _hide(x - mean[:, None, :], mask)
    patch = patch_length(self.length, _MAX_STEPS)
    x = patchify(x, (patch,))
    mask = mask[:, ::patch]
    length = -(-self.length // patch)
    stages = max(1, math.ceil(math.log2(length / _STEPS)))
    widths = _widths(self.hidden_dim, stages + 1)
    last_stride = 2 if length > _STEPS else 1
    layout = [(5, 1)] + [(3, last_stride)] * stages
    for width, (window, stride) in zip(widths, layout, strict=True):
      x = convolution.Conv(width, (window,), (stride,), dtype=self.dtype)(x)
      mask = mask[:, ::stride]
      x = _hide(nn.relu(x), mask)
    x = jnp.concatenate([*raw, *masked_statistics(x, mask)], axis=-1)
    x = nn.relu(dense(self.hidden_dim, gain=2.0, dtype=self.dtype)(x))
    return dense(self.embedding_dim, dtype=self.dtype, name="embedding")(x)


class GridEncoder(nn.Module):
  """Images and clips: stride-2 stages until no side is longer than 4, then flattened.

  Sides above 32 are first cut into patches, a power of two long, whose pixels become
  channels: the early, large maps are what would cost most. The time axis of a clip
  is reduced to its mean and maximum before flattening.

  Attributes:
    embedding_dim: Width D of the embedding.
    hidden_dim: Width of the hidden layer, and twice the most channels.
    dtype: Compute dtype.
  """

  embedding_dim: int
  hidden_dim: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    del mask  # Only sequences are masked.
    x = x.astype(self.dtype)
    x = patchify(x, tuple(patch_length(n, _MAX_SIDE) for n in x.shape[1:-1]))
    axes = x.ndim - 2
    stages = max(1, math.ceil(math.log2(max(x.shape[1:-1]) / _GRID)))
    for width in _widths(self.hidden_dim, stages):
      strides = tuple(2 if n > _GRID else 1 for n in x.shape[1:-1])
      x = nn.relu(convolution.Conv(width, (3,) * axes, strides, dtype=self.dtype)(x))
    if axes == 3:
      x = jnp.concatenate([jnp.mean(x, axis=1), jnp.max(x, axis=1)], axis=-1)
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(dense(self.hidden_dim, gain=2.0, dtype=self.dtype)(x))
    return dense(self.embedding_dim, dtype=self.dtype, name="embedding")(x)


def patch_length(length: int, most: int) -> int:
  """Smallest power of two that cuts ``length`` into at most ``most`` patches.

  Example:
    >>> [patch_length(n, 256) for n in (2, 256, 257, 8000)]
    [1, 1, 2, 32]
  """
  return 2 ** max(0, math.ceil(math.log2(length / most)))


def patchify(x: jax.Array, patch: tuple[int, ...]) -> jax.Array:
  """Joins ``patch`` neighbours along each spatial axis into channels.

  Args:
    x: ``[B, *spatial, C]``; padded with zeros at the end to multiples of ``patch``.
    patch: Patch length for each spatial axis.

  Returns:
    ``[B, *ceil(spatial / patch), prod(patch) * C]``.

  Example:
    >>> patchify(jnp.arange(6.0).reshape(1, 3, 2), (2,)).tolist()
    [[[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 0.0, 0.0]]]
  """
  if max(patch) == 1:
    return x
  pads = tuple((0, -n % p) for n, p in zip(x.shape[1:-1], patch, strict=True))
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  sides = zip(x.shape[1:-1], patch, strict=True)
  split = (part for n, p in sides for part in (n // p, p))
  axes = len(patch)
  x = x.reshape(x.shape[0], *split, x.shape[-1])
  grid, inner = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
  x = x.transpose(0, *grid, *inner, 2 * axes + 1)
  return x.reshape(*x.shape[: axes + 1], -1)


def masked_statistics(
  x: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Mean, standard deviation and maximum over the valid steps of a sequence.

  Args:
    x: ``[B, T, C]``.
    mask: bool ``[B, T]``.

  Returns:
    Three ``[B, C]``; zeros (deviation: its floor, 0.003) and zero gradient for a row
    without valid steps.

  Example:
    >>> x = jnp.array([[[1.0], [3.0], [9.0]]])
    >>> statistics = masked_statistics(x, jnp.array([[True, True, False]]))
    >>> print(*(f"{s[0, 0]:.3f}" for s in statistics))
    2.000 1.000 3.000
  """
  dtype, x = x.dtype, x.astype(jnp.float32)  # Sums over thousands of steps.
  valid = mask[:, :, None]
  count = jnp.maximum(jnp.sum(valid, axis=1), 1)  # [B, 1]
  mean = jnp.sum(jnp.where(valid, x, 0), axis=1) / count
  centred = jnp.where(valid, x - mean[:, None, :], 0)
  variance = jnp.sum(centred**2, axis=1) / count
  highest = jnp.max(jnp.where(valid, x, jnp.finfo(x.dtype).min), axis=1)
  highest = jnp.where(jnp.any(valid, axis=1), highest, 0)
  deviation = jnp.sqrt(variance + _VARIANCE_FLOOR)
  return mean.astype(dtype), deviation.astype(dtype), highest.astype(dtype)


def mean_absolute_step(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean of ``|x_{t+1} - x_t|`` over the pairs of valid steps, ``[B, C]``.

  Example:
    >>> x = jnp.array([[[1.0], [3.0], [9.0]]])
    >>> mean_absolute_step(x, jnp.array([[True, True, False]])).tolist()
    [[2.0]]
  """
  valid = mask[:, 1:, None]  # Valid steps come first: then so is the one before.
  count = jnp.maximum(jnp.sum(valid, axis=1), 1)
  steps = jnp.abs(x[:, 1:] - x[:, :-1]).astype(jnp.float32)
  return (jnp.sum(jnp.where(valid, steps, 0), axis=1) / count).astype(x.dtype)


def _hide(x: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Zeroes invalid steps; ``where`` and not a product, so that NaN cannot pass."""
  return x if mask is None else jnp.where(mask[:, :, None], x, 0)


def _widths(hidden_dim: int, stages: int) -> list[int]:
  """Channels per stage: half the hidden width at the end, halved going back."""
  most, least = max(1, hidden_dim // 2), max(1, hidden_dim // 8)
  return [max(least, most >> (stages - 1 - i)) for i in range(stages)]
