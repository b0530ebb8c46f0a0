"""Projector and classifier: what stands behind an embedding."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from mer_dg.networks.initialization import dense


class Dropout(nn.Module):
  """``nn.Dropout`` whose rate is an argument, hence may be traced."""

  @nn.compact
  def __call__(self, z: jax.Array, rate: jax.typing.ArrayLike) -> jax.Array:
    kept = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, z.shape)
    return jnp.where(kept, z / (1.0 - jnp.asarray(rate, z.dtype)), 0)


class Projector(nn.Module):
  """(Linear, LayerNorm, ReLU) x 2, Linear: the plain projector of MER-DG.

  The output is not normalised. LayerNorm and not BatchNorm, as in the released code.

  Attributes:
    hidden_dim: Width of the two hidden layers.
    projection_dim: Width P of the output.
    dtype: Compute dtype.
  """

  hidden_dim: int
  projection_dim: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    for _ in range(2):
      z = dense(self.hidden_dim, gain=2.0, dtype=self.dtype)(z)
      z = nn.relu(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(z))
    return dense(self.projection_dim, dtype=self.dtype, name="projection")(z)


class Classifier(nn.Module):
  """Linear, ReLU, Dropout, Linear: the fused classifier ``h``.

  Attributes:
    hidden_dim: Width of the hidden layer.
    num_classes: K.
    dtype: Compute dtype.
  """

  hidden_dim: int
  num_classes: int
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, z: jax.Array, rate: jax.typing.ArrayLike | None = None
  ) -> jax.Array:
    """Logits; ``rate`` is the probability of zeroing a hidden unit, None for none."""
    z = nn.relu(dense(self.hidden_dim, gain=2.0, dtype=self.dtype)(z))
    if rate is not None:
      z = Dropout()(z, rate)
    return dense(self.num_classes, dtype=self.dtype, name="logits")(z)
