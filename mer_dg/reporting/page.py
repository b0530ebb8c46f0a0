"""The report as one self-contained HTML page: no network, no script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import itertools

from mer_dg import protocol
from mer_dg.protocol import AnyRecord
from mer_dg.reporting import (
  embeddings,
  formats,
  overview,
  page_stress,
  provenance,
  stress,
  tables,
  verdict,
)
from mer_dg.reporting import page_blocks as blocks
from mer_dg.reporting.maps import EmbeddingMaps
from mer_dg.reporting.markup import Markup, join, tag
from mer_dg.reporting.page_style import CSS
from mer_dg.reporting.plots import comparison, curves, style
from mer_dg.reporting.plots.overview import can_compare, overview_plot
from mer_dg.reporting.plots.stress import reliability_plot
from mer_dg.reporting.reliance import Reliance

_SIGNS = {"better": "▲", "worse": "▼", "unclear": "◆"}
_HEADINGS = {
  "source_val": "Checkpoint selected on source validation",
  "repaired_val": "Checkpoint selected on source validation, modalities re-paired",
  "last": "Last step: no checkpoint selection",
  "leave_one_source_out": "Setting and step chosen on left-out sources",
  "oracle": "Oracle: checkpoint selected on the target, not a valid result",
}
# Shown for every method if it was recorded, beside the headline metric.
_QUALITY = ("accuracy", "balanced_accuracy", "nll", "brier", "ece")


@dataclasses.dataclass(frozen=True)
class Section:
  """All that is shown of one dataset, one set of modalities and one protocol.

  Attributes:
    records: Its evaluations.
    tables: ``{rule: table}``.
    missing: Scores with modalities missing, if recorded.
    corrupted: Scores against severity of corruptions, if recorded.
    reliability: Confidence against accuracy, if recorded.
    history: More rows for the curves, see `plots.learning_curves`.
    inside: Numbers about the embeddings, if recorded.
    maps: Maps of them, if there are any.
    rule: Selection rule of the headline.
    reliance: What re-pairing costs, if recorded.
  """

  records: Sequence[AnyRecord]
  tables: dict[str, tables.Table]
  missing: stress.MissingModality | None
  corrupted: stress.Corrupted | None
  reliability: stress.Reliability | None
  history: Sequence[AnyRecord] = ()
  inside: embeddings.Representation | None = None
  maps: EmbeddingMaps | None = None
  rule: str = "source_val"
  reliance: Reliance | None = None

  @property
  def head(self) -> tables.Table:
    """The table of the headline rule."""
    return self.tables[self.rule]

  @property
  def name(self) -> str:
    """``dataset (a + b)``, and the protocol if it is not the usual one."""
    return formats.table_name(self.head)


def render(
  sections: Sequence[Section],
  *,
  title: str,
  reference: str,
  commands: Sequence[str] = (),
  left_out: Sequence[str] = (),
) -> str:
  """The whole page.

  Args:
    sections: One per dataset, set of modalities and protocol.
    title: First heading.
    reference: Method of the paired differences.
    commands: Commands that made the records.
    left_out: Runs that are in no table, and why, one line each.

  Returns:
    HTML; everything that comes from data is escaped.
  """
  ids = (f"f{i}" for i in itertools.count())
  several = len(sections) > 1
  answers, details = [], []
  for i, section in enumerate(sections):
    answers.append(_answer(section, reference, f"s{i}" if several else ""))
    details.append(_details(section, ids, f"s{i}", several))
  body = join(
    tag("h1", title),
    tag("p", "; ".join(section.name for section in sections), class_="soft"),
    tag("h2", "Did it help?"),
    _overview([section.head for section in sections], ids),
    answers,
    _left_out(left_out),
    details,
    tag("h2", "Where the numbers come from", id="provenance"),
    [_facts(section, commands, several) for section in sections],
    _reading(),
  )
  head = join(
    tag("meta", charset="utf-8"),
    # Neither script nor network, whatever a name in the data may try.
    tag(
      "meta",
      http_equiv="Content-Security-Policy",
      content="default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    ),
    tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
    tag("meta", name="color-scheme", content="light dark"),
    tag("title", title),
    tag("style", Markup(CSS)),
  )
  page = tag("html", tag("head", head), tag("body", tag("main", body)), lang="en")
  return f"<!DOCTYPE html>\n{page}\n"


def _overview(found: Sequence[tables.Table], ids: Iterator[str]) -> Markup:
  """All tables in one, where there are several; their ranks."""
  if len(found) < 2:
    return Markup()
  parts = [
    _marked_grid(*overview.cell_texts(found, _MARKS)),
    tag("p", overview.caption(found), class_="note"),
  ]
  if can_compare(found):
    said = "Paired difference to the reference over all targets of each table."
    parts.append(blocks.figure(overview_plot(found), next(ids), said, wide=True))
  pooled = overview.pooled(found)
  if pooled is not None and comparison.can_rank(pooled):
    parts.append(
      blocks.figure(
        comparison.rank_plot(pooled),
        next(ids),
        f"Mean rank over the held-out domains of {pooled.dataset}, each with all its "
        "modalities.",
      )
    )
  return join(parts)


def _answer(section: Section, reference: str, anchor: str) -> Markup:
  """Did it help, on which target, by how much, how sure."""
  table, found = section.head, verdict.verdicts(section.head)
  heading = [tag("h3", tag("a", section.name, href=f"#{anchor}"))] if anchor else []
  if not found:
    methods = ", ".join(row.method for row in table.rows)
    why = f"No paired difference: no runs of {reference} to compare {methods} with."
    if any(row.method == reference for row in table.rows):
      why = (
        "No overall difference: no other method has finite runs that pair with those "
        f"of {reference} on every target."
      )
    if [row.method for row in table.rows] == [reference]:
      why = f"No paired difference: {reference} is the only method."
    return join(heading, tag("div", tag("p", why, class_="short"), class_="answer"))
  outcomes = {v.outcome for v in found}
  color = outcomes.pop() if len(outcomes) == 1 else ""
  items = [
    tag(
      "li",
      tag("span", f"{_SIGNS[v.outcome]} {v.method}: {v.said}", class_="mark"),
      tag("br"),
      verdict.sentence(v, table),
      class_=v.outcome,
    )
    for v in found
  ]
  return join(
    heading,
    tag(
      "div",
      tag("p", verdict.headline(table, found), class_="short"),
      tag("ul", items, class_="verdicts"),
      tag("p", verdict.caution(table), class_="note"),
      class_=f"answer {color}".strip(),
    ),
  )


def _left_out(lines: Sequence[str]) -> Markup:
  if not lines:
    return Markup()
  return join(
    tag("h3", "Left out"),
    tag("ul", [tag("li", line) for line in lines]),
  )


def _details(
  section: Section, ids: Iterator[str], anchor: str, several: bool
) -> Markup:
  table = section.head
  methods = [row.method for row in table.rows]
  parts = [tag("h2", section.name if several else "The numbers", id=anchor)]
  parts.append(_table(table))
  if any(row.differences for row in table.rows):
    parts.append(
      blocks.figure(
        comparison.difference_plot(table),
        next(ids),
        f"Difference to {table.reference}, run by run, on each held-out domain; bars "
        "are 95 % intervals. A bar that crosses the line at 0 shows no difference.",
      )
    )
  parts.append(
    blocks.figure(
      comparison.target_plot(table),
      next(ids),
      "Target score of every run, its mean and 95 % interval. Open marks are source "
      "validation of the same runs: the thin line is what is lost on a new domain.",
      wide=True,
    )
  )
  parts += [
    _ranks(table, ids),
    _curves(section, methods, ids),
    page_stress.pairings(section.reliance),
    page_stress.missing(section.missing, ids),
    page_stress.corrupted(section.corrupted, methods, ids),
    page_stress.inside(section.inside),
    page_stress.maps(section.maps, ids),
    _calibration(section, methods, ids),
  ]
  for rule, heading in _HEADINGS.items():
    if rule in section.tables and rule != section.rule:
      parts += [tag("h3", heading), _table(section.tables[rule])]
  return join(parts)


def _table(table: tables.Table) -> Markup:
  header, body = formats.cell_texts(table, _MARKS)
  # What is asked first comes first: on a phone the last columns are out of sight.
  last = (len(table.targets) > 1) + (table.reference is not None and len(body) > 1)
  header, *body = (_moved(line, last) for line in (header, *body))
  grid = _marked_grid(header, body)
  return join(grid, tag("p", formats.caption(table), class_="note"))


# Private marks of best and second survive the escaping of the cell texts.
_MARKS = ("\x01{}\x03", "\x02{}\x04", "{}")


def _marked_grid(header: Sequence[str], body: Sequence[Sequence[str]]) -> Markup:
  grid = blocks.grid(header, *body)
  for mark, markup in (
    ("\x01", "<strong>"),
    ("\x03", "</strong>"),
    ("\x02", "<em>"),
    ("\x04", "</em>"),
  ):
    grid = Markup(grid.replace(mark, markup))
  return grid


def _moved(line: Sequence[str], count: int) -> list[str]:
  """The last ``count`` cells right behind the first."""
  cut = len(line) - count
  return [line[0], *line[cut:], *line[1:cut]]


def _ranks(table: tables.Table, ids: Iterator[str]) -> Markup:
  if not comparison.can_rank(table):
    return Markup()
  return join(
    tag("h3", "Ranks over targets"),
    blocks.figure(
      comparison.rank_plot(table),
      next(ids),
      "Mean rank of each method over held-out domains. Domains, not seeds, are the "
      "blocks of this test, so with few of them hardly anything can differ.",
    ),
  )


def _curves(section: Section, methods: Sequence[str], ids: Iterator[str]) -> Markup:
  if len({r["step"] for r in (*section.records, *section.history)}) < 2:
    return Markup()
  figures = curves.curve_figures(
    section.records,
    metric=section.head.metric,
    history=section.history,
    methods=methods,
  )
  caption = (
    "Means over targets and seeds; bands are 95 % intervals over seeds. Entropy: "
    "kernel estimate of embeddings on the unit sphere, in nats. Effective rank: number "
    "of directions that carry the embedding."
  )
  shown = {f"{title} over training steps": fig for title, fig in figures.items()}
  return join(tag("h3", "Over training"), blocks.panels(shown, methods, ids, caption))


def _calibration(
  section: Section, methods: Sequence[str], ids: Iterator[str]
) -> Markup:
  table = section.head
  selected = protocol.select(section.records, table.rule, metric=table.metric)
  selected = protocol.best_trial(selected, table.rule, metric=table.metric)
  shown = [
    m
    for m in _QUALITY
    if m != table.metric and all(f"target/{m}" in r["metrics"] for r in selected)
  ]
  parts = []
  if shown:
    scores = {m: protocol.collect_scores(selected, f"target/{m}") for m in shown}
    body = [
      [
        method,
        *(
          formats.format_interval(protocol.summarize(scores[m][method]), m)
          for m in shown
        ),
      ]
      for method in methods
    ]
    parts.append(blocks.grid(["method", *map(_heading, shown)], *body))
    parts.append(
      tag(
        "p",
        "On the target, mean over targets ± half the 95 % interval; nll, brier and ece "
        "are better when smaller.",
        class_="note",
      )
    )
  if section.reliability is not None:
    parts.append(
      blocks.figure(
        reliability_plot(section.reliability),
        next(ids),
        "Reliability: accuracy of the predictions made with a given confidence. Below "
        "the diagonal a network is surer than it should be.",
      )
    )
  heading = "Calibration and other metrics"
  return join(tag("h3", heading), parts) if parts else Markup()


def _heading(metric: str) -> str:
  return style.axis_label("", metric)


def _facts(section: Section, commands: Sequence[str], several: bool) -> Markup:
  lines = []
  for name, values in provenance.facts(section.records, commands=commands):
    as_code = name in ("commands", "code", "protocol (hash of the config)")
    shown = [tag("code", v) if as_code else v for v in values]
    spaced = itertools.chain.from_iterable((tag("br"), v) for v in shown)
    lines.append(tag("tr", tag("th", name, scope="row"), tag("td", list(spaced)[1:])))
  heading = [tag("h3", section.name)] if several else []
  grid = tag("table", tag("tbody", lines), class_="facts")
  return join(heading, tag("div", grid, class_="scroll"))


def _reading() -> Markup:
  return join(
    tag("h2", "How to read this"),
    tag(
      "p",
      "A method is trained on the source domains and judged on a target domain that it "
      "never saw. Two methods are compared run by run: the same target, the same "
      "split, the same seed. “Better” and “worse” are said only if the adjusted p is "
      f"below {verdict.SIGNIFICANCE} and the 95 % interval excludes 0; “not shown to "
      "differ” does not mean equal. Every run, at full precision, is in table.csv "
      "beside this page; table.md and table.tex are the same tables to paste.",
    ),
  )
