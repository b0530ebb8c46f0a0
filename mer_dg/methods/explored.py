"""Strength by exploration, `mer_explored` (ours): more entropy for the less explored.

The entropy of `mer` with the factor ``1 + eta gap_m`` for each modality. ``gap_m`` is
that of modality mixing, 1 minus a running score over the best modality's; scored is the
mean probability of the label under a linear probe of the detached embedding, which
trains beside the network and tells it nothing. The score is one of the joint encoder
alone: encoders trained apart, the other half of the gap that the paper's outlook speaks
of, would cost a second training.
"""

import jax

from mer_dg import mixing
from mer_dg.contracts import named_key
from mer_dg.methods import _entropy, _parts, mer
from mer_dg.methods.term import SHARE, Hyperparameter, Spec, Term, needs_two
from mer_dg.networks import init_mlp, mlp


def make(task, options):
  needs_two(task, "explored")
  inner, names = mer.make(task, options), task.modalities

  def init(key, task, params):
    del params
    probe = lambda m: init_mlp(named_key(key, m), (task.width[m], task.num_classes))
    return {f"probe_{m}": probe(m) for m in names}, mixing.init_exploration(names)

  def loss(outputs, batch, ctx):
    z = jax.lax.stop_gradient(outputs.embeddings)
    logits = {m: mlp(ctx.own[f"probe_{m}"], z[m]) for m in names}
    factor = {m: 1 + ctx.hyper["eta"] * ctx.memory.gap[m] for m in names}
    value, aux = inner.loss(outputs, batch, _entropy.strengthened(ctx, factor))
    probing = sum(_parts.unimodal_losses(logits, batch, names).values())
    value += probing - jax.lax.stop_gradient(probing)  # 0; the probes' gradient.
    score = mixing.exploration_score(
      ctx.memory, logits, batch["label"], beta=ctx.hyper["beta"],
      present={m: batch["present"][m] for m in names},
    )  # fmt: skip
    return value, aux | {f"explored/{m}": factor[m] for m in names} | {"score": score}

  return Term(loss, init, lambda memory, aux, params, ctx: aux["score"])


def _hyperparameters(options) -> dict[str, Hyperparameter]:
  own = {
    "eta": Hyperparameter(1.0, 0.0, 1e3, search=(0.1, 10.0)),
    "beta": SHARE._replace(default=0.9),  # Decay of the scores.
  }
  return _entropy.hyperparameters(options) | own


SPEC = Spec(
  "explored",
  make,
  _hyperparameters,
  options=_entropy.OPTIONS | {"queue": (0,)},
  recipes={"mer_explored": {"explored": mer.KDE}},
  per_modality_weight=True,
)
