"""Modality-mix learning (Lu, Tan and Han, TNNLS 2026), a reconstruction.

Public is the abstract alone; docs/modality_mix.md says what is ours. One step: the
standard predictions update exploration scores and, for ``rule="quantile"``, a table of
confidences; rows with a strong prediction are mixed on their embeddings, fused again,
and judged against their label proportions. Three ways to combine the two levels:

* ``mm`` (variant A): standard learning first, then the mixed objective beside it;
* ``mm_alternate`` (variant B): standard and mixed phases in turn; in a mixed phase the
  under-explored encoder alone learns;
* ``mm_nested`` (variant C, first order): the mixed objective is taken at the encoders
  after a gradient step of the standard one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mer_dg import mixing
from mer_dg.methods.term import (
  SHARE,
  WEIGHT,
  Hyperparameter,
  Spec,
  Term,
  Transformation,
  scale_parts,
  transformation,
)


class MixMemory(NamedTuple):
  """What the term remembers between steps.

  Attributes:
    exploration: Running score of each modality.
    table: Last prediction of every sample; ``()`` where the rule needs none.
  """

  exploration: mixing.Exploration
  table: mixing.ConfidenceTable | tuple[()]


def make(task, options):
  has_table = options["rule"] == "quantile"
  if has_table and task.num_samples < 1:
    raise ValueError("rule='quantile' needs stable sample ids; the task has none.")

  def init(key, task, params):
    del key, params
    table = mixing.init_confidence_table(task.num_samples) if has_table else ()
    return {}, MixMemory(mixing.init_exploration(task.modalities), table)

  def loss(outputs, batch, ctx):
    stage = _stage(ctx.hyper, ctx.step, options, task)
    # Scores and table are those of standard learning: they stand still in between.
    memory = _observe(outputs, batch, ctx, stage.standard > 0)
    mixed = mixing.modality_mix(
      ctx.key,
      {m: outputs.embeddings[m] for m in task.modalities},
      batch["label"],
      num_classes=task.num_classes,
      eligible=_strong(outputs, batch, ctx, memory.table),
      present={m: batch["present"][m] for m in task.modalities},
      proportions=options["proportions"],
      exploration=memory.exploration,
      eta=ctx.hyper.get("eta", 1.0),
    )
    z = mixed.embeddings
    if options["route"] == "focus":
      z = mixing.route_gradients(z, memory.exploration)
    value, found = mixing.modality_mix_loss(
      mixed,
      ctx.model.fuse(ctx.params, z, mixed.present, ctx.key, train=True),
      unimodal_logits=ctx.model.heads(ctx.params, z),
      unimodal_weight=ctx.hyper["unimodal_weight"],
      modality_weights={m: ctx.hyper[f"weight_{m}"] for m in task.modalities},
      mask=batch["mask"],
    )
    # The focus before this batch is the one whose encoder learns in a mixed phase.
    phase = (stage.standard, ctx.memory.exploration.focus)
    aux: dict[str, Any] = {"memory": memory, "phase": phase}
    aux |= {f"mm/{k}": found[k] for k in ("eligible_share", "n_mixed", "kl")}
    for j, m in enumerate(sorted(task.modalities)):
      aux[f"mm/score/{m}"] = memory.exploration.score[m]
      aux[f"mm/focus/{m}"] = jnp.float32(memory.exploration.focus == j)
    return stage.mix * value, aux

  update = lambda memory, aux, params, ctx: aux["memory"]
  if options["schedule"] == "alternate":
    focused = options["route"] == "focus"
    around = (lambda _, inner: _freeze(inner, task)) if focused else None
    in_turn = lambda hyper: transformation(_alternate)
    return Term(loss, init, update, in_turn, around, joint=False)
  if options["schedule"] == "nested":
    return Term(loss, init, update, lambda hyper: _nested(hyper, task), joint=False)
  return Term(loss, init, update)


def _stage(hyper, step, options, task) -> mixing.Stage:
  """Factors of standard and mixed learning at this step."""
  steps = lambda share: jnp.round(hyper[share] * task.total_steps)
  if options["schedule"] == "alternate":
    return mixing.mix_stage(
      step,
      schedule="alternate",
      warmup_steps=steps("warmup"),
      standard_steps=jnp.maximum(steps("standard"), 1.0),
      mix_steps=jnp.maximum(steps("mixing"), 1.0),
    )
  return mixing.mix_stage(step, warmup_steps=steps("warmup"), ramp_steps=steps("ramp"))


def _observe(outputs, batch, ctx, standard) -> MixMemory:
  """Scores and table after this batch, where it is one of standard learning."""
  exploration, table = ctx.memory
  labels, mask = batch["label"], batch["mask"] & standard
  exploration = mixing.exploration_score(
    exploration,
    {m: outputs.unimodal_logits[m] for m in exploration.score},
    labels,
    beta=ctx.hyper["beta"],
    mask=mask,
    present={m: batch["present"][m] for m in exploration.score},
  )
  if table != ():
    if "index" not in batch:
      raise ValueError("rule='quantile' needs batch['index'], the stable sample ids.")
    table = mixing.update_confidence_table(
      table, batch["index"], outputs.logits, labels, mask=mask
    )
  return MixMemory(exploration, table)


def _strong(outputs, batch, ctx, table) -> jax.Array:
  """Rows of the batch with a strong prediction, bool ``[B]``."""
  if table == ():
    strength, correct = mixing.prediction_strength(outputs.logits, batch["label"])
    return mixing.select_confident(
      strength, correct, threshold=ctx.hyper["threshold"], mask=batch["mask"]
    )
  return batch["mask"] & mixing.select_confident(
    table.confidence,
    table.correct,
    rule="quantile",
    fraction=ctx.hyper["fraction"],
    labels=table.label,
    mask=table.label >= 0,
    rows=batch["index"],
  )


def _alternate(grads, state, params, *, grad_fn, aux, **_):
  """One level at a time: the others' gradient, or that of the mixed objective."""
  standard, _ = aux["phase"]
  mixed = grad_fn(params, only=("mm",))
  return jax.tree.map(lambda g, h: standard * g + h, grads, mixed), state


