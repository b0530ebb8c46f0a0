"""The terms a method may be made of, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mer_dg import entropy
from mer_dg.losses import cross_entropy, masked_mean
from mer_dg.methods.mm import MM
from mer_dg.methods.term import Context, Numeric, Task, Term, TermSpec, stateless

# Where the entropy is taken: methods.md and both papers disagree, so it is a word.
_FEATURES = ("embedding", "projector")
# What is done to the rows first. "unit": to the unit sphere. "standardize": per
# dimension over the batch, so that scale cannot buy entropy.
_NORMALIZE = ("none", "unit", "standardize")
# Numbers that one estimator has and the others have not. The kernel width is in units
# of the (normalised) features; the two weights are the parts of the released loss.
_ESTIMATOR_NUMBERS = {
  "kde": ("bandwidth",),
  "logdet": ("marginal_weight", "spectral_weight"),
}


def _fused(task: Task, options: Mapping[str, Any]) -> Term:
  """Softmax cross-entropy of the fused logits."""
  del task, options

  def loss(outputs, batch, context: Context):
    del context
    correct = jnp.argmax(outputs.logits, axis=-1) == batch["label"]
    return cross_entropy(outputs.logits, batch["label"], where=batch["mask"]), {
      "accuracy": masked_mean(correct, batch["mask"])
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
  """MER-DG: negative entropy of each modality's features (arXiv 2605.01967)."""
  estimator = options["estimator"]

  def regularizer(z, where, hyper):
    """Loss and nats of one modality over the rows in ``where``."""
    extra = {k: hyper[k] for k in _ESTIMATOR_NUMBERS[estimator]}
    value, nats = entropy.entropy_regularizer(
      {"z": z}, estimator=estimator, where={"z": where}, **extra
    )
    return value, nats["z"]

  def loss(outputs, batch, context: Context):
    hyper, value, logged = context.hyper, jnp.float32(0.0), {}
    projector = options["apply_to"] == "projector"
    source = outputs.projections if projector else outputs.embeddings
    for m in task.modalities:
      where = batch["present"][m]
      z = _normalize(source[m].astype(jnp.float32), where, options["normalize"])
      if options["scope"] == "batch":
        one, nats = regularizer(z, where, hyper)
      else:
        one, nats = _per_domain(
          lambda rows, z=z: regularizer(z, rows, hyper),
          batch["domain"],
          where,
          task.num_domains,
        )
      value += hyper[f"weight_{m}"] * one
      logged[f"entropy/{m}"] = nats
    # In steps, and a ramp of at least one: a share would round to either side of 0.
    since = context.step + 1 - hyper["start"] * task.total_steps
    ramp = since / jnp.maximum(hyper["ramp"] * task.total_steps, 1.0)
    return value * jnp.clip(ramp, 0.0, 1.0), logged

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


def _per_domain(regularizer, domain, where, num_domains: int):
  """Mean of ``where -> values`` over the source domains with at least two rows."""
  member = domain[None, :] == jnp.arange(num_domains)[:, None]
  rows = member & where[None, :]  # [S, B]
  enough = jnp.sum(rows, axis=-1) >= 2
  return jax.tree.map(lambda v: masked_mean(v, enough), jax.vmap(regularizer)(rows))


# Weights and widths below this range are noise; above it they are a typo.
_WEIGHT = Numeric(1.0, 0.0, 1e4)

TERMS: dict[str, TermSpec] = {
  "fused": TermSpec(_fused, {"weight": _WEIGHT}, {}),
  "unimodal": TermSpec(_unimodal, {"weight": Numeric(0.5, 0.0, 1e4)}, {}),
  "mer": TermSpec(
    _mer,
    {
      "weight": Numeric(0.1, 0.0, 1e4),
      "bandwidth": Numeric(1.0, 1e-6, 1e6),
      "marginal_weight": _WEIGHT,
      "spectral_weight": _WEIGHT,
      # Share of training before the term starts, and over which it then ramps up.
      "start": Numeric(0.0, 0.0, 1.0),
      "ramp": Numeric(0.0, 0.0, 1.0),
    },
    {
      "estimator": tuple(_ESTIMATOR_NUMBERS),
      "apply_to": _FEATURES,
      "normalize": _NORMALIZE,
      "scope": ("batch", "per_domain"),
    },
    only={
      number: ("estimator", (estimator,))
      for estimator, numbers in _ESTIMATOR_NUMBERS.items()
      for number in numbers
    },
    per_modality_weight=True,
  ),
  "mm": MM,
}
