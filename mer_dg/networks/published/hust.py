"""The 1-D CNN of the HUST motor experiments, which is trained from scratch."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from mer_dg.networks.convolution import convolve
from mer_dg.networks.initialization import constant, draw
from mer_dg.networks.published.backbone import COMPUTE_DTYPES, Backbone
from mer_dg.networks.published.layers import BatchNorm, Mode

# Channels and window of the four convolutions.
_LAYERS = ((8, 32), (16, 8), (32, 3), (32, 3))
_BINS = 4
# Samples that the four convolutions and three poolings take away, plus one per bin.
_SHORTEST = sum(window - 1 for _, window in _LAYERS) + 3 + _BINS


class HustCnn(nn.Module):
  """Four times convolution, batch norm, ReLU and pooling, without padding.

  The maximum over neighbours after each of the first three, over four parts of what
  is left after the last. Convolutions have a bias.

  Attributes:
    mode: See ``Mode``.
  """

  mode: Mode = Mode()

  @nn.compact
  def __call__(self, x: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    """``[B, T, 1]`` to ``[B, 128]``, channels before parts as in PyTorch."""
    for i, (features, window) in enumerate(_LAYERS):
      x = _Conv(features, window, self.mode.dtype, name=f"layer{i + 1}_conv")(x)
      x = nn.relu(BatchNorm(self.mode, name=f"layer{i + 1}_bn")(x, rows))
      if i < len(_LAYERS) - 1:
        x = jnp.maximum(x[:, :-1], x[:, 1:])
    x = adaptive_max_pool(x, _BINS)
    return x.transpose(0, 2, 1).reshape(x.shape[0], -1).astype(jnp.float32)


class _Conv(nn.Module):
  """A convolution with a bias and no padding."""

  features: int
  window: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    # PyTorch's rule, uniform within 1 / sqrt(fan-in) for both.
    fan_in = self.window * x.shape[-1]
    rule = constant((3 * fan_in) ** -0.5)
    kernel = self.param("kernel", rule, (self.window, x.shape[-1], self.features))
    bias = self.param("bias", rule, (self.features,)).astype(self.dtype)
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    return convolve(x, kernel, strides=(1,), padding=(0,)) + bias[None, None, :]


def adaptive_max_pool(x: jax.Array, bins: int) -> jax.Array:
  """Maximum over ``bins`` parts of the time axis, from floor to ceiling as in PyTorch.

  Args:
    x: ``[B, T, C]``, ``T >= bins``. Part i goes from ``floor(i T / bins)`` to before
      ``ceil((i + 1) T / bins)``: neighbours share a step if ``bins`` does not divide T.
    bins: Number of parts.

  Returns:
    ``[B, bins, C]``.

  Example:
    >>> x = jnp.array([3.0, 1.0, 4.0, 1.0, 5.0]).reshape(1, 5, 1)
    >>> print(adaptive_max_pool(x, 2).ravel())
    [4. 5.]
  """
  length = x.shape[1]
  parts = [
    jnp.max(x[:, i * length // bins : -(-(i + 1) * length // bins)], axis=1)
    for i in range(bins)
  ]
  return jnp.stack(parts, axis=1)


def make_hust_cnn(*, compute_dtype: str = "float32") -> Backbone:
  """The encoder of one modality of the HUST motor set, as a backbone without a trunk.

  Its one part, ``layer4``, is all of it, and its batch norms use batch statistics in
  training: there is nothing pretrained to freeze.

  Args:
    compute_dtype: ``float32`` or ``bfloat16``.

  Returns:
    A ``Backbone`` for samples ``[T, 1]``, ``T >= 49``, published with 1024; D = 128.

  Raises:
    ValueError: For an unknown dtype.

  Example:
    >>> cnn = make_hust_cnn()
    >>> variables = jax.eval_shape(cnn.init, jax.random.key(0))
    >>> z, _ = jax.eval_shape(cnn.layer4, variables, jnp.ones((2, 1024, 1)))
    >>> z.shape
    (2, 128)
  """
  if compute_dtype not in COMPUTE_DTYPES:
    raise ValueError(f"compute_dtype={compute_dtype!r} is not one of {COMPUTE_DTYPES}.")

  def init(key):
    variables = HustCnn().init(key, jnp.zeros((1, _SHORTEST, 1)))
    return {"layer4": {**variables, "params": draw(key, variables["params"])}}

  def trunk(variables, x, rows=None, *, train=False):
    del variables, rows, train
    if x.ndim != 3 or x.shape[-1] != 1 or x.shape[1] < _SHORTEST:
      raise ValueError(f"x {x.shape} must be [B, T >= {_SHORTEST}, 1] for hust_cnn.")
    return x, {}

  def layer4(variables, maps, rows=None, *, train=False, key=None):
    del key
    module = HustCnn(Mode(compute_dtype, batch_statistics=train))
    own = variables["layer4"]
    z, changed = module.apply(own, maps, rows, mutable=["batch_stats"])
    return z, changed["batch_stats"]

  return Backbone(
    kind="hust_cnn",
    options=dict(
      kind="hust_cnn",
      bn_mode="layer4",
      layer4_init="random",
      trainable="layer4",
      dropout=0.0,
      compute_dtype=compute_dtype,
    ),
    sample=(None, 1),
    embedding_dim=_LAYERS[-1][0] * _BINS,
    init=init,
    trunk=trunk,
    layer4=layer4,
  )
