"""Fusion: embeddings of M >= 1 modalities -> one vector (or, in DECISIONS, logits).

All fusers share one contract: ``(z, present) -> [B, F]`` with ``z`` a list of
``[B, D_m]`` in the order of the modalities (widths may differ) whose missing rows are
*already zero*, and ``present`` a bool ``[B, M]``. A missing modality must not act
through a bias either, so it is dropped from sums, products, averages and attention;
the output is finite even where no modality is present (padded rows).
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from mer_dg.networks import heads, initialization
from mer_dg.networks.initialization import dense

FUSIONS = (
  "concat",
  "sum",
  "gated",
  "film",
  "lowrank",
  "attention",
  "bottleneck",
  "late",
  "average",
)


def make_fusion(
  name: str,
  *,
  fusion_dim: int,
  classifier_dim: int,
  num_classes: int,
  dtype: str = "float32",
) -> nn.Module | None:
  """The module ``(z, present, rate) -> (logits, fused)`` called ``name``.

  Args:
    name: One of ``FUSIONS``.
    fusion_dim: Common width F; without influence for ``concat``, ``late``
      and ``average``.
    classifier_dim: Hidden width of the classifier behind the fuser.
    num_classes: K.
    dtype: Compute dtype.

  Returns:
    The module; ``None`` for those of `DECISIONS`, which have no parameters.

  Raises:
    ValueError: For an unknown name, or a width that attention heads cannot share.
  """
  if name not in FUSIONS:
    raise ValueError(f"fusion={name!r} is not one of {FUSIONS}.")
  if name in DECISIONS:
    return None
  if name == "concat":
    fuser: nn.Module = Concat()
  elif name == "attention":
    if fusion_dim % Attention.num_heads:
      raise ValueError(
        f"fusion_dim={fusion_dim} must be divisible by the "
        f"{Attention.num_heads} heads of fusion='attention'."
      )
    fuser = Attention(fusion_dim, dtype=dtype)
  else:
    fuser = {
      "sum": Sum,
      "gated": Gated,
      "film": Film,
      "lowrank": LowRank,
      "bottleneck": Bottleneck,
    }[name](fusion_dim, dtype=dtype)
  classifier = heads.Classifier(classifier_dim, num_classes, dtype=dtype)
  return FusedClassifier(fuser, classifier)


class FusedClassifier(nn.Module):
  """A fuser followed by the classifier ``h``."""

  fuser: nn.Module
  classifier: nn.Module

  def __call__(
    self,
    z: list[jax.Array],
    present: jax.Array,
    rate: jax.typing.ArrayLike | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    fused = self.fuser(z, present)
    return self.classifier(fused, rate), fused


class Concat(nn.Module):
  """``[z_1; ...; z_M]``, zeros where missing; no parameters."""

  @nn.compact
  def __call__(self, z: list[jax.Array], present: jax.Array) -> jax.Array:
    del present
    return jnp.concatenate(z, axis=-1)


class Sum(nn.Module):
  """Sum over the present modalities of a linear map of each."""

  features: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, z: list[jax.Array], present: jax.Array) -> jax.Array:
    return jnp.sum(_tokens(z, present, self.features, self.dtype), axis=1)


class Gated(nn.Module):
  """Gated multimodal units: sum of ``sigmoid(V_m [z_1; ..; z_M]) * tanh(W_m z_m)``.

  References:
    Arevalo et al., Gated Multimodal Units for Information Fusion, 2017, eq. for more
    than two modalities (gates are not normalised over modalities).
  """

  features: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, z: list[jax.Array], present: jax.Array) -> jax.Array:
    hidden = jnp.tanh(_tokens(z, present, self.features, self.dtype))
    gates = dense(len(z) * self.features, dtype=self.dtype, name="gates")(
      jnp.concatenate(z, axis=-1)
    )
    return jnp.sum(nn.sigmoid(gates).reshape(hidden.shape) * hidden, axis=1)


class Film(nn.Module):
  """Each modality is modulated by the others; the modulated ones are summed.

  ``(1 + gamma_m) * W_m z_m + beta_m`` with ``gamma_m, beta_m`` linear in the *other*
  modalities. The published layer has one conditioning and one conditioned input; this
  symmetric form for any M is ours. With M = 1 it is a linear map.

  References:
    Perez et al., FiLM: Visual Reasoning with a General Conditioning Layer, 2018, eq. 2.
  """

  features: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, z: list[jax.Array], present: jax.Array) -> jax.Array:
    tokens = _tokens(z, present, self.features, self.dtype)
    if len(z) == 1:
      return tokens[:, 0]
    fused = []
    for i in range(len(z)):
      others = jnp.concatenate(z[:i] + z[i + 1 :], axis=-1)
      modulation = dense(2 * self.features, dtype=self.dtype, name=f"modulate_{i}")
      gamma, beta = jnp.split(modulation(others), 2, axis=-1)
      modulated = (1 + gamma) * tokens[:, i] + beta
      fused.append(jnp.where(present[:, i : i + 1], modulated, 0))
    return jnp.sum(jnp.stack(fused, axis=1), axis=1)


class LowRank(nn.Module):
  """Low-rank outer product of ``[z_m; 1]``: ``sum_r w_r prod_m (W_m^r z_m + b_m^r)``.

  ``b_m^r`` starts at 1, so the product starts as 1 + first-order terms + interactions,
  well scaled for any M; a missing modality is the factor 1.

  References:
    Liu et al., Efficient Low-rank Multimodal Fusion with Modality-Specific Factors,
    2018, eq. 7.
  """

  features: int
  rank: int = 4
  dtype: str = "float32"

  @nn.compact
  def __call__(self, z: list[jax.Array], present: jax.Array) -> jax.Array:
    factors = []
    for i, z_m in enumerate(z):
      factor = dense(
        self.rank * self.features,
        bias=1.0,
        dtype=self.dtype,
        name=f"factor_{i}",
      )(z_m)
      factors.append(jnp.where(present[:, i : i + 1], factor, 1))
    product = jnp.prod(jnp.stack(factors), axis=0)
    product = product.reshape(-1, self.rank, self.features)
    weights = self.param(
      "rank_weights", nn.initializers.constant(self.rank**-0.5), (self.rank,)
    )
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    fused = jnp.einsum("brf,r->bf", product, weights.astype(self.dtype))
    return fused + bias.astype(self.dtype)[None, :]


class Attention(nn.Module):
  """One pre-norm transformer block over the modalities as tokens, then their mean."""

  features: int
  num_heads: int = 4
  dtype: str = "float32"

  @nn.compact
  def __call__(self, z: list[jax.Array], present: jax.Array) -> jax.Array:
    x = _tokens(z, present, self.features, self.dtype)  # [B, M, F]
    batch, modalities, _ = x.shape
    y = nn.LayerNorm(dtype=self.dtype)(x)
    qkv = dense(3 * self.features, dtype=self.dtype, name="qkv")(y)
    qkv = qkv.reshape(batch, modalities, 3, self.num_heads, -1)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [B, M, heads, F / heads]
    y = nn.dot_product_attention(q, k, v, mask=present[:, None, None, :])
    y = y.reshape(x.shape)
    x = x + dense(self.features, dtype=self.dtype, name="attended")(y)
    y = nn.LayerNorm(dtype=self.dtype)(x)
    y = nn.relu(dense(2 * self.features, gain=2.0, dtype=self.dtype, name="widen")(y))
    x = x + dense(self.features, dtype=self.dtype, name="narrow")(y)
    return _mean_present(nn.LayerNorm(dtype=self.dtype)(x), present)


class Bottleneck(nn.Module):
  """Modalities talk through a few bottleneck tokens; methods.md 5.6.

  The bottleneck tokens attend to the modality tokens, then each of those attends to
  them: ``x_m + s_m attention(x_m, bottleneck)``, layer-normed, and averaged over the
  present modalities. Single-head attention without projections and without the
  ``1 / sqrt(d)`` scale; ``s_m`` starts at zero, i.e. without exchange, and the tokens
  start small, i.e. attending to all modalities alike.

  References:
    Nagrani et al., Attention Bottlenecks for Multimodal Fusion, 2021 (idea); the
    block is the small one used by released domain-generalisation code.
  """

  features: int
  num_tokens: int = 4
  dtype: str = "float32"

  @nn.compact
  def __call__(self, z: list[jax.Array], present: jax.Array) -> jax.Array:
    x = _tokens(z, present, self.features, self.dtype)  # [B, M, F]
    latents = self.param(
      "tokens", initialization.constant(0.02), (self.num_tokens, self.features)
    ).astype(self.dtype)
    scale = self.param("scale", nn.initializers.zeros, (len(z),)).astype(self.dtype)
    scores = jnp.einsum("tf,bmf->btm", latents, x)
    # Not -inf: a row in which nothing is kept has to stay finite.
    lowest = jnp.finfo(scores.dtype).min
    weights = nn.softmax(jnp.where(present[:, None, :], scores, lowest), axis=-1)
    bottleneck = jnp.einsum("btm,bmf->btf", weights, x)
    weights = nn.softmax(jnp.einsum("bmf,btf->bmt", x, bottleneck), axis=-1)
    x = x + scale[None, :, None] * jnp.einsum("bmt,btf->bmf", weights, bottleneck)
    return _mean_present(nn.LayerNorm(dtype=self.dtype)(x), present)


def late_logits(logits: list[jax.Array], present: jax.Array) -> jax.Array:
  """Decision fusion: mean log-probability over the present modalities.

  Args:
    logits: M unimodal logits ``[B, K]``.
    present: bool ``[B, M]``.

  Returns:
    ``[B, K]``; their softmax is the normalised geometric mean of the unimodal
    probabilities. Zeros where no modality is present.

  Example:
    >>> logits = [jnp.log(jnp.array([[0.9, 0.1]])), jnp.log(jnp.array([[0.1, 0.9]]))]
    >>> print(jax.nn.softmax(late_logits(logits, jnp.array([[True, True]]))))
    [[0.5 0.5]]
  """
  log_p = nn.log_softmax(jnp.stack(logits, axis=1), axis=-1)  # [B, M, K]
  return _mean_present(log_p, present)


def average_logits(logits: list[jax.Array], present: jax.Array) -> jax.Array:
  """Decision fusion: log of the mean probability over the present modalities.

  One modality that is sure of a class cannot be overruled to zero by another, as it is
  in `late_logits`: a vote, and not a product of experts.

  Args:
    logits: M unimodal logits ``[B, K]``.
    present: bool ``[B, M]``.

  Returns:
    ``[B, K]``; their softmax is the mean of the unimodal probabilities. Zeros where no
    modality is present.

  Example:
    >>> logits = [jnp.log(jnp.array([[0.9, 0.1]])), jnp.log(jnp.array([[0.5, 0.5]]))]
    >>> print(jax.nn.softmax(average_logits(logits, jnp.array([[True, True]]))))
    [[0.7 0.3]]
  """
  log_p = nn.log_softmax(jnp.stack(logits, axis=1), axis=-1)  # [B, M, K]
  # Not -inf: where nothing is present the gradient has to stay finite.
  log_p = jnp.where(present[:, :, None], log_p, jnp.finfo(log_p.dtype).min)
  count = jnp.sum(present, axis=1)[:, None]
  mean = nn.logsumexp(log_p, axis=1) - jnp.log(jnp.maximum(count, 1))
  return jnp.where(count > 0, mean, 0)


# Fusions of decisions: ``(logits, present) -> logits``, no parameters.
DECISIONS = {"late": late_logits, "average": average_logits}


def _tokens(
  z: list[jax.Array], present: jax.Array, features: int, dtype: str
) -> jax.Array:
  """Linear map of each modality to a common width, ``[B, M, F]``; zero if missing."""
  tokens = [
    dense(features, dtype=dtype, name=f"input_{i}")(z_m) for i, z_m in enumerate(z)
  ]
  return jnp.where(present[:, :, None], jnp.stack(tokens, axis=1), 0)


def _mean_present(x: jax.Array, present: jax.Array) -> jax.Array:
  """Mean of ``x [B, M, F]`` over the present modalities; zero if there is none."""
  count = jnp.maximum(jnp.sum(present, axis=1), 1)
  total = jnp.sum(jnp.where(present[:, :, None], x, 0), axis=1)
  return total / count[:, None].astype(x.dtype)
