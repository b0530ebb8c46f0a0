"""Records to numbers under stress: modalities missing or corrupted, calibration.

All read optional metrics of the selected records; a method whose records lack them
is left out. What only the last evaluations have (those that ``--mode=diagnose``
examines) is read there, and the result says so by its rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

from mer_dg import evaluation, protocol
from mer_dg.protocol import AnyRecord, Interval

ALL_PRESENT = "all present"
# A missing modality is declared missing, or gets the mean embedding in its place.
_WITHHELD = {"target/without_": "without ", "target/mean_for_": "mean for "}
_CORRUPTED = "target/corrupted/"


@dataclasses.dataclass(frozen=True)
class MissingModality:
  """Target score with modalities missing, mean over targets.

  Attributes:
    metric: Name without split.
    rule: Selection rule.
    conditions: ``all present``, then ``without <modality>``, then ``mean for
      <modality>``, the mean embedding of source training rows in its place.
    methods: ``{method: {condition: interval}}``.
  """

  metric: str
  rule: str
  conditions: tuple[str, ...]
  methods: dict[str, dict[str, Interval]]


def missing_modality(
  records: Iterable[AnyRecord],
  *,
  metric: str = "accuracy",
  rule: str = "source_val",
  methods: Sequence[str] | None = None,
) -> MissingModality | None:
  """Collects ``target/{without_,mean_for_}<modality>[+<modality>]/<metric>``.

  Args:
    records: All evaluations of all runs of one dataset.
    metric: Name without split.
    rule: Selection rule; ``last`` where only the last evaluations have all metrics.
    methods: Their order; by default that of appearance.

  Returns:
    The table, ``None`` if no record has such a metric.

  Raises:
    ValueError: As `protocol.select`.

  Example:
    >>> run = dict(run_id="r", method="erm", dataset="d", modalities=["a", "b"],
    ...   target="t", seed=0, split_seed=0, step=1, hyper={})
    >>> metrics = {"val/accuracy": 0.9, "target/accuracy": 0.5,
    ...            "target/without_b/accuracy": 0.2}
    >>> found = missing_modality([run | {"metrics": metrics}])
    >>> {k: v.mean for k, v in found.methods["erm"].items()}
    {'all present': 0.5, 'without b': 0.2}
  """
  selected, rule = where_recorded(records, metric, rule, tuple(_WITHHELD))
  names = _conditions(selected, metric)
  if not names:
    return None
  found: dict[str, dict[str, Interval]] = {}
  for method, rows in by_method(selected, methods).items():
    cells = {}
    for condition, name in {ALL_PRESENT: f"target/{metric}", **names}.items():
      interval = over_targets(rows, name)
      if interval is not None:
        cells[condition] = interval
    if len(cells) > 1:
      found[method] = cells
  return MissingModality(metric, rule, (ALL_PRESENT, *names), found)


def _conditions(selected: Sequence[AnyRecord], metric: str) -> dict[str, str]:
  """``{condition: metric name}``, in the order of the config, then by name."""
  suffix, found = f"/{metric}", {}
  for prefix, shown in _WITHHELD.items():
    names = {k for r in selected for k in r["metrics"]
             if k.startswith(prefix) and k.endswith(suffix)}  # fmt: skip
    order = [f"{prefix}{m}{suffix}" for m in selected[0]["modalities"]]
    for k in [k for k in order if k in names] + sorted(names.difference(order)):
      found[shown + k[len(prefix) : -len(suffix)].replace("+", " + ")] = k
  return found


@dataclasses.dataclass(frozen=True)
class Corrupted:
  """Target score against the severity of corruptions, mean over targets.

  Attributes:
    metric: Name without split.
    rule: Selection rule.
    panels: ``{(modality, corruption): {method: {severity: interval}}}``; severity 0 is
      the clean input.
  """

  metric: str
  rule: str
  panels: dict[tuple[str, str], dict[str, dict[int, Interval]]]


def corrupted(
  records: Iterable[AnyRecord],
  *,
  metric: str = "accuracy",
  rule: str = "source_val",
  methods: Sequence[str] | None = None,
) -> Corrupted | None:
  """Collects ``target/corrupted/<modality>/<corruption>/<severity>/<metric>``.

  Args:
    records: All evaluations of all runs of one dataset.
    metric: Name without split.
    rule: Selection rule.
    methods: Their order; by default that of appearance.

  Returns:
    The scores, ``None`` if no record has such a metric.

  Raises:
    ValueError: As `protocol.select`.

  Example:
    >>> run = dict(run_id="r", method="erm", dataset="d", modalities=["a"],
    ...   target="t", seed=0, split_seed=0, step=1, hyper={})
    >>> metrics = {"val/accuracy": 0.9, "target/accuracy": 0.5,
    ...            "target/corrupted/a/fog/3/accuracy": 0.2}
    >>> found = corrupted([run | {"metrics": metrics}]).panels["a", "fog"]["erm"]
    >>> {severity: interval.mean for severity, interval in found.items()}
    {0: 0.5, 3: 0.2}
  """
  selected, rule = where_recorded(records, metric, rule, (_CORRUPTED,))
  panels: dict[tuple[str, str], dict[str, dict[int, Interval]]] = {}
  for (modality, kind), names in _severities(selected, metric).items():
    panel = panels.setdefault((modality, kind), {})
    for method, rows in by_method(selected, methods).items():
      curve = {s: over_targets(rows, name) for s, name in names.items()}
      found = {s: interval for s, interval in curve.items() if interval is not None}
      if found:
        clean = over_targets(rows, f"target/{metric}")
        panel[method] = found if clean is None else {0: clean, **found}
  return Corrupted(metric, rule, panels) if panels else None


def _severities(
  selected: Sequence[AnyRecord], metric: str
) -> dict[tuple[str, str], dict[int, str]]:
  """``{(modality, corruption): {severity: name}}``, in the order of the config."""
  suffix = f"/{metric}"
  found: dict[tuple[str, str], dict[int, str]] = {}
  for name in sorted({k for r in selected for k in r["metrics"]}):
    if name.startswith(_CORRUPTED) and name.endswith(suffix):
      inner = name[len(_CORRUPTED) : -len(suffix)]
      modality, kind, severity = inner.rsplit("/", 2)
      found.setdefault((modality, kind), {})[int(severity)] = name
  order = list(selected[0]["modalities"])
  place = lambda m: order.index(m) if m in order else len(order)
  return dict(sorted(found.items(), key=lambda item: (place(item[0][0]), item[0])))


def over_targets(rows: Sequence[AnyRecord], name: str) -> Interval | None:
  """Mean over targets of the runs of one method that have the metric."""
  own = [r for r in rows if name in r["metrics"]]
  if not own:
    return None
  return protocol.summarize(protocol.collect_scores(own, name)[own[0]["method"]])


@dataclasses.dataclass(frozen=True)
class Bin:
  """One bin of confidence.

  Attributes:
    share: Of all predictions, in [0, 1].
    confidence: Their mean; NaN if there are none.
    accuracy: Share of right ones among them; NaN if there are none.
  """

  share: float
  confidence: float
  accuracy: float


@dataclasses.dataclass(frozen=True)
class Reliability:
  """Confidence and accuracy of the target predictions of several methods.

  Attributes:
    rule: Selection rule.
    methods: ``{method: bins in order of confidence}``.
  """

  rule: str
  methods: dict[str, tuple[Bin, ...]]


def reliability(
  records: Iterable[AnyRecord],
  *,
  metric: str = "accuracy",
  rule: str = "source_val",
  methods: Sequence[str] | None = None,
) -> Reliability | None:
  """Pools ``target/reliability/...`` (`evaluation.reliability_metrics`) over runs.

  Every run counts the same; within a bin runs weigh as many predictions as they have
  there.

  Args:
    records: All evaluations of all runs of one dataset.
    metric: What selection looks at.
    rule: Selection rule.
    methods: Their order; by default that of appearance.

  Returns:
    The bins, ``None`` if no record has such metrics.

  Raises:
    ValueError: As `protocol.select`.

  Example:
    >>> found = evaluation.reliability_metrics(jnp.zeros((2, 2)), jnp.array([0, 0]))
    >>> metrics = {f"target/{k}": float(v) for k, v in found.items()}
    >>> run = dict(run_id="r", method="erm", dataset="d", modalities=["a"], step=1,
    ...   target="t", hyper={}, metrics=metrics | {"val/accuracy": 1.0})
    >>> reliability([run]).methods["erm"][7]
    Bin(share=1.0, confidence=0.5, accuracy=1.0)
  """
  found = {}
  for method, rows in by_method(_selected(records, metric, rule), methods).items():
    own = [r["metrics"] for r in rows if _field(0, "share") in r["metrics"]]
    if own:
      found[method] = tuple(_pooled(own, b) for b in range(evaluation.NUM_BINS))
  return Reliability(rule, found) if found else None


def _field(b: int, name: str) -> str:
  return f"target/reliability/{b:02d}/{name}"


def _pooled(rows: Sequence[Mapping[str, float]], b: int) -> Bin:
  shares = [m[_field(b, "share")] for m in rows]
  total = sum(shares)
  if not total > 0:  # NaN too, of a run without target rows.
    return Bin(0.0, float("nan"), float("nan"))

  def mean(name: str) -> float:
    # An empty bin of one run has NaN for its mean; it weighs nothing.
    parts = [s * m[_field(b, name)] for s, m in zip(shares, rows, strict=True) if s > 0]
    return sum(parts) / total

  return Bin(total / len(rows), mean("confidence"), mean("accuracy"))


def _selected(
  records: Iterable[AnyRecord], metric: str, rule: str
) -> list[dict[str, Any]]:
  chosen = protocol.select(records, rule, metric=metric)
  return protocol.best_trial(chosen, rule, metric=metric)


def where_recorded(
  records: Iterable[AnyRecord], metric: str, rule: str, prefixes: tuple[str, ...]
) -> tuple[list[dict[str, Any]], str]:
  """The selected evaluations, or the last ones if only they have all such metrics."""
  records = list(records)
  count = lambda rows: sum(k.startswith(prefixes) for r in rows for k in r["metrics"])
  selected, last = (_selected(records, metric, name) for name in (rule, "last"))
  return (last, "last") if count(last) > count(selected) else (selected, rule)


def by_method(
  selected: Sequence[AnyRecord], methods: Sequence[str] | None
) -> dict[str, list[AnyRecord]]:
  groups = protocol.group_by(selected, lambda r: r["method"])
  return {m: groups[m] for m in methods or groups if m in groups}
