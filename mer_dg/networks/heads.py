"""Projector and classifier: what stands behind an embedding."""

from flax import linen as nn
import jax

from mer_dg.networks.initialization import dense

_he_uniform = nn.initializers.he_normal()


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
    dropout: Probability of zeroing a hidden unit in training.
    dtype: Compute dtype.
  """

  hidden_dim: int
  num_classes: int
  dropout: float
  dtype: str = "float32"

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
    z = nn.relu(dense(self.hidden_dim, gain=2.0, dtype=self.dtype)(z))
    z = nn.Dropout(self.dropout, deterministic=not train)(z)
    return dense(self.num_classes, dtype=self.dtype, name="logits")(z)
