"""Records to what a prediction draws from which samples came together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses

from mer_dg import protocol
from mer_dg.protocol import AnyRecord, Interval
from mer_dg.reporting import formats, stress


@dataclasses.dataclass(frozen=True)
class Reliance:
  """Source validation as it is and with modalities re-paired within class.

  Attributes:
    metric: Name without split.
    methods: ``{method: (validation, re-paired, their difference, target)}``, means over
      targets.
  """

  metric: str
  methods: dict[str, tuple[Interval, Interval, Interval, Interval]]


def reliance(
  records: Iterable[AnyRecord],
  *,
  metric: str = "accuracy",
  rule: str = "source_val",
  methods: Sequence[str] | None = None,
) -> Reliance | None:
  """What each method loses on the sources when modalities are re-paired.

  Args:
    records: All evaluations of all runs of one dataset.
    metric: Name without split.
    rule: Selection rule.
    methods: Their order; by default that of appearance.

  Returns:
    The numbers; ``None`` for a single modality, which cannot be re-paired, and for
    records without ``val/repaired/<metric>``.

  Raises:
    ValueError: As `protocol.select`.

  Example:
    >>> run = dict(run_id="r", method="erm", dataset="d", modalities=["a", "b"], step=1,
    ...   target="t", seed=0, split_seed=0, hyper={}, sources=["s"])
    >>> found = reliance([run | {"metrics": {"val/accuracy": 0.75,
    ...   "val/repaired/accuracy": 0.25, "target/accuracy": 0.5}}])
    >>> [part.mean for part in found.methods["erm"]]
    [0.75, 0.25, 0.5, 0.5]
  """
  records, recorded = list(records), f"val/repaired/{metric}"
  whole = all(recorded in r["metrics"] and len(r["modalities"]) > 1 for r in records)
  if not records or not whole:
    return None
  selected, _ = stress.where_recorded(records, metric, rule, ("val/repaired/",))
  names = (f"val/{metric}", recorded, "lost", f"target/{metric}")
  found = {}
  for method, own in stress.by_method(selected, methods).items():
    rows = [{**r, "metrics": _with_lost(r["metrics"], metric)} for r in own]
    mean = lambda name, rows=rows, method=method: protocol.summarize(
      protocol.collect_scores(rows, name)[method]
    )
    val, repaired, lost, target = map(mean, names)
    found[method] = (val, repaired, lost, target)
  return Reliance(metric, found)


def _with_lost(metrics: Mapping[str, float], metric: str) -> dict[str, float]:
  lost = metrics[f"val/{metric}"] - metrics[f"val/repaired/{metric}"]
  return {**metrics, "lost": lost}


def cell_texts(found: Reliance) -> tuple[list[str], list[list[str]]]:
  """Header, and one line per method."""
  header = ["method", "source val.", "re-paired", "lost", "target"]
  body = []
  for method, (val, repaired, lost, target) in found.methods.items():
    shown = [formats.format_interval(x, found.metric) for x in (val, repaired)]
    change = formats.format_change(lost.mean, found.metric)
    last = formats.format_interval(target, found.metric)
    body.append([method, *shown, change, last])
  return header, body


CAPTION = (
  "Source validation, and the same rows with each modality from another sample of the "
  "class (of another source domain where possible). What is lost was drawn from which "
  "samples came together, and a new domain need not keep that: large is fusion "
  "overfitting, about 0 means that accidental pairings are not what breaks here."
)
