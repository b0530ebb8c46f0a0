"""The report of a workdir: tables and plots as pure functions of its records."""

from __future__ import annotations

from collections.abc import Iterable
import math
import os
import pathlib
import re

from mer_dg import evaluation
from mer_dg.evaluation import AnyRecord
from mer_dg.reporting import formats, plots, tables
from mer_dg.reporting.files import write_atomic

_HEADINGS = {
  "last": "Last step (no checkpoint selection)",
  "oracle": "Oracle (checkpoint selected on the target; not a valid result)",
}


def write_report(
  workdir: str | os.PathLike,
  records: Iterable[AnyRecord],
  *,
  metric: str = "accuracy",
  reference: str = "erm",
  title: str = "Results",
  metrics_history: Iterable[AnyRecord] | None = None,
) -> str:
  """Writes ``report/table.{md,csv,tex}`` and the plots of a workdir.

  Each pair of dataset and modality set gets its own table, headed by source-validation
  selection, with ``last`` and ``oracle`` labelled below, and the plots ``targets``,
  ``differences`` (if methods are compared) and ``curves`` (if several steps were
  evaluated), as PNG and SVG, with the dataset in their names if there are several.

  Args:
    workdir: The report goes to its folder ``report``.
    records: All evaluations, e.g. from `read_records`.
    metric: Name without split.
    reference: Method of the paired differences. If it has no records in a table, the
      table has no differences and the report says so.
    title: First heading.
    metrics_history: Rows of training metrics for the curves, see `learning_curves`.

  Returns:
    The Markdown text, fit to be printed.

  Raises:
    ValueError: No records, or records that must not share a table.
  """
  records = list(records)
  if not records:
    raise ValueError("Nothing to report: no records.")
  history = list(metrics_history or ())
  groups = evaluation.group_by(records, _group)
  for rows in groups.values():
    evaluation.check_comparable(rows)  # All of them, before anything is written.
  folder = pathlib.Path(workdir) / "report"
  folder.mkdir(parents=True, exist_ok=True)
  text, built = [f"# {title}\n"], []
  for (dataset, modalities), rows in groups.items():
    name = ""
    if len(groups) > 1:
      text.append(f"## {dataset} ({' + '.join(modalities)})\n")
      name = "-" + re.sub(r"[^A-Za-z0-9.]+", "-", "-".join((dataset, *modalities)))
    compared = any(r["method"] == reference for r in rows)
    of_rule = {
      rule: tables.build_table(
        rows, metric=metric, rule=rule, reference=reference if compared else None
      )
      for rule in evaluation.RULES
    }
    built.extend(of_rule.values())
    head = of_rule["source_val"]
    text.append(_answer(head) if compared else _no_reference(head, reference))
    text.append(formats.to_markdown(head))
    figures = {"targets": plots.target_plot(head)}
    if any(row.differences for row in head.rows):
      figures["differences"] = plots.difference_plot(head)
    if len({r["step"] for r in rows}) > 1:
      own = [r for r in history if _group(r) == (dataset, modalities)]
      figures["curves"] = plots.learning_curves(rows, metric=metric, history=own)
    for stem, figure in figures.items():
      plots.save_figure(figure, folder / f"{stem}{name}")
      text.append(f"![{stem}]({stem}{name}.png)\n")
    for rule, heading in _HEADINGS.items():
      text.append(f"### {heading}\n\n{formats.to_markdown(of_rule[rule])}")
  markdown = "\n".join(text)
  write_atomic(folder / "table.md", markdown)
  write_atomic(folder / "table.csv", formats.to_csv(built))
  latex = "\n".join(formats.to_latex(table) for table in built)
  write_atomic(folder / "table.tex", latex)
  return markdown


def _group(record: AnyRecord) -> tuple[str, tuple[str, ...]]:
  return record["dataset"], tuple(record["modalities"])


def _no_reference(table: tables.Table, reference: str) -> str:
  methods = ", ".join(row.method for row in table.rows)
  return f"No paired difference: no records of {reference} beside {methods}.\n"


def _answer(table: tables.Table) -> str:
  """Did it help, by how much, how sure, and where: one line per method.

  "Better" needs both an adjusted p below 0.05 and an interval without 0.
  """
  sign = -1 if table.metric in evaluation.LOWER_IS_BETTER else 1
  lines = []
  for row in table.rows:
    d = row.difference
    if d is None or math.isnan(d.mean):
      continue
    verdict = "not shown to differ"
    if row.p_holm < 0.05 and (d.low > 0 or d.high < 0):
      verdict = "better" if sign * d.mean > 0 else "worse"
    ahead = sum(sign * t.mean > 0 for t in row.differences.values())
    shown = formats.format_difference(d, row.p_holm, table.metric)
    lines.append(
      f"- **{row.method}** against {table.reference}: **{verdict}**; {shown} "
      f"over {d.n} pairs; ahead on {ahead} of {len(row.differences)} targets."
    )
  return "\n".join(lines) + "\n" if lines else ""
