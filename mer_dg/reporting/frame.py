"""Records to one long frame: the door between files and all that is shown."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
import functools
from typing import Any

import pandas as pd

from mer_dg import protocol
from mer_dg.protocol import AnyRecord, Interval

# What a number owns up to; then where its evaluation is, and what it measures.
_FIELDS = ("dataset", "data_version", "protocol", "method", "target", "seed")
_FIELDS += ("split_seed", "selection", "trials", "step", "run_id")
COLUMNS = (*_FIELDS, "modalities", "unit", "split", "condition", "metric", "value")
_SIDES = ("val", "target")


@functools.cache
def _parts(name: str) -> tuple[str, str, str]:
  """Split, condition and metric of a recorded name; a modality may contain a slash."""
  first, _, rest = name.partition("/")
  middle, _, last = rest.rpartition("/")
  if first == "representation":  # representation/<m>/<metric>[/<side>]
    side = last if last in _SIDES else ""
    modality, _, metric = (middle if side else rest).rpartition("/")
    return side, f"embeddings/{modality}", metric
  if first in (*_SIDES, "train"):
    return first, middle, last
  return "", rest, first  # entropy/<m>, effective_rank/<m>


def to_frame(records: Iterable[AnyRecord]) -> pd.DataFrame:
  """One row for each metric of each evaluation.

  ``target/without_a/accuracy`` becomes split ``target``, condition ``without_a`` (empty
  where nothing was done to the input) and metric ``accuracy``. ``unit`` is one
  repetition, ``(seed, split_seed)``, with the source where targets have single sources:
  equal units of two methods are pairs.

  Example:
    >>> row = dict(method="erm", target="t", seed=0, split_seed=1, step=5, run_id="r",
    ...   dataset="toy", data_version="1", modalities=["a"], sources=["s"], trials=1,
    ...   metrics={"val/accuracy": 0.9, "target/without_a/accuracy": 0.5})
    >>> to_frame([row])[["method", "unit", "split", "condition", "metric", "value"]]
      method    unit   split  condition    metric  value
    0    erm  (0, 1)     val             accuracy    0.9
    1    erm  (0, 1)  target  without_a  accuracy    0.5
  """
  records = list(records)
  pairs = protocol.single_sources(records)
  out: list[tuple[Any, ...]] = []
  for r in records:
    unit = (r["seed"], r["split_seed"], *(r["sources"] if pairs else ()))
    own = (*(r.get(field, "") for field in _FIELDS), tuple(r["modalities"]), unit)
    out += [(*own, *_parts(name), value) for name, value in r["metrics"].items()]
  return pd.DataFrame(out, columns=list(COLUMNS))


def choose(
  records: Iterable[AnyRecord],
  rule: str = "source_val",
  *,
  metric: str = "accuracy",
  inner: Iterable[AnyRecord] = (),
) -> list[dict[str, Any]]:
  """The one evaluation of each run that a rule shows, of the setting that it prefers.

  Args:
    records: All evaluations of one table.
    rule: One of `protocol.RULES`, or ``leave_one_source_out``.
    metric: Name without split.
    inner: Inner runs, for ``leave_one_source_out`` alone.

  Raises:
    ValueError: As `protocol.select`; an evaluation without ``target/<metric>``.
  """
  if rule == "leave_one_source_out":
    chosen = protocol.select_leave_one_source_out(records, inner, metric=metric)
  else:
    chosen = protocol.select(records, rule, metric=metric)
    chosen = protocol.best_trial(chosen, rule, metric=metric)
  for record in chosen:
    protocol.metric_value(record, f"target/{metric}")
  return chosen


def pick(
  frame: pd.DataFrame, metric: str, split: str = "target", condition: str = ""
) -> pd.DataFrame:
  """The rows of one metric, split and condition."""
  same = (frame["metric"] == metric) & (frame["split"] == split)
  return frame[same & (frame["condition"] == condition)]


def scores(rows: pd.DataFrame) -> dict[str, dict[str, dict[Hashable, float]]]:
  """``{method: {target: {unit: value}}}`` of one metric, as statistics take them.

  Raises:
    ValueError: If two runs claim the same place.
  """
  for _, twice in rows[rows.duplicated(["method", "target", "unit"])].iterrows():
    raise ValueError(
      f"two runs of method {twice['method']!r}, target {twice['target']!r}, "
      f"(seed, split_seed) {twice['unit']}: a table shows one."
    )
  found: dict[str, dict[str, dict[Hashable, float]]] = {}
  for row in rows[["method", "target", "unit", "value"]].itertuples(index=False):
    found.setdefault(row.method, {}).setdefault(row.target, {})[row.unit] = row.value
  return found


def intervals(rows: pd.DataFrame, by: Sequence[str] = ()) -> dict[Any, Interval]:
  """Mean over targets with its interval, for each group and method.

  Returns:
    ``{method: interval}``, or ``{(*group, method): interval}``; in order of appearance.
  """
  if not by:
    return {m: protocol.summarize(values) for m, values in scores(rows).items()}
  found: dict[Any, Interval] = {}
  for key, group in rows.groupby(list(by), sort=False):
    own = intervals(group)
    found |= {(*key, method): own[method] for method in own}  # ty: ignore[not-iterable]
  return found


def curve(rows: pd.DataFrame) -> dict[int, Interval]:
  """``{step: mean over targets}`` of one metric, with its interval over units."""
  means = rows.groupby(["step", "seed", "split_seed"])["value"].mean()
  return {s: protocol.mean_interval(v) for s, v in means.groupby(level="step")}


# What is off counts like what is not there, as in `protocol.run_id`.
_OFF = ("0", "", "none", "off", "False")


def _chosen_per_target(rows: Sequence[AnyRecord], settings) -> bool:
  """Whether runs differ because the sources of each target chose a setting for it."""
  of: dict[Any, set[str]] = {}
  for row, own in zip(rows, settings, strict=True):
    target = (row.get("target"), tuple(row.get("sources", ())))
    of.setdefault(target, set()).add(str(sorted(own.items())))
  searched = all(row["trials"] > 1 for row in rows)
  return searched and all(len(found) == 1 for found in of.values())


def name_settings(records: Iterable[AnyRecord]) -> list[dict[str, Any]]:
  """Records with methods renamed where one name stands for several settings.

  ``erm`` run with two fusions becomes ``erm [network.fusion=gated]`` and so on: what
  differs is said, and nothing is pooled that is not the same. Settings are ``tags``,
  and hyperparameters of runs that no search chose.

  Args:
    records: Evaluations of one table.

  Example:
    >>> rows = [{"method": "mer", "trials": 1, "hyper": {"w": w, "lr": 1}}
    ...         for w in (0.1, 0.2)]
    >>> [row["method"] for row in name_settings(rows)]
    ['mer [w=0.1]', 'mer [w=0.2]']
  """
  rows: list[dict[str, Any]] = [dict(record) for record in records]
  for method in dict.fromkeys(r["method"] for r in rows):
    own = [r for r in rows if r["method"] == method]
    settings = []
    for row in own:
      numbers = row["hyper"].items() if row["trials"] == 1 else ()
      found = {k: f"{v:.12g}" for k, v in numbers} | row.get("tags", {})
      settings.append({k: v for k, v in found.items() if v not in _OFF})
    names = dict.fromkeys(k for s in settings for k in s)
    if _chosen_per_target(own, settings):
      continue
    differ = [k for k in names if len({s.get(k) for s in settings}) > 1]
    for row, on in zip(own, settings, strict=True):
      shown = [k for k in differ if k in on or row["trials"] == 1]
      said = ", ".join(f"{k}={on.get(k, 'off')}" for k in shown)
      if differ:
        row["method"] = f"{method} [{said or 'searched'}]"
  return rows
