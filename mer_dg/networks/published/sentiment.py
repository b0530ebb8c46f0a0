"""Sequence encoder of multimodal sentiment work: a small pre-norm transformer.

One per modality (text, audio, vision), trained from scratch, after Tsai et al.,
Multimodal transformer for unaligned multimodal language sequences, 2019.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from mer_dg.networks.initialization import constant, draw
from mer_dg.networks.published.backbone import COMPUTE_DTYPES, Backbone

WIDTH = 40
LAYERS = 5
HEADS = 8
_EMBEDDING_DROPOUT = 0.25
_DROPOUT = 0.1  # Of attention weights, of the hidden layer, of every residual branch.


class SentimentEncoder(nn.Module):
  """Linear to width 40, positions, five layers, layer norm; the first time step.

  There is no padding mask: padded steps are zeros in the input and take part, as in
  the reference implementation.

  Attributes:
    dtype: Compute dtype.
  """

  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """``[B, T, C]`` to ``[B, 40]``."""
    channels = x.shape[-1]
    # PyTorch's rule for a convolution of one step, uniform within 1 / sqrt(channels).
    rule = constant((3 * channels) ** -0.5)
    project = nn.Dense(
      WIDTH, kernel_init=rule, bias_init=rule, dtype=self.dtype, name="project"
    )
    x = math.sqrt(WIDTH) * project(x.astype(self.dtype))
    x = x + sinusoids(x.shape[1], WIDTH)[None].astype(x.dtype)
    x = nn.Dropout(_EMBEDDING_DROPOUT, deterministic=not train)(x)
    for i in range(LAYERS):
      x = _Layer(self.dtype, name=f"layer{i}")(x, train=train)
    x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x[:, 0])
    return x.astype(jnp.float32)


class _Layer(nn.Module):
  """Self-attention, then two linear layers, each after a norm and with a shortcut."""

  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    drop = lambda y: nn.Dropout(_DROPOUT, deterministic=not train)(y)
    norm = lambda name: nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)
    batch, time, _ = x.shape
    qkv = self._linear(3 * WIDTH, WIDTH, "in_proj")(norm("norm1")(x))
    qkv = qkv.reshape(batch, time, 3, HEADS, WIDTH // HEADS)
    query, key, value = (qkv[:, :, i] for i in range(3))
    y = nn.dot_product_attention(
      query,
      key,
      value,
      broadcast_dropout=False,
      dropout_rng=self.make_rng("dropout") if train else None,
      dropout_rate=_DROPOUT,
      deterministic=not train,
      force_fp32_for_softmax=True,
    )
    y = self._linear(WIDTH, WIDTH, "out_proj")(y.reshape(batch, time, WIDTH))
    x = x + drop(y)
    y = nn.relu(self._linear(4 * WIDTH, WIDTH, "linear1")(norm("norm2")(x)))
    y = self._linear(WIDTH, 4 * WIDTH, "linear2")(drop(y))
    return x + drop(y)

  def _linear(self, features, channels, name):
    # Xavier, uniform; biases zero. `draw` multiplies by uniform noise.
    rule = constant((2 / (channels + features)) ** 0.5)
    return nn.Dense(features, kernel_init=rule, dtype=self.dtype, name=name)


def sinusoids(length: int, width: int) -> jax.Array:
  """Sines, then cosines, of positions 1..length at ``width / 2`` frequencies.

  Frequencies fall geometrically from 1 to 1e-4. That positions start at 1 and that
  both ends are included is a reconstruction: the description says sinusoidal only.

  Args:
    length: Number of positions.
    width: Even, at least 4.

  Returns:
    ``[length, width]``, float32.

  Example:
    >>> print(*(f"{v:.4f}" for v in sinusoids(1, 4)[0]))  # Of 1 and of 1e-4.
    0.8415 0.0001 0.5403 1.0000
  """
  half = width // 2
  frequency = jnp.exp(-math.log(1e4) / (half - 1) * jnp.arange(half))
  angle = jnp.arange(1.0, length + 1)[:, None] * frequency[None, :]
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def make_sentiment_encoder(
  channels: int, *, compute_dtype: str = "float32"
) -> Backbone:
  """The encoder of one modality, as a backbone without a trunk.

  Args:
    channels: Features per time step; read them from the file, they differ by set.
    compute_dtype: ``float32`` or ``bfloat16``.

  Returns:
    A ``Backbone`` for samples ``[T, channels]``; D = 40.

  Raises:
    ValueError: For an unknown dtype or ``channels < 1``.

  Example:
    >>> encoder = make_sentiment_encoder(33)
    >>> variables = jax.eval_shape(encoder.init, jax.random.key(0))
    >>> z, _ = jax.eval_shape(encoder.layer4, variables, jnp.ones((2, 50, 33)))
    >>> z.shape
    (2, 40)
  """
  if channels < 1:
    raise ValueError(f"channels={channels} must be >= 1.")
  if compute_dtype not in COMPUTE_DTYPES:
    raise ValueError(f"compute_dtype={compute_dtype!r} is not one of {COMPUTE_DTYPES}.")
  module = SentimentEncoder(compute_dtype)

  def init(key):
    params = module.init(key, jnp.zeros((1, 1, channels)))["params"]
    return {"layer4": {"params": draw(key, params), "batch_stats": {}}}

  def trunk(variables, x, rows=None, *, train=False):
    del variables, rows, train
    if x.ndim != 3 or x.shape[-1] != channels:
      raise ValueError(f"x {x.shape} must be [B, T, {channels}].")
    return x, {}

  def layer4(variables, maps, rows=None, *, train=False, key=None):
    del rows
    own = {"params": variables["layer4"]["params"]}
    if not train:
      return module.apply(own, maps), {}
    if key is None:
      raise ValueError("key=None with train=True, but the dropout needs one.")
    return module.apply(own, maps, train=True, rngs={"dropout": key}), {}

  return Backbone(
    kind="sentiment_transformer",
    options=dict(
      kind="sentiment_transformer",
      bn_mode="frozen",  # There are none.
      layer4_init="random",
      trainable="layer4",
      dropout=0.0,  # Of the embedding; those inside are fixed.
      compute_dtype=compute_dtype,
    ),
    sample=(None, channels),
    embedding_dim=WIDTH,
    init=init,
    trunk=trunk,
    layer4=layer4,
  )