def _nested(hyper, task) -> Transformation:
  """Adds the gradient at encoders after a step of the others (first order)."""

  def update(grads, state, params, *, grad_fn, model, **_):
    encoders = {f"encoder/{m}" for m in task.modalities}
    ahead = jax.tree.map(
      lambda part, p, g: p - hyper["inner_lr"] * g if part in encoders else p,
      model.parts(params["net"]), params["net"], grads["net"],
    )  # fmt: skip
    mixed = grad_fn({**params, "net": ahead}, only=("mm",))
    return jax.tree.map(jnp.add, grads, mixed), state

  return transformation(update)


def _freeze(inner: Transformation, task) -> Transformation:
  """``inner``, but in a mixed phase only the focus' encoder and projector move.

  The others stay as they are, parameters and optimiser moments: a zero gradient alone
  would hold nothing, with momentum and weight decay.
  """

  def update(grads, state, params, *, aux, model, **extra):
    standard, focus = aux["phase"]
    moves = {
      f"{part}/{m}": (standard > 0) | (focus == j)
      for j, m in enumerate(sorted(task.modalities))
      for part in ("encoder", "projector")
    }
    updates, new = inner.update(grads, state, params, model=model, **extra)
    updates = scale_parts(updates, model, moves)
    parts = {"net": model.parts(params["net"])}
    parts["terms"] = jax.tree.map(lambda _: "", params["terms"])
    labels = optax.tree.map_params(
      inner, lambda _, part: part, new, parts, transform_non_params=lambda _: ""
    )
    pick = lambda part, a, b: jnp.where(moves[part], a, b) if part in moves else a
    return updates, jax.tree.map(pick, labels, new, state)

  return transformation(update, inner.init)


def _hyperparameters(options):
  """Each option brings its own; shares are of training where not said else."""
  share = lambda default: SHARE._replace(default=default)
  numbers = {
    "weight": WEIGHT._replace(search=(0.1, 2.0)),
    # Of the modality-specific objective.
    "unimodal_weight": Hyperparameter(0.5, 0.0, 1e4, search=(0.1, 1.0)),
    "beta": share(0.9),  # Decay of the exploration scores.
    "warmup": share(0.2),  # Before the first mixed step.
  }
  if options["schedule"] == "alternate":
    numbers |= {"standard": share(0.05), "mixing": share(0.05)}
  else:
    numbers["ramp"] = share(0.1)  # After the warm-up.
  if options["schedule"] == "nested":
    # Length of the inner gradient step.
    numbers["inner_lr"] = Hyperparameter(0.01, 0.0, 1e3)
  # Strong predictions: probability of the label; or share of each class.
  if options["rule"] == "threshold":
    numbers["threshold"] = share(0.7)
  else:
    numbers["fraction"] = share(0.5)
  if options["proportions"] == "exploration":  # How far they follow the gaps.
    numbers["eta"] = Hyperparameter(1.0, 0.0, 1e3, search=(0.1, 2.0))
  return numbers


_HEADS = {"unimodal": {"weight": 0.5}}  # The exploration scores read them.
SPEC = Spec(
  "mm",
  make,
  _hyperparameters,
  options={
    "schedule": ("ramp", "alternate", "nested"),
    "rule": ("threshold", "quantile"),
    "proportions": ("exploration", "uniform"),
    "route": ("focus", "all"),  # Whose encoder learns from mixed rows.
  },
  recipes={
    "mm": {**_HEADS, "mm": {}},
    "mm_alternate": {**_HEADS, "mm": {"schedule": "alternate", "rule": "quantile"}},
    "mm_nested": {**_HEADS, "mm": {"schedule": "nested"}},
  },
  per_modality_weight=True,
  off={"weight": 0.0, "warmup": 1.0},  # A mixed phase has no standard learning.
)
