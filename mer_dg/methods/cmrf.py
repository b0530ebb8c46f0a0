"""CMRF (Fan et al., NeurIPS 2024), `cmrf`: flat minima shared between modalities.

``2 sum_m CE_m + 3 SupCon + 3 sum_(a,b) (|t^a - r^a| + |t^b - r^b|)`` beside the fused
loss: unit projections r are pulled to mixes ``t = l rbar^a + (1 - l) rbar^b`` of those
of a teacher, the uniform mean of the weights since a tenth of training, that starts to
teach there and is evaluated. ``l ~ Beta(0.1, 0.1)`` per row, the half above 1/2 for
``t^a``, below for ``t^b``. The paper's objective; the authors halve audio's terms
(``weight_audio=0.5``). One public port trains SimMMDG's objective under this name
without flags, another adds it and leaves two projectors out of the optimiser: not here.
The teacher's projections are without dropout. Rows that lack a modality are left out,
but for the heads.
"""

import itertools

import jax
import jax.numpy as jnp

from mer_dg.contracts import named_key
from mer_dg.entropy import unit_sphere
from mer_dg.losses import supervised_contrastive, translation_distance
from mer_dg.methods import _parts
from mer_dg.methods.term import (
  SHARE,
  WEIGHT,
  Hyperparameter,
  Spec,
  Term,
  needs_two,
  whole_rows,
)


def make(task, options):
  del options
  needs_two(task, "cmrf")
  start = lambda hyper: jnp.round(hyper["start"] * task.total_steps)

  def init(key, task, params):
    del key, task
    return {}, params

  def loss(outputs, batch, ctx):
    hyper, label, rows = ctx.hyper, batch["label"], whole_rows(batch)
    own = {m: unit_sphere(outputs.projections[m]) for m in task.modalities}
    taught = ctx.model.apply(ctx.memory, batch).projections
    taught = {m: unit_sphere(taught[m]) for m in task.modalities}
    heads = _parts.unimodal_losses(outputs.unimodal_logits, batch, task.modalities)
    distill = jnp.float32(0.0)
    for a, b in itertools.combinations(task.modalities, 2):
      for near, far in ((a, b), (b, a)):
        key = named_key(ctx.key, f"{near}/{far}")
        share = near_share(key, label.shape, hyper["alpha"])[:, None]
        mix = share * taught[near] + (1 - share) * taught[far]
        value = translation_distance({(far, near): mix}, own, where=rows)
        distill += hyper[f"weight_{near}"] * value
    parts = {
      "heads": sum(hyper[f"weight_{m}"] * value for m, value in heads.items()),
      "contrast": supervised_contrastive(
        own, label, temperature=hyper["temperature"], where=rows
      ),
      "distill": jnp.where(ctx.step >= start(hyper), distill, 0.0),
    }
    total = sum(hyper[name] * value for name, value in parts.items())
    return total, {f"cmrf/{name}": value for name, value in parts.items()}

  def update(mean, aux, params, ctx):
    del aux
    return _parts.average(mean, params, _parts.sma_share(start(ctx.hyper), ctx.step))

  return Term(loss, init, update, eval_params=lambda params, mean: mean)


def near_share(key: jax.Array, shape, alpha) -> jax.Array:
  """Beta(alpha, alpha) given that it is at least 1/2, by symmetry."""
  share = jax.random.beta(key, alpha, alpha, shape)
  return jnp.maximum(share, 1 - share)


SPEC = Spec(
  "cmrf",
  make,
  {
    "weight": WEIGHT,
    "heads": Hyperparameter(2.0, 0.0, 1e3, search=(0.1, 5.0)),
    "contrast": Hyperparameter(3.0, 0.0, 1e3, search=(0.1, 5.0)),
    "distill": Hyperparameter(3.0, 0.0, 1e3, search=(0.1, 5.0)),
    "temperature": Hyperparameter(0.1, 1e-3, 1e3),
    "alpha": Hyperparameter(0.1, 1e-3, 1e3),
    "start": SHARE._replace(default=0.1),  # Of training, where averaging begins.
  },
  recipes={"cmrf": {"cmrf": {}}},
  per_modality_weight=True,
  off=None,  # What is evaluated is the mean.
)
