"""Modality-mix learning as a term: stages, selection, mixing, objective, state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mer_dg import mixing
from mer_dg.methods.term import Context, Control, Numeric, Task, Term, TermSpec


class MixState(NamedTuple):
  """What the term remembers between steps.

  Attributes:
    exploration: Running score of each modality.
    table: Last prediction of every sample; ``()`` where the rule needs none.
  """

  exploration: mixing.Exploration
  table: mixing.ConfidenceTable | tuple[()]


def make_mm(task: Task, options: Mapping[str, Any]) -> Term:
  """Modality-mix learning (Lu, Tan and Han, TNNLS 2026; a reconstruction).

  One step: the standard predictions update exploration scores and, for
  ``rule="quantile"``, the confidence table; rows with a strong prediction are mixed
  on their embeddings, fused again, and judged against their label proportions.

  Raises:
    ValueError: Words that exclude each other or do not fit the task.
  """
  if options["pool"] == "other_domain" and task.num_domains < 2:
    raise ValueError("pool='other_domain' needs at least two source domains, not one.")
  if options["blend"] == "mixup" and options["swap"] == "focus_only":
    raise ValueError("blend='mixup' moves every modality; swap must be 'all'.")
  has_table = options["rule"] == "quantile"
  if has_table and task.num_samples < 1:
    raise ValueError("rule='quantile' needs stable sample ids; the task has none.")

  def init_state():
    table = mixing.init_confidence_table(task.num_samples) if has_table else ()
    return MixState(mixing.init_exploration(task.modalities), table)

  def control(hyper, state: MixState, step) -> Control:
    stage = _stage(hyper, step, options, task)
    learns = {}
    if options["schedule"] == "alternate" and options["route"] == "focus":
      focus, names = state.exploration.focus, sorted(task.modalities)
      standard = stage.standard > 0
      learns = {m: standard | (focus == names.index(m)) for m in names}
    return Control(stage.standard, learns)

  def loss(outputs, batch, context: Context):
    stage = _stage(context.hyper, context.step, options, task)
    # Scores and table are those of standard learning: they stand still in between.
    state = _observe(outputs, batch, context, options, stage.standard > 0)
    eligible = _select(outputs, batch, context, options, state.table)
    mixed = _mix(outputs, batch, context, options, task, state.exploration, eligible)
    z = mixing.route_gradients(
      mixed.embeddings, route=options["route"], exploration=state.exploration
    )
    value, aux = mixing.modality_mix_loss(
      mixed,
      context.fuse(z, mixed.present),
      unimodal_logits=context.unimodal(z),
      unimodal_weight=context.hyper["unimodal_weight"],
      modality_weights={m: context.hyper[f"weight_{m}"] for m in task.modalities},
      kind=options["kind"],
      mask=batch["mask"],
    )
    logged = {f"mm/{k}": aux[k] for k in ("eligible_share", "n_mixed", "kl")}
    for j, m in enumerate(sorted(task.modalities)):
      logged[f"mm/score/{m}"] = state.exploration.score[m]
      logged[f"mm/focus/{m}"] = jnp.float32(state.exploration.focus == j)
    return stage.mix * value, state, logged

  return Term(
    init_state=init_state,
    loss=loss,
    control=control if options["schedule"] == "alternate" else None,
    inner_step="inner_lr" if options["schedule"] == "nested" else "",
  )


def _stage(hyper, step, options, task: Task) -> mixing.Stage:
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


def _observe(outputs, batch, context: Context, options, standard) -> MixState:
  """Scores and table after this batch, where it is one of standard learning."""
  exploration, table = context.state
  logits, labels, mask = outputs.logits, batch["label"], batch["mask"] & standard
  evidence, fused = outputs.unimodal_logits, None
  if options["signal"] == "loss_drop":
    evidence, fused = _without_each(outputs, batch, context), logits
  exploration = mixing.exploration_score(
    exploration,
    {m: evidence[m] for m in exploration.score},
    labels,
    beta=context.hyper["beta"],
    temperature=context.hyper.get("temperature", 1.0),
    mask=mask,
    present={m: batch["present"][m] for m in exploration.score},
    signal=options["signal"],
    fused_logits=fused,
  )
  if table != ():
    if "index" not in batch:
      raise ValueError("rule='quantile' needs batch['index'], the stable sample ids.")
    table = mixing.update_confidence_table(
      table, batch["index"], logits, labels, mask=mask
    )
  return MixState(exploration, table)


def _without_each(outputs, batch, context: Context) -> dict[str, jax.Array]:
  """Fused logits with modality m removed, for each m; no gradient is wanted."""
  z, present = jax.lax.stop_gradient(outputs.embeddings), batch["present"]
  return {
    m: context.fuse(z, {**present, m: jnp.zeros_like(present[m])}) for m in present
  }


def _select(outputs, batch, context: Context, options, table) -> jax.Array:
  """Rows of the batch with a strong prediction, bool ``[B]``."""
  if table == ():
    strength, correct = mixing.prediction_strength(outputs.logits, batch["label"])
    return mixing.select_confident(
      strength, correct, threshold=context.hyper["threshold"], mask=batch["mask"]
    )
  return batch["mask"] & mixing.select_confident(
    table.confidence,
    table.correct,
    rule="quantile",
    fraction=context.hyper["fraction"],
    labels=table.label,
    mask=table.label >= 0,
    rows=batch["index"],
  )


def _mix(outputs, batch, context: Context, options, task, exploration, eligible):
  domains = None if options["pool"] == "any" else batch["domain"]
  return mixing.modality_mix(
    context.key,
    {m: outputs.embeddings[m] for m in task.modalities},
    batch["label"],
    num_classes=task.num_classes,
    eligible=eligible,
    present={m: batch["present"][m] for m in task.modalities},
    domains=domains,
    num_domains=task.num_domains,
    proportions=options["proportions"],
    swap=options["swap"],
    pool=options["pool"],
    soft=context.hyper.get("alpha"),
    shared=options["blend"] == "mixup",
    exploration=exploration,
    eta=context.hyper.get("eta", 1.0),
    concentration=context.hyper.get("concentration", 1.0),
    require_distinct=options["require_distinct"],
  )


_SHARE = lambda default: Numeric(default, 0.0, 1.0)  # Of training, or of rows.

MM = TermSpec(
  make_mm,
  {
    "weight": Numeric(1.0, 0.0, 1e4),
    "unimodal_weight": Numeric(0.5, 0.0, 1e4),  # Of the modality-specific objective.
    # Strong predictions: probability of the label; or share of each class.
    "threshold": _SHARE(0.7),
    "fraction": _SHARE(0.5),
    "beta": _SHARE(0.9),  # Decay of the exploration scores,
    "temperature": Numeric(1.0, 1e-3, 1e3),  # and of their softmax.
    "eta": Numeric(1.0, 0.0, 1e3),  # How far proportions follow the gaps.
    "concentration": Numeric(1.0, 1e-3, 1e3),
    "alpha": Numeric(1.0, 1e-3, 1e3),  # Beta(alpha, alpha) of a soft swap.
    # Shares of training: before the first mixed step; of the ramp after it; of each
    # standard and each mixed phase.
    "warmup": _SHARE(0.2),
    "ramp": _SHARE(0.1),
    "standard": _SHARE(0.05),
    "mixing": _SHARE(0.05),
    "inner_lr": Numeric(0.01, 0.0, 1e3),  # Length of the inner gradient step.
  },
  {
    "schedule": ("ramp", "alternate", "nested"),
    "rule": ("threshold", "quantile"),
    "proportions": ("exploration", "uniform", "dirichlet"),
    "route": ("focus", "weighted", "all"),
    "swap": ("all", "focus_only"),
    "pool": ("any", "same_domain", "other_domain"),
    "blend": ("hard", "soft", "mixup"),
    "signal": ("true_class", "kl_uniform", "loss_drop"),
    "kind": ("soft_ce", "bce"),
    "require_distinct": (True, False),
  },
  only={
    "threshold": ("rule", ("threshold",)),
    "fraction": ("rule", ("quantile",)),
    "temperature": ("route", ("weighted",)),
    "eta": ("proportions", ("exploration",)),
    "concentration": ("proportions", ("dirichlet",)),
    "alpha": ("blend", ("soft", "mixup")),
    "ramp": ("schedule", ("ramp", "nested")),
    "standard": ("schedule", ("alternate",)),
    "mixing": ("schedule", ("alternate",)),
    "inner_lr": ("schedule", ("nested",)),
  },
  per_modality_weight=True,
)
