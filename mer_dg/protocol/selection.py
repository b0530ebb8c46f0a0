"""Model selection as pure functions of records.

A record is a mapping with at least ``run_id``, ``step`` and ``metrics``; one record
is one evaluation of one run. What a rule may look at is in its name: ``source_val`` and
``re-paired_val`` see validation rows of the source domains only, ``last`` sees nothing,
``oracle`` sees the target and is no valid domain-generalisation result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import json
import math
from typing import Any

# Rules that see validation rows of the sources and nothing else.
SOURCE_RULES = ("source_val", "re-paired_val")
RULES = (*SOURCE_RULES, "last", "oracle")
# Where a rule looks: prefix of the metrics.
_LOOKS_AT = {"re-paired_val": "val/re-paired", "oracle": "target"}
# Everything else recorded (accuracies, recall) is better when larger.
LOWER_IS_BETTER = frozenset({"nll", "brier", "ece", "adaptive_ece"})

AnyRecord = Mapping[str, Any]


def metric_value(record: AnyRecord, name: str) -> float:
  """One metric of a record.

  Args:
    record: One evaluation.
    name: As in ``record["metrics"]``, e.g. ``target/accuracy``.

  Raises:
    ValueError: If the record does not have the metric; names those it has.

  Example:
    >>> metric_value({"metrics": {"val/nll": 0.5}}, "val/nll")
    0.5
  """
  metrics = record["metrics"]
  if name not in metrics:
    raise ValueError(
      f"record of run {record.get('run_id')!r}, step {record.get('step')!r} has no "
      f"metric {name!r}; it has {sorted(metrics)}."
    )
  return float(metrics[name])


def record_score(record: AnyRecord, split: str, metric: str) -> float:
  """The metric with larger = better; NaN (a diverged run) is the worst value."""
  value = metric_value(record, f"{split}/{metric}")
  if math.isnan(value):
    return -math.inf
  return -value if metric in LOWER_IS_BETTER else value


def record_tie_break(record: AnyRecord, split: str) -> float:
  """Minus the NLL of the same split (0 where it was not recorded)."""
  value = float(record["metrics"].get(f"{split}/nll", 0.0))
  return -math.inf if math.isnan(value) else -value


def validation_score(
  metrics: Mapping[str, float], rule: str, metric: str
) -> tuple[float, float]:
  """What a rule of `SOURCE_RULES` makes of one evaluation; larger is better.

  Example:
    >>> found = {"val/accuracy": 0.5, "val/nll": 1.0}
    >>> validation_score(found, "source_val", "accuracy")
    (0.5, -1.0)
  """
  split = _LOOKS_AT.get(rule, "val")
  record = {"metrics": metrics}
  return record_score(record, split, metric), record_tie_break(record, split)


def setting(record: AnyRecord) -> str:
  """The hyperparameters of a run, numbers and words, as one string to compare.

  Example:
    >>> setting({"hyper": {"lr": 0.1}, "tags": {"fusion": "sum"}})
    '[{"lr": 0.1}, {"fusion": "sum"}]'
  """
  return json.dumps([record["hyper"], record.get("tags", {})], sort_keys=True)


def _check_rule(records: Sequence[AnyRecord], rule: str) -> None:
  if rule not in RULES:
    raise ValueError(f"rule={rule!r} is not one of {RULES}.")
  if not records:
    raise ValueError(f"Nothing to select from: no records for rule {rule!r}.")


def group_by(
  records: Iterable[AnyRecord], key: Callable[[AnyRecord], Any]
) -> dict[Any, list[AnyRecord]]:
  """Records by key, keys in order of appearance.

  Example:
    >>> groups = group_by([{"step": 2}, {"step": 1}, {"step": 2}], lambda r: r["step"])
    >>> {step: len(rows) for step, rows in groups.items()}
    {2: 2, 1: 1}
  """
  groups: dict[Any, list[AnyRecord]] = {}
  for record in records:
    groups.setdefault(key(record), []).append(record)
  return groups


def select(
  records: Iterable[AnyRecord], rule: str = "source_val", *, metric: str = "accuracy"
) -> list[dict[str, Any]]:
  """The one evaluation of each run that the rule chooses (its checkpoint).

  * ``source_val``: best ``val/<metric>``; ties: lower ``val/nll``, then earlier step.
  * ``re-paired_val``: the same of ``val/re-paired/<metric>``, source validation with
    the modalities of a sample from different samples of its class: what was learnt of
    which samples came together does not count.
  * ``last``: the largest step.
  * ``oracle``: best ``target/<metric>``; ties as above, with ``target/nll``. Labelled:
    it looks at the target.

  Args:
    records: Evaluations of any number of runs, in any order.
    rule: One of `RULES`.
    metric: Name without split, e.g. ``accuracy``. Better is larger, except for the
      names in `LOWER_IS_BETTER`. Not used by ``last``.

  Returns:
    One copy per run, in order of first appearance, with ``selection`` set to the rule.

  Raises:
    ValueError: Unknown rule, no records, or a record without the metric.

  Example:
    >>> run = [{"run_id": "a", "step": s, "metrics": {"val/accuracy": v}}
    ...        for s, v in ((10, 0.5), (20, 0.7), (30, 0.7))]
    >>> [(r["step"], r["selection"]) for r in select(run)]
    [(20, 'source_val')]
  """
  records = list(records)
  _check_rule(records, rule)
  split = _LOOKS_AT.get(rule, "val")

  def key(record: AnyRecord) -> tuple[float, ...]:
    if rule == "last":
      return (float(record["step"]),)
    score = record_score(record, split, metric)
    return (score, record_tie_break(record, split), -float(record["step"]))

  runs = group_by(records, lambda r: r["run_id"])
  return [{**max(run, key=key), "selection": rule} for run in runs.values()]


def best_trial(
  selected: Iterable[AnyRecord], rule: str = "source_val", *, metric: str = "accuracy"
) -> list[dict[str, Any]]:
  """Keeps, for each method and target, the runs of the best hyperparameters.

  A trial is one `setting`; its score is the mean over its runs of the metric
  that the rule looks at (see `select`). Ties: lower mean NLL, then the
  earlier trial, so the default configuration should come first.

  Args:
    selected: Output of `select`.
    rule: The same rule; ``last`` tunes on source validation as ``source_val`` does.
    metric: As in `select`.

  Returns:
    The kept records, order kept. ``trials`` is at least the number of trials seen, so
    that a table owns up to the search.

  Raises:
    ValueError: Unknown rule, no records, or a record without the metric.

  Example:
    >>> runs = [{"method": "mer", "target": "d", "dataset": "x", "hyper": {"w": w},
    ...          "metrics": {"val/accuracy": v}} for w, v in ((0.0, 0.5), (0.1, 0.6))]
    >>> [(r["hyper"], r["trials"]) for r in best_trial(runs)]
    [({'w': 0.1}, 2)]
  """
  selected = list(selected)
  _check_rule(selected, rule)
  split = _LOOKS_AT.get(rule, "val")

  def score(trial: list[AnyRecord]) -> tuple[float, float]:
    mean = sum(record_score(r, split, metric) for r in trial) / len(trial)
    return mean, sum(record_tie_break(r, split) for r in trial) / len(trial)

  cells = group_by(selected, _cell)
  kept = {}
  for name, cell in cells.items():
    trials = group_by(cell, setting)
    kept[name] = max(trials, key=lambda k, t=trials: score(t[k])), len(trials)
  out = []
  for record in selected:
    best, count = kept[_cell(record)]
    if setting(record) == best:
      out.append({**record, "trials": max(record.get("trials", 1), count)})
  return out


def _cell(record: AnyRecord) -> tuple[Any, ...]:
  lists = tuple(tuple(record.get(name, ())) for name in ("modalities", "sources"))
  return record["dataset"], *lists, record["method"], record["target"]


def single_sources(records: Iterable[AnyRecord]) -> bool:
  """Whether these are pairs of one source and one target, with several of a target."""
  pairs = {(tuple(r.get("sources", ())), r["target"]) for r in records}
  alone = all(len(sources) == 1 for sources, _ in pairs)
  return alone and len(pairs) > len({target for _, target in pairs})


def check_comparable(records: Iterable[AnyRecord]) -> None:
  """Refuses records that must not share a table.

  One table is one dataset in one version, one set of modalities, one protocol
  (``config_hash``), and for each target one set of source domains, or single sources
  throughout.

  Args:
    records: What the table would show.

  Raises:
    ValueError: If there are no records, or names the field, its values and the
      methods that have them.

  Example:
    >>> row = dict(method="erm", dataset="d", modalities=["a"], config_hash="c",
    ...            target="t", sources=["s"])
    >>> check_comparable([row | {"data_version": "1"}, row | {"data_version": "2"}])
    Traceback (most recent call last):
      ...
    ValueError: records of different data_version cannot share a table: '1' (erm); \
'2' (erm).
  """
  records = list(records)
  if not records:
    raise ValueError("Nothing to compare: no records.")

  def refuse_mixed(rows: list[AnyRecord], field: str, where: str = "") -> None:
    values = group_by(rows, lambda r: json.dumps(r[field]))
    if len(values) > 1:
      listed = "; ".join(
        f"{rows[0][field]!r} ({', '.join(sorted({r['method'] for r in rows}))})"
        for rows in values.values()
      )
      raise ValueError(
        f"records of different {field}{where} cannot share a table: {listed}."
      )

  for field in ("dataset", "data_version", "modalities", "config_hash"):
    refuse_mixed(records, field)
  if not single_sources(records):
    for target, rows in group_by(records, lambda r: r["target"]).items():
      refuse_mixed(rows, "sources", f" for target {target!r}")
