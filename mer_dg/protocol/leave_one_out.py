"""Leave-one-source-out selection: settings chosen on source domains left out in turn.

Source validation asks how well a setting does on *known* domains. Here every source s
of a task is left out once: an *inner run* trains on the other sources and is judged on
all of s, a domain new to it, as the target will be. The setting and step with the best
mean over left-out sources are used by the runs trained on all sources. The target is
in no inner run, neither for training nor for judging.

An inner run is an ordinary run of the task that holds s out: its ``target`` is s, its
``sources`` are the others, its score is ``target/<metric>``. Cost: with S sources every
setting is trained S times more. The sources must be at least two, and inner runs see
one domain less than the runs they choose for, so what they prefer (a strength of
regularisation, say) may be right for a slightly harder problem.

Source: Gulrajani & Lopez-Paz, In search of lost domain generalization, 2021, §3
("leave-one-domain-out cross-validation").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import json
import math
from typing import Any

from mer_dg.protocol import selection
from mer_dg.protocol.selection import AnyRecord, group_by

RULE = "leave_one_source_out"


@dataclasses.dataclass(frozen=True)
class Choice:
  """What the left-out sources prefer.

  Attributes:
    hyper: Numbers of the setting.
    tags: Words of the setting.
    step: The step at which its runs are taken.
    score: Mean of the metric over left-out sources (as recorded, not negated).
    trials: Number of settings with an inner run, incomplete ones included.
    incomplete: How many of them lack a left-out source (a run diverged, or was never
      started) and could not be chosen.
  """

  hyper: dict[str, float]
  tags: dict[str, str]
  step: int
  score: float
  trials: int
  incomplete: int


def leave_one_source_out(
  inner: Iterable[AnyRecord], sources: Sequence[str], *, metric: str = "accuracy"
) -> Choice:
  """Chooses setting and step of one method for one task.

  Runs of one setting and left-out source are averaged over seeds, then over sources,
  so that sources weigh the same. Only steps at which every run of the setting was
  evaluated count. Ties: lower mean ``target/nll``, then the earlier setting (in order
  of appearance), then the earlier step.

  Args:
    inner: Evaluations of inner runs of one method. Records that are no inner run of
      this task are not looked at.
    sources: Sources of the task, at least two.
    metric: Name without split; larger is better unless in `LOWER_IS_BETTER`.

  Returns:
    The choice.

  Raises:
    ValueError: Fewer than two sources; no setting with an inner run for every source
      (names the missing ones); a record without the metric.

  Example:
    >>> inner = [{"run_id": f"{w}{s}", "target": s, "sources": [o], "step": 10,
    ...           "hyper": {"w": w}, "metrics": {"target/accuracy": v}}
    ...          for w, s, o, v in ((0.0, "a", "b", 0.5), (0.0, "b", "a", 0.6),
    ...                             (0.1, "a", "b", 0.7), (0.1, "b", "a", 0.5))]
    >>> choice = leave_one_source_out(inner, ["a", "b"])
    >>> choice.hyper, choice.step, round(choice.score, 2), choice.trials
    ({'w': 0.1}, 10, 0.6, 2)
  """
  sources = list(dict.fromkeys(sources))
  if len(sources) < 2:
    raise ValueError(
      f"sources={sources!r}: leaving one out of fewer than two leaves none to train on."
    )
  inner = list(inner)
  own = [r for r in inner if _is_inner(r, sources)]
  trials = group_by(own, selection.setting)
  complete = {
    setting: rows
    for setting, rows in trials.items()
    if {r["target"] for r in rows} == set(sources)
  }
  if not complete:
    found = {r["target"] for r in own}
    missing = [s for s in sources if s not in found]
    what = f"sources {missing} were never left out" if missing else "each lacks some"
    raise ValueError(
      f"No setting has an inner run for each of the sources {sources}: {what} "
      f"({len(own)} of {len(inner)} records are inner runs of this task)."
    )
  ranked = []
  for order, (setting, rows) in enumerate(complete.items()):
    runs = {r["run_id"] for r in rows}
    for step, at in group_by(rows, lambda r: r["step"]).items():
      if {r["run_id"] for r in at} == runs:
        score = _mean_over_sources(
          at, lambda r: selection.record_score(r, "target", metric)
        )
        tie = _mean_over_sources(at, lambda r: selection.record_tie_break(r, "target"))
        ranked.append(((score, tie, -order, -step), setting))
  if not ranked:
    raise ValueError(
      "No setting has a step at which all of its inner runs were evaluated."
    )
  (score, _, _, minus_step), setting = max(ranked)
  if metric in selection.LOWER_IS_BETTER:
    score = -score
  hyper, tags = json.loads(setting)
  return Choice(
    hyper=hyper,
    tags=tags,
    step=-minus_step,
    score=score if math.isfinite(score) else math.nan,
    trials=len(trials),
    incomplete=len(trials) - len(complete),
  )


def select_leave_one_source_out(
  records: Iterable[AnyRecord], inner: Iterable[AnyRecord], *, metric: str = "accuracy"
) -> list[dict[str, Any]]:
  """The runs and evaluations that left-out sources choose, for every method and target.

  Args:
    records: Evaluations of the runs trained on all sources, of any number of methods,
      targets, settings and seeds.
    inner: Evaluations of inner runs, of all of those methods. One inner run may serve
      several targets.
    metric: As in `leave_one_source_out`.

  Returns:
    One copy per run of the chosen setting, in order of appearance, at the chosen step,
    with ``selection`` set to ``leave_one_source_out``; ``trials`` is at least the
    number of settings tried.

  Raises:
    ValueError: As `leave_one_source_out`; no records; a task whose runs have different
      sources; no run of the chosen setting, or one without the chosen step.

  Example:
    >>> def run(w, target, sources, value):
    ...   return {"run_id": f"{w}{target}", "method": "mer", "target": target,
    ...     "sources": sources, "dataset": "toy", "data_version": "1", "step": 10,
    ...     "modalities": ["x"], "hyper": {"w": w},
    ...     "metrics": {"target/accuracy": value}}
    >>> inner = [run(w, s, [o], 0.5 + w) for w in (0.0, 0.1) for s, o in ("ab", "ba")]
    >>> final = [run(w, "t", ["a", "b"], 0.3) for w in (0.0, 0.1)]
    >>> [(r["hyper"], r["trials"]) for r in select_leave_one_source_out(final, inner)]
    [({'w': 0.1}, 2)]
  """
  records, inner = list(records), list(inner)
  if not records:
    raise ValueError("Nothing to select from: no records.")
  choices = {}
  for cell, rows in group_by(records, _cell).items():
    kinds = {frozenset(r["sources"]) for r in rows}
    if len(kinds) > 1:
      raise ValueError(
        f"runs of {_said(rows[0])} have different sources: "
        f"{sorted(sorted(kind) for kind in kinds)}."
      )
    own = [r for r in inner if _family(r) == _family(rows[0])]
    try:
      choice = leave_one_source_out(own, rows[0]["sources"], metric=metric)
    except ValueError as error:
      raise ValueError(f"{_said(rows[0])}: {error}") from error
    choices[cell] = choice
    _check_runs(rows, choice)
  out = []
  for record in records:
    choice = choices[_cell(record)]
    if _is_chosen(record, choice) and record["step"] == choice.step:
      trials = max(record.get("trials", 1), choice.trials)
      out.append({**record, "selection": RULE, "trials": trials})
  return out


def _check_runs(rows: Sequence[AnyRecord], choice: Choice) -> None:
  """There must be a run of the chosen setting, and each must have the chosen step."""
  chosen = [r for r in rows if _is_chosen(r, choice)]
  if not chosen:
    raise ValueError(
      f"{_said(rows[0])}: left-out sources choose {choice.hyper | choice.tags}, but no "
      "run on all sources has that setting."
    )
  for run, at in group_by(chosen, lambda r: r["run_id"]).items():
    steps = sorted(r["step"] for r in at)
    if choice.step not in steps:
      raise ValueError(
        f"{_said(rows[0])}: left-out sources choose step {choice.step}, but run "
        f"{run!r} was evaluated at {steps}."
      )


def _is_inner(record: AnyRecord, sources: Sequence[str]) -> bool:
  """Whether a run leaves one of the sources out and trains on exactly the others."""
  left_out = record["target"]
  return left_out in sources and set(record["sources"]) == set(sources) - {left_out}


def _mean_over_sources(rows: Sequence[AnyRecord], value) -> float:
  means = [
    sum(map(value, own)) / len(own)
    for own in group_by(rows, lambda r: r["target"]).values()
  ]
  return sum(means) / len(means)


def _is_chosen(record: AnyRecord, choice: Choice) -> bool:
  chosen = {"hyper": choice.hyper, "tags": choice.tags}
  return selection.setting(record) == selection.setting(chosen)


def _family(record: AnyRecord) -> tuple[Any, ...]:
  """What an inner run must share with the runs it chooses for."""
  fields = ("dataset", "data_version", "method")
  return *(record[f] for f in fields), tuple(record["modalities"])


def _cell(record: AnyRecord) -> tuple[Any, ...]:
  return *_family(record), record["target"]


def _said(record: AnyRecord) -> str:
  return f"method {record['method']!r}, target {record['target']!r}"
