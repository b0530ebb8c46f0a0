"""MER-DG: minus the entropy of each encoder's features (arXiv 2605.01967, ICML 2026).

``mer_kde``, our estimator of choice: kernel density entropy of projections on the unit
sphere, where it has a maximum; under a fixed kernel that of an unbounded layer has
none. ``mer_logdet``: the released form, a variance floor and a log-determinant of raw
projections, at the released weight 3. The paper's text takes encoder outputs, its code
projections; ``apply_to`` has both.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mer_dg import entropy
from mer_dg.losses import masked_mean
from mer_dg.methods.term import SHARE, WEIGHT, Number, Spec, Term

# Numbers that one estimator has and the others have not. The kernel width is in units
# of the (normalised) features; the two weights are the parts of the released loss.
_NUMBERS = {
  "kde": {"bandwidth": Number(1.0, 1e-6, 1e6, search=(0.1, 2.0))},
  "logdet": {"marginal_weight": WEIGHT, "spectral_weight": WEIGHT},
}


def make(task, options):
  estimator, domains = options["estimator"], task.num_domains

  def one_modality(z, where, hyper):
    """Loss and nats over the rows in ``where``."""
    value, nats = entropy.entropy_regularizer(
      {"z": z}, estimator=estimator, normalize="none", where={"z": where},
      **{k: hyper[k] for k in _NUMBERS[estimator]},
    )  # fmt: skip
    return value, nats["z"]

  def loss(outputs, batch, ctx):
    projector = options["apply_to"] == "projector"
    source = outputs.projections if projector else outputs.embeddings
    total, aux = jnp.float32(0.0), {}
    for m in task.modalities:
      where = batch["present"][m]
      z = _normalize(source[m].astype(jnp.float32), where, options["normalize"])
      if options["scope"] == "batch":
        value, nats = one_modality(z, where, ctx.hyper)
      else:
        value, nats = _per_domain(
          lambda rows, z=z: one_modality(z, rows, ctx.hyper),
          batch["domain"], where, domains,
        )  # fmt: skip
      total += ctx.hyper[f"weight_{m}"] * value
      aux[f"entropy/{m}"] = nats
    # In steps, and a ramp of at least one: a share would round to either side of 0.
    since = ctx.step + 1 - ctx.hyper["start"] * task.total_steps
    ramp = since / jnp.maximum(ctx.hyper["ramp"] * task.total_steps, 1.0)
    return total * jnp.clip(ramp, 0.0, 1.0), aux

  return Term(loss)


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


SPEC = Spec(
  "mer",
  make,
  lambda options: {
    "weight": Number(0.1, 0.0, 1e4, search=(0.01, 3.0)),
    **_NUMBERS[options["estimator"]],
    # Share of training before the term starts, and over which it then ramps up.
    "start": SHARE,
    "ramp": SHARE,
  },
  options={
    "estimator": tuple(_NUMBERS),
    "apply_to": ("embedding", "projector"),
    # "unit": to the sphere. "standardize": per dimension over the batch, so that scale
    # cannot buy entropy.
    "normalize": ("none", "unit", "standardize"),
    # per_domain: the mean over source domains; pooled rows reward their distance, too.
    "scope": ("batch", "per_domain"),
  },
  recipes={
    "mer_kde": {
      "mer": dict(
        estimator="kde", apply_to="projector", normalize="unit", bandwidth=0.3
      )
    },
    "mer_logdet": {
      "mer": dict(
        estimator="logdet", apply_to="projector", normalize="none", weight=3.0
      )
    },
  },
  per_modality_weight=True,
)
