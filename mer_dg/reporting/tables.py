"""Records to a small table model; `formats` writes it down."""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import math
from typing import Any

from mer_dg import protocol
from mer_dg.protocol import AnyRecord, Difference, Interval


@dataclasses.dataclass(frozen=True)
class Row:
  """One method.

  Attributes:
    method: Name.
    source_val: ``val/<metric>`` over targets and seeds; ``None`` if not recorded.
    source_vals: The same for each target, over seeds.
    targets: ``{target: interval over seeds}``; targets without a run are absent.
    mean: Over targets; ``None`` unless every target has a run.
    differences: Paired difference to the reference, per target.
    difference: The same over all targets; ``None`` without shared pairs on every one.
    p_holm: Its p-value adjusted over the methods of the table; NaN if there is none.
    trials: Largest number of hyperparameter settings tried for a target.
    values: ``{target: {(seed, split_seed): value}}``, what everything is made of; see
      `protocol.collect_scores`.
  """

  method: str
  source_val: Interval | None
  source_vals: dict[str, Interval]
  targets: dict[str, Interval]
  mean: Interval | None
  differences: dict[str, Difference]
  difference: Difference | None
  p_holm: float
  trials: int
  values: dict[str, dict[Any, float]]


@dataclasses.dataclass(frozen=True)
class Table:
  """Methods x targets for one dataset, metric and selection rule.

  Attributes:
    metric: Name without split.
    rule: Selection rule, one of `protocol.RULES`.
    reference: Method of the paired differences, ``None`` for none.
    dataset: Name.
    data_version: Version.
    modalities: Names, in the order of the config.
    protocol: How domains were assigned, one of `protocol.PROTOCOLS`.
    targets: Held-out domains, the columns.
    rows: The methods, reference first.
    devices: What the runs ran on.
    revisions: Of the code that ran.
  """

  metric: str
  rule: str
  reference: str | None
  dataset: str
  data_version: str
  modalities: tuple[str, ...]
  protocol: str
  targets: tuple[str, ...]
  rows: tuple[Row, ...]
  devices: tuple[str, ...]
  revisions: tuple[str, ...]


def build_table(
  records: Iterable[AnyRecord],
  *,
  metric: str = "accuracy",
  rule: str = "source_val",
  reference: str | None = None,
  inner: Iterable[AnyRecord] = (),
) -> Table:
  """Selects one evaluation per run (and trial, after a search) and summarises.

  Args:
    records: All evaluations of all runs of one dataset.
    metric: Name without split; ``target/<metric>`` is shown.
    rule: Selection rule; one of `protocol.RULES`, or ``leave_one_source_out``.
    reference: Method to compare with, pair by pair; ``None``: no comparison.
    inner: Inner runs, for ``leave_one_source_out`` alone.

  Returns:
    The table; methods in order of appearance, the reference first.

  Raises:
    ValueError: No records, records that must not be mixed (`check_comparable`), an
      unknown rule or reference, a metric that was not recorded.

  Example:
    >>> row = dict(dataset="toy", data_version="1", modalities=["a"], sources=["s"],
    ...   target="t", config_hash="c", hyper={}, trials=1, step=1, seed=0, split_seed=0,
    ...   device="cpu", git_revision="abc")
    >>> runs = [row | dict(method=m, run_id=m, metrics={"val/accuracy": 0.9,
    ...   "target/accuracy": v}) for m, v in (("mer", 0.75), ("erm", 0.5))]
    >>> table = build_table(runs, reference="erm")
    >>> [(r.method, r.mean.mean) for r in table.rows]
    [('erm', 0.5), ('mer', 0.75)]
  """
  records = list(records)
  protocol.check_comparable(records)
  if rule == "leave_one_source_out":
    selected = protocol.select_leave_one_source_out(records, inner, metric=metric)
  else:
    selected = protocol.select(records, rule, metric=metric)
    selected = protocol.best_trial(selected, rule, metric=metric)
  scores = protocol.collect_scores(selected, f"target/{metric}")
  if reference is not None and reference not in scores:
    raise ValueError(f"reference={reference!r} is not one of {tuple(scores)}.")
  methods = sorted(scores, key=lambda m: m != reference)  # Stable: reference first.
  targets = tuple(dict.fromkeys(r["target"] for r in records))
  has_val = all(f"val/{metric}" in r["metrics"] for r in selected)
  val = protocol.collect_scores(selected, f"val/{metric}") if has_val else {}
  trials = {m: max(r["trials"] for r in selected if r["method"] == m) for m in methods}

  rows = []
  for method in methods:
    values = scores[method]
    complete = all(t in values for t in targets)
    differences, difference = {}, None
    if reference is not None and method != reference:
      base = scores[reference]
      differences = {
        t: d
        for t in targets
        if (d := protocol.paired_difference({t: values.get(t, {})}, base))
      }
      if len(differences) == len(targets):
        difference = protocol.paired_difference(values, base)
    rows.append(
      Row(
        method=method,
        source_val=protocol.summarize(val[method]) if has_val else None,
        source_vals=_per_target(val.get(method, {})),
        targets=_per_target(values),
        mean=protocol.summarize(values) if complete else None,
        differences=differences,
        difference=difference,
        p_holm=math.nan,
        trials=trials[method],
        values=values,
      )
    )
  adjusted = protocol.holm([r.difference.p if r.difference else math.nan for r in rows])
  rows = [dataclasses.replace(r, p_holm=p) for r, p in zip(rows, adjusted, strict=True)]
  first = records[0]
  return Table(
    metric=metric,
    rule=rule,
    reference=reference,
    dataset=first["dataset"],
    data_version=first["data_version"],
    modalities=tuple(first["modalities"]),
    protocol=first.get("protocol", protocol.PROTOCOLS[0]),
    targets=targets,
    rows=tuple(rows),
    devices=tuple(dict.fromkeys(r["device"] for r in selected)),
    revisions=tuple(dict.fromkeys(r["git_revision"] for r in selected)),
  )


def _per_target(scores: protocol.Scores) -> dict[str, Interval]:
  return {t: protocol.mean_interval(list(v.values())) for t, v in scores.items()}
