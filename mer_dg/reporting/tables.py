"""Methods x targets: the numbers of one selection rule, and their LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import math
import re
from typing import Any

import pandas as pd

from mer_dg import protocol
from mer_dg.protocol import AnyRecord, Difference, Interval
from mer_dg.reporting import frame, names

Grid = tuple[list[str], list[list[str]]]  # Header and lines.


@dataclasses.dataclass(frozen=True)
class Row:
  """One method; what is per target lacks the targets without a run."""

  method: str
  source_val: Interval | None  # Over targets and seeds; None if not recorded.
  source_vals: dict[str, Interval]  # Per target, over seeds.
  targets: dict[str, Interval]  # Target score per target, over seeds.
  mean: Interval | None  # Over targets; None unless every target has a run.
  differences: dict[str, Difference]  # Paired, to the reference.
  difference: Difference | None  # Over targets; None without pairs on every one.
  p_holm: float  # Adjusted over the methods of the table; NaN if there is none.
  trials: int  # Most hyperparameter settings tried for a target.
  values: dict[str, dict[Any, float]]  # {target: {unit: value}}, what all is made of.

  @property
  def sure(self) -> bool:
    """Whether both the adjusted p and the interval tell it from the reference."""
    if self.difference is None or not self.p_holm < names.SIGNIFICANCE:
      return False
    low, high = self.bounds
    return low > 0 or high < 0

  @property
  def bounds(self) -> tuple[float, float]:
    """Of the difference over domains; of a single target over its seeds."""
    d = self.difference
    if len(self.differences) == 1:
      d = names.pointed(next(iter(self.differences.values())))
    return (d.low, d.high) if d else (math.nan, math.nan)


@dataclasses.dataclass(frozen=True)
class Table:
  """Methods x targets for one dataset, metric and selection rule."""

  metric: str  # Name without split.
  rule: str
  reference: str | None  # Method of the paired differences.
  dataset: str
  data_version: str
  modalities: tuple[str, ...]  # In the order of the config.
  protocol: str  # How domains were assigned, one of `protocol.PROTOCOLS`.
  targets: tuple[str, ...]  # Held-out domains, the columns.
  rows: tuple[Row, ...]  # The methods, reference first.
  devices: tuple[str, ...]
  revisions: tuple[str, ...]  # Of the code that ran.

  @property
  def data(self) -> str:
    """``dataset (a + b)``."""
    return f"{self.dataset} ({' + '.join(self.modalities)})"

  @property
  def name(self) -> str:
    """The data, and the protocol if it is not the usual one."""
    usual = self.protocol == protocol.PROTOCOLS[0]
    return self.data + ("" if usual else f", {self.protocol.replace('_', ' ')}")

  @property
  def scores(self) -> dict[str, dict[str, dict[Any, float]]]:
    """``{method: {target: {unit: value}}}``."""
    return {row.method: row.values for row in self.rows}

  @property
  def compared(self) -> list[Row]:
    """The rows with a difference over all targets."""
    return [row for row in self.rows if row.difference is not None]

  def lines(self, each: str, whole: str) -> dict[str, dict[str, Interval]]:
    """``{target: {method: interval}}`` and the mean: two fields of the rows, drawn."""
    found: dict[str, dict[str, Interval]] = {t: {} for t in self.targets}
    if len(self.targets) > 1:
      found["mean"] = {}
    for row in self.rows:
      of_row = {t: names.pointed(v) for t, v in getattr(row, each).items()}
      of_row |= {"mean": getattr(row, whole)} if "mean" in found else {}
      for line, value in of_row.items():
        if value is not None:
          found[line][row.method] = value
    return found


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
    records: All evaluations of all runs of one dataset. A method of several settings
      becomes several (`frame.name_settings`).
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
  inner = list(inner)
  # With inner runs settings are what is still to be chosen.
  records = list(records) if inner else frame.name_settings(records)
  protocol.check_comparable(records)
  chosen = frame.choose(records, rule, metric=metric, inner=inner)
  return summarise(records, chosen, frame.to_frame(chosen), metric, rule, reference)


def summarise(
  records: Sequence[AnyRecord],
  chosen: Sequence[AnyRecord],
  numbers: pd.DataFrame,
  metric: str,
  rule: str,
  reference: str | None,
) -> Table:
  """`build_table` of evaluations that are chosen, and in a frame, already."""
  scores = frame.scores(frame.pick(numbers, metric))
  val = frame.scores(frame.pick(numbers, metric, "val"))
  if reference is not None and reference not in scores:
    raise ValueError(f"reference={reference!r} is not one of {tuple(scores)}.")
  targets = tuple(dict.fromkeys(r["target"] for r in records))
  trials = numbers.groupby("method")["trials"].max()
  has_val = all(f"val/{metric}" in r["metrics"] for r in chosen)
  rows = [
    _row(m, targets, scores, val if has_val else {}, int(trials[m]), reference)
    for m in sorted(scores, key=lambda m: m != reference)  # Stable: reference first.
  ]
  adjusted = protocol.holm([r.difference.p if r.difference else math.nan for r in rows])
  rows = [dataclasses.replace(r, p_holm=p) for r, p in zip(rows, adjusted, strict=True)]
  first = records[0]
  distinct = lambda field: tuple(dict.fromkeys(r[field] for r in chosen))
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
    devices=distinct("device"),
    revisions=distinct("git_revision"),
  )


def _row(method, targets, scores, val, trials, reference) -> Row:
  values = scores[method]
  differences, difference = {}, None
  if reference is not None and method != reference:
    base = scores[reference]
    found = protocol.paired_differences(values, base)
    differences = {t: found[t] for t in targets if t in found}
    if len(differences) == len(targets):
      difference = protocol.paired_difference(values, base)
  per_target = lambda s: {t: protocol.mean_interval(list(v.values())) for t, v in s}
  return Row(
    method=method,
    source_val=protocol.summarize(val[method]) if method in val else None,
    source_vals=per_target(val.get(method, {}).items()),
    targets=per_target(values.items()),
    mean=protocol.summarize(values) if set(values) == set(targets) else None,
    differences=differences,
    difference=difference,
    p_holm=math.nan,
    trials=trials,
    values=values,
  )


def grid(table: Table, *, brief: bool = False) -> Grid:
  """What is asked first comes first: on a phone the last columns are out of sight.

  Args:
    table: Any.
    brief: For a column of a paper: intervals of the mean over targets only, and the
      caption says whom differences are to.
  """
  rows, metric = table.rows, table.metric
  columns: list[tuple[str, Sequence[str]]] = []

  def add(name: str, cells: Sequence[Interval | None], ranked: bool = True) -> None:
    texts = [names.interval(cell, metric) for cell in cells]
    columns.append((name, names.marked(cells, texts, metric) if ranked else texts))

  columns.append(("method", [names.display(row.method) for row in rows]))
  if len(table.targets) > 1:
    add("mean", [row.mean for row in rows])
  if table.reference is not None and len(rows) > 1:
    full = [names.difference(r.difference, r.p_holm, metric) for r in rows]
    texts = [gain(row, metric) or names.DASH for row in rows] if brief else full
    to = "" if brief else f" to {names.display(table.reference)}"
    columns.append((f"difference{to}", texts))
  if not brief and any(row.source_val for row in rows):
    add("source val.", [row.source_val for row in rows], ranked=False)
  for target in table.targets:
    cells = [row.targets.get(target) for row in rows]
    add(target, [names.pointed(cell, math.inf if brief else None) for cell in cells])
  header, cells = zip(*columns, strict=True)
  return list(header), [list(line) for line in zip(*cells, strict=True)]


def gain(row: Row | None, metric: str) -> str:
  """``+2.0*``: difference over all targets, starred where it is sure; empty if none."""
  if row is None or row.difference is None:
    return ""
  return names.number(row.difference.mean, metric, "+") + "*" * row.sure


_LATEX = str.maketrans(
  {c: "\\" + c for c in "&%$#_{}"}
  | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " ", "\r": " "}
  | {"\\": r"\textbackslash{}", "→": r"$\to$", "±": r"$\pm$", names.MINUS: "$-$"}
  | {names.DASH: "--", "<": r"\textless{}", ">": r"\textgreater{}"}
)


# Points: a column of most conferences, a letter of 8-point Computer Modern, and the
# space between two columns of a table.
_COLUMN, _LETTER, _BETWEEN = 234, 4.0, 6


def to_latex(table: Table) -> str:
  r"""A booktabs table that fits a column.

  Held-out domains that do not fit are left out of it, and a second one has them across
  both columns of the page.
  """
  said = f"Target {names.metric_name(table.metric)} on {table.data}; "
  said += f"{names.RULES[table.rule][1]}."
  if table.compared:
    said += f" Difference: paired, to {names.display(table.reference or '')}; *:"
    said += " Holm-adjusted p below 0.05 and a 95 % interval without 0."
  whole, label = grid(table, brief=True), f"{table.name}-{table.rule}"
  header, body = whole
  if _points(whole) <= _COLUMN or len(table.targets) == 1:
    return booktabs(whole, said, label)
  own = len(header) - len(table.targets)
  column = header[:own], [line[:own] for line in body]
  wide = booktabs(whole, said, f"{label}-domains")
  return booktabs(column, said, label) + "\n" + wide


def _points(found: Grid) -> float:
  """How wide a grid is in print."""
  columns = zip(found[0], *found[1], strict=True)
  return sum(_LETTER * max(map(len, cells)) + _BETWEEN for cells in columns)


def booktabs(found: Grid, said: str, label: str) -> str:
  """A grid as a LaTeX table with caption and label; what is wide spans both columns."""
  wrap = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
  cell = lambda text: wrap[getattr(text, "mark", "")] % text.translate(_LATEX)
  header, body = found
  table = pd.DataFrame([[cell(c) for c in line] for line in body])
  name = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-").lower()
  text = table.to_latex(
    index=False,
    escape=False,
    # pandas formats what it is given here.
    header=[cell(h).replace("{", "{{").replace("}", "}}") for h in header],
    column_format="l" + "r" * (len(header) - 1),
    caption=said.translate(_LATEX),
    label=f"tab:{name}",
    position="t",
  )
  small = rf"\footnotesize\setlength{{\tabcolsep}}{{{_BETWEEN // 2}pt}}"
  text = text.replace(r"\begin{tabular}", f"{small}\n\\begin{{tabular}}")
  if _points(found) > _COLUMN:
    text = text.replace("{table}", "{table*}")
  return "% Needs \\usepackage{booktabs}.\n" + text


_TEXT = ("dataset", "data_version", "modalities", "protocol", "selection", "method")
_TEXT += ("target", "source", "metric")


def to_csv(frames: Iterable[pd.DataFrame], metric: str) -> str:
  """One line per selected run: what it is and its scores, raw, at full precision.

  Text that a spreadsheet would take for a formula gets an apostrophe before it.

  Args:
    frames: One per table and selection rule.
    metric: Name without split; column ``source_val`` and ``value``, of the target.
  """
  parts = []
  for rows in frames:
    own = frame.pick(rows, metric)
    val = frame.pick(rows, metric, "val").set_index("run_id")["value"]
    parts.append(own.assign(source_val=own["run_id"].map(val)))
  found = pd.concat(parts)
  source = found["unit"].map(lambda unit: unit[2] if len(unit) > 2 else "")
  found = found.assign(source=source, modalities=found["modalities"].map("+".join))
  for name in _TEXT:
    text = found[name].astype(str)
    risky = text.str.match(r"[=+\-@\t\r]")
    found[name] = text.where(~risky, "'" + text)
  numbers = ["seed", "split_seed", "step", "trials", "source_val", "value"]
  return found[[*_TEXT, *numbers]].to_csv(index=False, lineterminator="\n")
