"""The terms a method may be made of, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mer_dg import entropy
from mer_dg.losses import cross_entropy, masked_mean
from mer_dg.methods.term import Context, Numeric, Task, Term, TermSpec, stateless

# Where the entropy is taken: methods.md and both papers disagree, so it is a word.
_FEATURES = ("embedding", "projector")
# What is done to the rows first. "unit": to the unit sphere. "standardize": per
# dimension over the batch, so that scale cannot buy entropy.
_NORMALIZE = ("none", "unit", "standardize")


def _fused(task: Task, options: Mapping[str, Any]) -> Term:
  """Softmax cross-entropy of the fused logits."""
  del task, options

  def loss(outputs, batch, context: Context):
    del context
    correct = jnp.argmax(outputs.logits, axis=-1) == batch["label"]
    return cross_entropy(outputs.logits, batch["label"], where=batch["mask"]), {
      "train/accuracy": masked_mean(correct, batch["mask"])
    }

  return stateless(loss)


def _unimodal(task: Task, options: Mapping[str, Any]) -> Term:
  """Sum over modalities of the cross-entropy of the unimodal heads."""
  del options

  def loss(outputs, batch, context: Context):
    del context
    parts = {
      m: cross_entropy(
        outputs.unimodal_logits[m], batch["label"], where=batch["present"][m]
      )
      for m in task.modalities
    }
    return sum(parts.values()), {f"unimodal/{m}": v for m, v in parts.items()}

  return stateless(loss)


def _mer(task: Task, options: Mapping[str, Any]) -> Term:
  """MER-DG: negative entropy of each modality's features (Sec. 2 of the paper)."""
  estimator, scope = options["estimator"], options["scope"]

  def regularizer(features, where, hyper):
    weights = {m: hyper[f"weight_{m}"] for m in task.modalities}
    if estimator == "kde":
      extra = {"bandwidth": hyper["bandwidth"]}
    else:
      extra = {k: hyper[k] for k in ("marginal_weight", "spectral_weight")}
    return entropy.entropy_regularizer(
      features, estimator=estimator, weights=weights, where=where, **extra
    )

  def loss(outputs, batch, context: Context):
    hyper, present = context.hyper, batch["present"]
    source = outputs.embeddings
    if options["apply_to"] == "projector":
      source = outputs.projections
    features = {
      m: _normalize(source[m].astype(jnp.float32), present[m], options["normalize"])
      for m in task.modalities
    }
    if scope == "batch":
      value, nats = regularizer(features, present, hyper)
    else:
      value, nats = _per_domain(
        lambda where: regularizer(features, where, hyper), batch, task.num_domains
      )
    progress = (context.step + 1) / task.total_steps
    ramp = (progress - hyper["start"]) / jnp.maximum(hyper["ramp"], 1e-6)
    value = value * jnp.clip(ramp, 0.0, 1.0)
    return value, {f"entropy/{m}": h for m, h in nats.items()}

  return stateless(loss)


def _normalize(z: jax.Array, where: jax.Array, how: str) -> jax.Array:
  """Rows on the unit sphere, or columns at zero mean and unit variance."""
  if how == "none":
    return z
  if how == "unit":
    square = jnp.sum(z * z, axis=-1, keepdims=True)
    # The bound keeps the gradient at an all-zero row at 0 instead of nan.
    return z * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
  w = where.astype(z.dtype)[:, None]
  n = jnp.maximum(jnp.sum(w), 1.0)
  mean = jnp.sum(z * w, axis=0, keepdims=True) / n
  variance = jnp.sum(w * (z - mean) ** 2, axis=0, keepdims=True) / n
  return (z - mean) * jax.lax.rsqrt(variance + 1e-6)


def _per_domain(regularizer, batch, num_domains: int):
  """Mean of the regulariser over the source domains with at least two rows."""
  member = batch["domain"][None, :] == jnp.arange(num_domains)[:, None]
  where = {m: member & p[None, :] for m, p in batch["present"].items()}
  values, nats = jax.vmap(regularizer)(where)
  # A domain counts where at least one modality of it has two rows.
  rows = jnp.stack([jnp.sum(w, axis=-1) for w in where.values()])
  enough = jnp.max(rows, axis=0) >= 2
  mean = lambda v: masked_mean(v, enough)
  return mean(values), jax.tree.map(mean, nats)


# Weights and widths below this range are noise; above it they are a typo.
_WEIGHT = Numeric(1.0, 0.0, 1e4)

TERMS: dict[str, TermSpec] = {
  "fused": TermSpec(_fused, {"weight": _WEIGHT}, {}),
  "unimodal": TermSpec(_unimodal, {"weight": Numeric(0.5, 0.0, 1e4)}, {}),
  "mer": TermSpec(
    _mer,
    {
      "weight": Numeric(0.1, 0.0, 1e4),
      # Kernel width in the units of the (normalised) features; "kde" only.
      "bandwidth": Numeric(1.0, 1e-6, 1e6),
      # The two parts of the released loss; "logdet" only.
      "marginal_weight": _WEIGHT,
      "spectral_weight": _WEIGHT,
      # Share of training before the term starts, and over which it then ramps up.
      "start": Numeric(0.0, 0.0, 1.0),
      "ramp": Numeric(0.0, 0.0, 1.0),
    },
    {
      "estimator": ("kde", "logdet"),
      "apply_to": _FEATURES,
      "normalize": _NORMALIZE,
      "scope": ("batch", "per_domain"),
    },
  ),
}

# Terms whose weight can be scaled per modality, by a numeric `weight_<modality>`.
PER_MODALITY_WEIGHT = ("mer",)
