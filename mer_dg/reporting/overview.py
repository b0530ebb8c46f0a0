"""Several tables at a glance: one line each, and ranks over all of their targets."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from mer_dg import protocol
from mer_dg.reporting import formats, tables

# Best, second and other cells, as in `formats.to_markdown`.
MARKDOWN = ("**{}**", "*{}*", "{}")


def cell_texts(
  found: Sequence[tables.Table], styles: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
  """Header and cells: mean over targets of every method, and what it adds.

  Args:
    found: Tables of one metric and selection rule.
    styles: Formats of best, second and other cells of a line.

  Returns:
    The header, and one line per table: its name, number of targets, then for each
    method ``mean ± half the interval``, and for all but the reference the difference
    behind it, with an asterisk where its adjusted p is below 0.05 and its interval
    excludes 0.
  """
  methods = list(dict.fromkeys(row.method for table in found for row in table.rows))
  header = ["table", "targets", *methods]
  body = []
  for table in found:
    rows = {row.method: row for row in table.rows}
    means = [rows[m].mean if m in rows else None for m in methods]
    places = formats.places(means, table.metric)
    line = [formats.table_name(table), str(len(table.targets))]
    for method, mean, place in zip(methods, means, places, strict=True):
      text = styles[place].format(formats.format_interval(mean, table.metric))
      line.append(text + _gain(rows.get(method), table))
    body.append(line)
  return header, body


def _gain(row: tables.Row | None, table: tables.Table) -> str:
  if row is None or row.difference is None:
    return ""
  d = row.difference
  sure = row.p_holm < 0.05 and (d.low > 0 or d.high < 0)
  return f" ({formats.format_change(d.mean, table.metric)}{'*' if sure else ''})"


def caption(found: Sequence[tables.Table]) -> str:
  """What the numbers of `cell_texts` are."""
  metrics = dict.fromkeys(t.metric.replace("_", " ") for t in found)
  reference = found[0].reference
  text = (
    f"Target {', '.join(metrics)}, mean over targets ± half the 95 % interval; "
    f"{formats.RULE_LABELS[found[0].rule]}."
  )
  if reference is not None:
    text += (
      f" In brackets: paired difference to {reference}; * marks p < 0.05 after Holm's "
      "adjustment within the table, with a 95 % interval that excludes 0."
    )
  return text


def to_markdown(found: Sequence[tables.Table]) -> str:
  """The overview as a pipe table with its caption."""
  return f"{formats.pipe_table(*cell_texts(found, MARKDOWN))}\n\n{caption(found)}\n"


def to_latex(found: Sequence[tables.Table]) -> str:
  r"""The overview as a booktabs table (``\usepackage{booktabs}``)."""
  return formats.booktabs(*cell_texts(found, formats.LATEX_MARKS), caption(found))


def pooled(found: Sequence[tables.Table]) -> tables.Table | None:
  """The targets of all datasets as one table, for ranks and nothing else.

  Only tables that leave one domain out count, and of each dataset the one with most
  modalities: pairs of domains and subsets of modalities share their data, and a rank
  test takes targets as independent.

  Args:
    found: Tables of one metric and selection rule.

  Returns:
    A table with methods that all of them have; None if fewer than two datasets count.
  """
  chosen: dict[str, tables.Table] = {}
  for table in found:
    best = chosen.get(table.dataset)
    more = best is None or len(table.modalities) > len(best.modalities)
    if table.protocol == protocol.PROTOCOLS[0] and more:
      chosen[table.dataset] = table
  if len(chosen) < 2:
    return None
  first, *others = chosen.values()
  of = [{row.method: row.values for row in table.rows} for table in (first, *others)]
  name = lambda table, target: f"{table.dataset}: {target}"
  rows = [
    dataclasses.replace(
      row,
      values={
        name(table, target): values
        for table, scores in zip(chosen.values(), of, strict=True)
        for target, values in scores[row.method].items()
      },
    )
    for row in first.rows
    if all(row.method in scores for scores in of)
  ]
  targets = tuple(name(t, target) for t in chosen.values() for target in t.targets)
  return dataclasses.replace(
    first, dataset=" + ".join(chosen), targets=targets, rows=tuple(rows)
  )
