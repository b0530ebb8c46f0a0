"""The report of a workdir: Markdown, page, CSV, LaTeX and figures from its records.

``templates/report.j2`` says what is shown and in which words, once for Markdown and
page; here is what it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
import functools
import os
import pathlib
import re
import textwrap
from typing import Any, NamedTuple

import jinja2
from matplotlib.figure import Figure
import pandas as pd

from mer_dg import protocol
from mer_dg.protocol import AnyRecord, write_atomic
from mer_dg.reporting import (
  extras,
  figures,
  frame,
  names,
  pooled,
  provenance,
  tables,
  verdict,
)
from mer_dg.reporting import linear as linear_models
from mer_dg.reporting.linear import ModelRow
from mer_dg.reporting.maps import read_maps

Group = tuple[str, tuple[str, ...], str]  # Dataset, modalities, protocol.


class Drawn(NamedTuple):
  """A figure as the template takes it: a file, what it shows, and it for the page."""

  file: str
  label: str
  svg: str


Draw = Callable[..., Drawn]  # (stem, label, figure) -> Drawn


def write_report(
  workdir: str | os.PathLike,
  records: Iterable[AnyRecord],
  *,
  metric: str = "accuracy",
  reference: str = "erm",
  title: str = "Results",
  metrics_history: Iterable[AnyRecord] = (),
  commands: Sequence[str] = (),
  left_out: Sequence[str] = (),
  inner: Iterable[AnyRecord] = (),
  rule: str = "source_val",
  methods: Sequence[str] = (),
  linear: Mapping[Group, Sequence[ModelRow]] | None = None,
  generated: Collection[Group] = (),
) -> str:
  """Writes ``report/``: ``index.html``, ``report.md``, ``table.{csv,tex}``, figures.

  Figures are SVG; those that a paper may show are PDF as well. ``summary.txt`` is what
  ends a command: the verdict, one table, where the page is.

  Each dataset, modality set and protocol gets its own table, headed by selection by
  ``rule``, with the other rules below. The page holds all of it and needs neither
  network nor script.

  Args:
    workdir: The report goes to its folder ``report``.
    records: All evaluations, e.g. from `protocol.read_records`.
    metric: Name without split.
    reference: Method of the paired differences. If it has no records in a table, the
      table has no differences and the report says so.
    title: Name of the experiment.
    metrics_history: More records for the curves, e.g. of training between evaluations.
    commands: Commands that made the records, shown as they are.
    left_out: Runs that diverged, one line each.
    inner: Evaluations of inner runs, each of which leaves out one more domain; with
      them there is a table of leave-one-source-out selection.
    rule: Of the headline, one of `protocol.SOURCE_RULES`.
    methods: Those that were to run; what has no records is named.
    linear: Linear models on the splits of a table, see `group_of`.
    generated: Tables whose data come from a generator: they are never pooled.

  Returns:
    The Markdown text, fit to be printed.

  Raises:
    ValueError: No records, or records that must not share a table.
  """
  records, inner, history = list(records), list(inner), list(metrics_history)
  if not records:
    raise ValueError("Nothing to report: no records.")
  folder = pathlib.Path(workdir) / "report"
  maps = read_maps(folder)
  groups: dict[Group, list[dict[str, Any]]] = {
    # With inner runs settings are what is still to be chosen.
    key: protocol.name_pairs(rows if inner else frame.name_settings(rows))
    for key, rows in protocol.group_by(records, group_of).items()
  }
  for rows in groups.values():
    protocol.check_comparable(rows)  # All of them, before anything is written.
  folder.mkdir(parents=True, exist_ok=True)
  looks = names.looks(r["method"] for rows in groups.values() for r in rows)
  sections = [
    _Section(
      rows,
      metric,
      rule,
      reference,
      [r for r in inner if group_of(r) == key],
      [r for r in history if group_of(r) == key],
      maps if maps is not None and maps.are_of(*key[:2]) else None,
      looks,
      (linear or {}).get(key, ()),
      key in generated,
    )
    for key, rows in groups.items()
  ]
  heads, several = [section.head for section in sections], len(sections) > 1
  files: list[str] = []

  def draw(stem: str, label: str, figure: Figure, paper: bool = False) -> Drawn:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:100].rstrip("-")
    file = f"{stem}-{len(files)}.svg" if f"{stem}.svg" in files else f"{stem}.svg"
    files.append(file)
    svg = figures.to_bytes(figure, "svg")
    write_atomic(folder / file, svg)
    if paper:
      pdf = figures.to_bytes(figure, "pdf")
      write_atomic((folder / file).with_suffix(".pdf"), pdf)
    return Drawn(file, label, figures.inline(svg, f"f{len(files)}", label))

  shown: dict[str, Any] = {
    "name": heads[0].name if not several else ", ".join({t.dataset: 0 for t in heads}),
    "title": title,
    "left_out": left_out,
    "gaps": [gap for s in sections for gap in s.gaps(methods, several)],
    "across": _across(sections, looks, draw) if several else {},
    "sections": [
      s.shown(draw, f"-{s.head.name}" * several, commands) for s in sections
    ],
  }
  text = re.sub(r"\n{3,}", "\n\n", _rendered("report.j2", **shown)).strip() + "\n"
  built = [table for section in sections for table in section.tables.values()]
  latex = [tables.to_latex(table) for table in built]
  if several:
    across = shown["across"]
    latex.insert(0, tables.booktabs(across["grid"], across["name"], "overview"))
  csv = tables.to_csv((f for s in sections for f in s.frames.values()), metric)
  write_atomic(folder / "table.csv", csv)
  write_atomic(folder / "table.tex", "\n".join(latex))
  write_atomic(folder / "report.md", text)
  write_atomic(folder / "summary.txt", _summary(shown, folder))
  write_atomic(folder / "index.html", _rendered("page.html.j2", **shown))
  return text


def group_of(record: AnyRecord) -> Group:
  """The table that a record belongs to: data set, modalities, protocol."""
  assigned = record.get("protocol", protocol.PROTOCOLS[0])
  return record["dataset"], tuple(record["modalities"]), assigned


@functools.cache
def _environment(page: bool) -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("mer_dg.reporting"), autoescape=page, trim_blocks=True
  )
  environment.filters |= {
    "display": names.display,
    "metric": names.metric_name,
    "plain": names.plain,
    "short": names.short_revision,
    "span": lambda n: str(min(n)) if min(n) == max(n) else f"{min(n)} to {max(n)}",
    "tied": _tied,
  }
  return environment


# Columns of a terminal that no line of the summary exceeds.
_COLUMNS = 100


def _summary(shown: Mapping[str, Any], folder: pathlib.Path) -> str:
  """The verdict, one table that fits a terminal, and where the report is."""
  said = _rendered("summary.j2", **shown).splitlines()
  lines = [textwrap.fill(line, _COLUMNS) for line in said if line.strip()]
  across, first = shown["across"], shown["sections"][0]
  grid = across["grid"] if across else first["grids"][first["table"].rule]
  if across and across["pooled"]:
    grid = next(iter(across["pooled"].grids.values()))
  return "\n".join(
    [*lines, "", _narrow(grid), "", f"Report: {folder / 'index.html'}\n"]
  )


def _narrow(grid: tables.Grid) -> str:
  """A grid as text, without the last columns where they do not fit."""
  header, body = grid
  for count in range(len(header), 0, -1):
    align = ["left", *["right"] * (count - 1)]
    table = pd.DataFrame([line[:count] for line in body], columns=header[:count])
    text = table.to_markdown(
      index=False, tablefmt="simple", disable_numparse=True, colalign=align
    )
    if max(map(len, text.splitlines())) <= _COLUMNS:
      break
  return text


def _tied(text: str) -> str:
  """A number stays with its sign; what is escaped already stays so."""
  tied = re.sub(r"( ?±|p (?:=|<|&lt;)) ", lambda m: m[0].replace(" ", "\xa0"), text)
  return type(text)(tied)


def _rendered(template: str, **shown: Any) -> str:
  """The report as Markdown, or as a page where what comes from data is escaped."""
  page = template.endswith(".html.j2")
  shown |= {"names": names, "outcomes": verdict.OUTCOMES, "listed": verdict.listed}
  parts = "page_parts.html.j2" if page else "markdown.j2"
  return _environment(page).get_template(template).render(f=parts, **shown)


class _Section:
  """All that is shown of one dataset, one set of modalities and one protocol."""

  def __init__(
    self,
    records,
    metric,
    rule,
    reference,
    inner,
    history,
    maps,
    looks,
    linear,
    generated,
  ):
    rules = [rule, *(other for other in names.RULES if other != rule)]
    if not inner:
      rules.remove("leave_one_source_out")
    if not all(f"val/re-paired/{metric}" in r["metrics"] for r in records):
      rules = [r for r in rules if r != "re-paired_val"]  # Older than this rule.
    methods = dict.fromkeys(r["method"] for r in records)
    # Of a method with several settings the first is compared with.
    own = [m for m in methods if reference in (m, m.partition(" [")[0])]
    chosen = {r: frame.choose(records, r, metric=metric, inner=inner) for r in rules}
    self.records, self.history, self.maps, self.looks = records, history, maps, looks
    self.rule, self.metric, self.linear = rule, metric, linear
    self.reference = own[0] if own else reference
    self.frames = {r: frame.to_frame(rows) for r, rows in chosen.items()}
    self.tables = {}
    for r in rules:
      found, compared = self.frames[r], own[0] if own else None
      self.tables[r] = tables.summarise(records, chosen[r], found, metric, r, compared)
    self.head = self.tables[rule]
    numbers = {m: frozenset[str]() for m in methods}
    for record in records:
      numbers[record["method"]] |= record["hyper"].keys()
    self.part = pooled.Part(self.head, self.frames[rule], numbers, linear, generated)

  def gaps(self, expected: Sequence[str], several: bool) -> Iterator[str]:
    """Methods without runs, at all or on a target, and with fewer than others."""
    where, scores = f" ({self.head.name})" * several, self.head.scores
    known = {name for m in scores for name in (m, m.partition(" [")[0])}
    for method in expected:
      if method not in known:
        yield f"{names.display(method)}: no runs{where}"
    for target in self.head.targets:
      counts = {m: len(values.get(target, {})) for m, values in scores.items()}
      for method, count in counts.items():
        if count < (most := max(counts.values())):
          of = f"{count} of {most} runs" if count else "no run"
          yield f"{names.display(method)}: {of} on {target}{where}"

  def _telling(self) -> list[str]:
    """Of many methods those drawn as curves: the reference, and what differs most."""
    rows = sorted(
      (row for row in self.head.rows if row.method != self.reference),
      key=lambda row: -abs(row.difference.mean) if row.difference else 0.0,
    )
    first = [row.method for row in self.head.rows if row.method == self.reference]
    kept = {*first, *(row.method for row in rows[: figures.MANY])}
    return [m for m in self.looks if m in kept]

  def shown(self, draw: Draw, suffix: str, commands: Sequence[str]) -> dict[str, Any]:
    """What the template takes: grids, figures and words."""
    table, looks, metric = self.head, self.looks, self.metric
    rows = self.frames[self.rule]
    out: dict[str, Any] = {
      "table": table,
      "reference": self.reference,
      "verdicts": verdict.verdicts(table),
      "grids": {rule: tables.grid(t) for rule, t in self.tables.items()},
      "tables": self.tables,
      "facts": provenance.facts(self.records, commands=commands),
    }

    def plot(stem: str, label: str, lines, **options) -> Drawn:
      figure = _intervals(lines, looks, metric=metric, **options)
      return draw(stem + suffix, label, figure, paper=True)

    def panels(stem: str, key: Figure, drawn: Mapping[str, Figure]) -> list[Drawn]:
      """Side by side, on a phone below each other, under one legend."""
      first = draw(f"{stem}{suffix}-key", "legend", key)
      return [first, *(draw(f"{stem}{suffix}-{k}", k, v) for k, v in drawn.items())]

    def legend(methods: Iterable[str]) -> Figure:
      return figures.key_figure(figures.named(looks, methods))

    if self.linear:
      first = next((row for row in table.rows if row.method == self.reference), None)
      mean = first.mean.mean if first and first.mean else None
      out["linear"] = linear_models.grid(self.linear, metric)
      out["overfits"] = linear_models.says(self.linear)
      out["behind"] = linear_models.behind(self.linear, mean, metric)
    singles = linear_models.networks(
      rows, metric, self.reference, self.records[0]["modalities"]
    )
    if singles:
      out["networks"] = linear_models.grid(singles, metric, linear_models.NETWORK)
      out["networks_overfit"] = linear_models.says(singles)

    few = self._telling()
    out["many"] = len(table.scores) > figures.MANY
    out["few"] = few if len(few) < len(table.scores) else []
    options: dict[str, Any] = {}
    drawn, label = [], f"paired difference to {names.display(self.reference)}"
    if any(row.differences for row in table.rows):
      lines = table.lines("differences", "difference")
      options = dict(xlabel=_xlabel(table), difference=True)
      drawn.append(plot("differences", label, lines, **options))
    values = {t: {m: list(s[t].values()) for m, s in table.scores.items() if t in s}
              for t in table.targets}  # fmt: skip
    lines = table.lines("targets", "mean")
    options = dict(xlabel=names.metric_name(metric), runs=values)
    options["beside"] = table.lines("source_vals", "source_val")
    drawn.append(plot("targets", "target score on held-out domains", lines, **options))
    out["main"] = drawn
    out["ranks"] = _ranks("ranks" + suffix, table.scores, metric, looks, draw)

    steps = {r["step"] for r in (*self.records, *self.history)}
    if len(steps) > 1:
      found = extras.curves(frame.to_frame([*self.records, *self.history]), metric)
      found = {key: {m: {s: names.pointed(i) for s, i in curves[m].items()}
                     for m in few if m in curves}
               for key, curves in found.items()}  # fmt: skip
      drawn = figures.curve_plots(found, looks, metric, "step")
      out["curves"] = panels("curves", legend(few), drawn)

    show = lambda cell, _="": names.interval(cell, metric)
    if relied := extras.reliance(rows, metric):
      lost = lambda k, c: names.number(c.mean, extras.RELIANCE[k][0] or metric, "+")
      body = [[names.display(m), *(lost(k, c) if k in extras.RELIANCE else show(c)
                                   for k, c in parts.items())]
              for m, parts in relied.items()]  # fmt: skip
      out["reliance"] = ["method", *next(iter(relied.values()))], body
      if self.reference in relied:
        out["lost"] = names.number(relied[self.reference]["lost"].mean, metric)

    missing, out["missing_rule"] = extras.missing(self.frames, metric, self.rule)
    if missing:
      single = {k: cells for k, cells in missing.items() if " + " not in k}
      label, xlabel = "target score without a modality", names.metric_name(metric)
      if len(table.scores) <= figures.MANY:
        out["missing"] = plot("missing", label, single, xlabel=xlabel)
      out["missing_grid"] = _grid(missing, show)

    hurt, out["corrupted_rule"] = extras.corrupted(self.frames, metric, self.rule)
    if hurt:
      ylabel = f"target {names.metric_name(metric)}"
      found = {(title, ylabel): {m: panel[m] for m in few if m in panel}
               for title, panel in hurt.items()}  # fmt: skip
      drawn = figures.curve_plots(found, looks, metric, "severity")
      methods = {m for panel in found.values() for m in panel}
      out["corrupted"] = panels("corrupted", legend(methods), drawn)
      mean = lambda curve, _: extras.severity_mean(curve, metric)
      out["corrupted_grid"] = _grid(hurt, mean)

    inside, out["inside_rule"] = extras.inside(self.frames, self.rule)
    out["inside"] = [
      _grid(lines, extras.inside_text, modality, extras.INSIDE)
      for modality, lines in inside.items()
    ]
    if self.maps is not None and self.maps.maps:
      out["maps"] = panels("embedding_map", *figures.map_plots(self.maps))
      out["maps_of"] = self.maps
    if other := extras.quality(rows, metric):
      body = [[names.display(m), *(names.interval(cells[m], of)
                                   for of, cells in other.items())]
              for m in table.scores]  # fmt: skip
      out["quality"] = ["method", *map(names.metric_name, other)], body
    if bins := extras.reliability(rows):
      bins = {m: bins[m] for m in few if m in bins}
      figure = figures.reliability_plot(bins, looks)
      out["reliability"] = draw(
        "reliability" + suffix, "reliability diagram", figure, paper=True
      )
    return out


def _intervals(lines, looks, *, runs=None, beside=None, **options) -> Figure:
  """Intervals of all lines; of many methods those of the last line, their mean."""
  if len({m for cells in lines.values() for m in cells}) <= figures.MANY:
    options |= dict(runs=runs, beside=beside)
    return figures.interval_plot(lines, looks, **options)
  *others, last = lines
  dots = {m: [lines[t][m].mean for t in others if m in lines[t]] for m in lines[last]}
  if not others:
    dots = (runs or {}).get(last, {})
  options |= dict(dots=dots, beside=(beside or {}).get(last))
  return figures.forest_plot(
    lines[last], looks, title="" if others else last, **options
  )


def _turned(found: tables.Grid) -> tables.Grid:
  """A grid of more methods than fit beside each other with a line for each of them."""
  header, body = found
  if len(header) - 1 <= max(figures.MANY + 1, len(body)):
    return found
  corner, *columns = zip(header, *body, strict=True)
  return list(corner), [list(column) for column in columns]


def _grid(lines: Mapping[str, Mapping[str, Any]], show, corner="", said=None):
  """A grid with a column per method; ``show(cell, line)`` writes a cell."""
  methods = list(dict.fromkeys(m for cells in lines.values() for m in cells))
  body = [
    [
      (said or {}).get(line, line.replace("_", " ") if said else line),
      *(show(cells[m], line) if m in cells else names.DASH for m in methods),
    ]
    for line, cells in lines.items()
  ]
  return _turned(([corner, *map(names.display, methods)], body))


def _xlabel(table: tables.Table) -> str:
  better = "left" if table.metric in protocol.LOWER_IS_BETTER else "right"
  unit = f"{names.change_unit(table.metric).strip()}; " * names.is_percent(table.metric)
  name = names.metric_name(table.metric, unit=False)
  shown = names.display(table.reference or "")
  return f"difference in target {name} to {shown}\n({unit}{better} is better)"


def _ranks(stem: str, scores, metric: str, looks, draw: Draw):
  """Figure and ranking; None where ranks could say nothing."""
  if not figures.can_rank(scores):
    return None
  higher = metric not in protocol.LOWER_IS_BETTER
  found = protocol.rank_methods(scores, higher_is_better=higher)
  figure = figures.rank_plot(found, looks)
  return draw(stem, "mean ranks over held-out domains", figure, paper=True), found


def _across(sections: Sequence[_Section], looks, draw: Draw) -> dict[str, Any]:
  """Several tables at a glance: one line each; what is pooled over them, and ranks."""
  heads, parts = [s.head for s in sections], [s.part for s in sections]
  first, metric = heads[0], heads[0].metric
  methods = [m for m in looks if any(m in t.scores for t in heads)]
  methods.sort(key=lambda m: m != first.reference)
  body = []
  for table in heads:
    rows = {row.method: row for row in table.rows}
    means = [rows[m].mean if m in rows else None for m in methods]
    gains = [tables.gain(rows.get(m), metric) for m in methods]
    texts = [names.interval(mean, metric) + f" ({gain})" * bool(gain)
             for mean, gain in zip(means, gains, strict=True)]  # fmt: skip
    marked = names.marked(means, texts, metric)
    body.append([table.name, str(len(table.targets)), *marked])
  lines = {
    t.name: {r.method: r.difference for r in t.rows if r.difference} for t in heads
  }
  out: dict[str, Any] = {
    "grid": _turned((["table", "targets", *map(names.display, methods)], body)),
    "table": first,
    "name": f"Target {names.metric_name(metric)}, means over held-out domains.",
  }
  options = dict(metric=metric, xlabel=_xlabel(first), difference=True)
  figures_of = {"overview": lines} if any(lines.values()) else {}
  if len(methods) - 1 > figures.MANY:  # A panel per table.
    figures_of = {f"overview-{t}": {t: cells} for t, cells in lines.items() if cells}
  out["differences"] = [
    draw(stem, "paired differences", _intervals(shown, looks, **options), paper=True)
    for stem, shown in figures_of.items()
  ]
  out["pooled"] = found = pooled.endpoint(parts)
  scores = found.scores if found else {}
  out["ranks"] = _ranks("overview_ranks", scores, metric, looks, draw)
  return out
