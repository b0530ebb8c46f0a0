"""The report of a workdir: tables, plots and a page as functions of its records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import os
import pathlib
import re
from typing import TYPE_CHECKING

from mer_dg import protocol
from mer_dg.protocol import AnyRecord
from mer_dg.protocol.files import write_atomic
from mer_dg.reporting import (
  embeddings,
  formats,
  overview,
  page,
  plots,
  reliance,
  stress,
  tables,
  verdict,
)
from mer_dg.reporting.maps import EmbeddingMaps, read_maps

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_HEADINGS = {
  "source_val": "Checkpoint selected on source validation",
  "repaired_val": "Checkpoint selected on source validation, modalities re-paired",
  "last": "Last step (no checkpoint selection)",
  "leave_one_source_out": "Setting and step chosen on left-out sources",
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
  commands: Sequence[str] = (),
  left_out: Sequence[str] = (),
  inner: Iterable[AnyRecord] = (),
  rule: str = "source_val",
) -> str:
  """Writes ``report/index.html``, ``report/table.{md,csv,tex}`` and the plots.

  Each dataset, modality set and protocol gets its own table, headed by selection by
  ``rule``, with other rules, ``last`` and ``oracle`` labelled below, and the plots
  ``targets``, ``differences`` (if methods are compared), ``ranks`` (at least 3 methods
  on 2 targets), ``curves`` (if several steps were evaluated), ``missing``,
  ``corrupted`` and ``reliability`` (if recorded) and ``embedding_map_<method>`` (if
  `maps.write_maps` has left a file in the folder), as PNG and SVG, with what the table
  is of in their names if there are several. The page holds all of it and needs neither
  network nor script.

  Args:
    workdir: The report goes to its folder ``report``.
    records: All evaluations, e.g. from `read_records`.
    metric: Name without split.
    reference: Method of the paired differences. If it has no records in a table, the
      table has no differences and the report says so.
    title: First heading.
    metrics_history: Rows of training metrics for the curves, see `learning_curves`.
    commands: Commands that made the records, shown on the page as they are.
    left_out: Runs that are in no table, and why, one line each.
    inner: Evaluations of inner runs, each of which leaves out one more domain; with
      them there is a table of leave-one-source-out selection.
    rule: Of the headline, one of `protocol.SOURCE_RULES`.

  Returns:
    The Markdown text, fit to be printed.

  Raises:
    ValueError: No records, or records that must not share a table.
  """
  records = list(records)
  if not records:
    raise ValueError("Nothing to report: no records.")
  history, inner = list(metrics_history or ()), list(inner)
  folder = pathlib.Path(workdir) / "report"
  maps = read_maps(folder)
  groups = {
    group: protocol.name_pairs(rows)
    for group, rows in protocol.group_by(records, _group).items()
  }
  for rows in groups.values():
    protocol.check_comparable(rows)  # All of them, before anything is written.
  sections = [
    _section(
      rows,
      metric,
      reference,
      history=[r for r in history if _group(r) == group],
      inner=[r for r in inner if _group(r) == group],
      maps=maps if maps is not None and _shows(maps, rows[0]) else None,
      headline=rule,
    )
    for group, rows in groups.items()
  ]
  html = page.render(
    sections, title=title, reference=reference, commands=commands, left_out=left_out
  )
  folder.mkdir(parents=True, exist_ok=True)
  text = [f"# {title}\n"]
  built = [table for section in sections for table in section.tables.values()]
  latex = [formats.to_latex(table) for table in built]
  heads = [section.head for section in sections]
  if len(heads) > 1:
    text += _overview(heads, folder)
    latex = [overview.to_latex(heads), *latex]
  for section in sections:
    name = ""
    if len(groups) > 1:
      text.append(f"## {section.name}\n")
      name = "-" + re.sub(r"[^A-Za-z0-9.]+", "-", section.name).strip("-")
    text += _markdown(section, folder, name, reference)
  if left_out:
    lines = "\n".join(f"- {line}" for line in left_out)
    text.append(f"### Left out\n\n{lines}\n")
  markdown = "\n".join(text)
  write_atomic(folder / "table.md", markdown)
  write_atomic(folder / "table.csv", formats.to_csv(built))
  write_atomic(folder / "table.tex", "\n".join(latex))
  write_atomic(folder / "index.html", html)
  return markdown


def _group(record: AnyRecord) -> tuple[str, tuple[str, ...], str]:
  assigned = record.get("protocol", protocol.PROTOCOLS[0])
  return record["dataset"], tuple(record["modalities"]), assigned


def _shows(maps: EmbeddingMaps, record: AnyRecord) -> bool:
  """Whether the maps are of the networks of this table."""
  modalities = {m.modality for m in maps.maps}
  return (maps.dataset, modalities) == (record["dataset"], set(record["modalities"]))


def _section(
  rows: Sequence[AnyRecord],
  metric: str,
  reference: str,
  *,
  history: list[AnyRecord],
  inner: list[AnyRecord],
  maps: EmbeddingMaps | None,
  headline: str,
) -> page.Section:
  compared = any(r["method"] == reference for r in rows)
  rules = [*protocol.RULES, *(["leave_one_source_out"] if inner else [])]
  if not all(f"val/repaired/{metric}" in r["metrics"] for r in rows):
    rules.remove("repaired_val")  # Records older than this rule.
  of_rule = {
    rule: tables.build_table(
      rows,
      metric=metric,
      rule=rule,
      reference=reference if compared else None,
      inner=inner,
    )
    for rule in rules
  }
  methods = [row.method for row in of_rule[headline].rows]
  return page.Section(
    records=rows,
    tables=of_rule,
    missing=stress.missing_modality(
      rows, metric=metric, methods=methods, rule=headline
    ),
    corrupted=stress.corrupted(rows, metric=metric, methods=methods, rule=headline),
    reliability=stress.reliability(rows, metric=metric, methods=methods, rule=headline),
    history=history,
    inside=embeddings.representation(
      rows, metric=metric, methods=methods, rule=headline
    ),
    maps=maps,
    rule=headline,
    reliance=reliance.reliance(rows, metric=metric, methods=methods, rule=headline),
  )


def _overview(heads: list[tables.Table], folder: pathlib.Path) -> list[str]:
  """Text of all tables in one; writes its plots."""
  text = [f"## Overview\n\n{overview.to_markdown(heads)}"]
  figures = {}
  if plots.can_compare(heads):
    figures["overview"] = plots.overview_plot(heads)
  pooled = overview.pooled(heads)
  if pooled is not None and plots.can_rank(pooled):
    figures["overview_ranks"] = plots.rank_plot(pooled)
  for stem, figure in figures.items():
    plots.save_figure(figure, folder / stem)
    text.append(f"![{stem}]({stem}.png)\n")
  return text


def _markdown(
  section: page.Section, folder: pathlib.Path, name: str, reference: str
) -> list[str]:
  """Text of one section; writes its plots."""
  head = section.head
  compared = any(row.method == reference for row in head.rows)
  text = [_answer(head) if compared else _no_reference(head, reference)]
  text.append(formats.to_markdown(head))
  for stem, figure in _figures(section).items():
    plots.save_figure(figure, folder / f"{stem}{name}")
    text.append(f"![{stem}]({stem}{name}.png)\n")
  if section.reliance is not None:
    table = formats.pipe_table(*reliance.cell_texts(section.reliance))
    text.append(f"### Leaning on pairings\n\n{table}\n\n{reliance.CAPTION}\n")
  for rule, heading in _HEADINGS.items():
    if rule in section.tables and rule != section.rule:
      text.append(f"### {heading}\n\n{formats.to_markdown(section.tables[rule])}")
  return text


def _figures(section: page.Section) -> dict[str, Figure]:
  head = section.head
  methods = [row.method for row in head.rows]
  figures = {"targets": plots.target_plot(head)}
  if any(row.differences for row in head.rows):
    figures["differences"] = plots.difference_plot(head)
  if plots.can_rank(head):
    figures["ranks"] = plots.rank_plot(head)
  if len({r["step"] for r in section.records}) > 1:
    figures["curves"] = plots.learning_curves(
      section.records, metric=head.metric, history=section.history, methods=methods
    )
  if section.missing is not None:
    figures["missing"] = plots.missing_plot(section.missing)
  if section.corrupted is not None:
    figures["corrupted"] = plots.severity_plot(section.corrupted)
  if section.reliability is not None:
    figures["reliability"] = plots.reliability_plot(section.reliability)
  if section.maps is not None:
    for training in section.maps.trainings:
      stem = re.sub(r"[^A-Za-z0-9._-]+", "-", f"embedding_map_{training}")
      figures[stem] = plots.embedding_map(section.maps, training)
  return figures


def _no_reference(table: tables.Table, reference: str) -> str:
  methods = ", ".join(row.method for row in table.rows)
  return f"No paired difference: no records of {reference} beside {methods}.\n"


def _answer(table: tables.Table) -> str:
  """Did it help, by how much, how sure, and where: one line per method."""
  lines = []
  for v in verdict.verdicts(table):
    shown = formats.format_difference(v.difference, v.p, table.metric)
    lines.append(
      f"- **{v.method}** against {table.reference}: **{v.said}**; {shown} "
      f"over {v.difference.n} pairs; ahead on {v.ahead} of {len(v.targets)} targets."
    )
  return "\n".join(lines) + "\n" if lines else ""
