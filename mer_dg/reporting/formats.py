"""The table model as Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import csv
import io
import math
from typing import Any

from mer_dg import protocol
from mer_dg.protocol import Difference, Interval
from mer_dg.reporting import tables

# What a reader must know about a selection rule before reading its numbers.
RULE_LABELS = {
  "source_val": "checkpoint selected on source validation (never sees the target)",
  "repaired_val": (
    "checkpoint selected on source validation with modalities re-paired within class "
    "(never sees the target)"
  ),
  "last": "last step, no checkpoint selection",
  "leave_one_source_out": (
    "setting and step chosen on source domains left out in turn (never sees the target)"
  ),
  "oracle": (
    "ORACLE: checkpoint selected on the target itself, no valid "
    "domain-generalisation result"
  ),
}
# What a table of another protocol than leaving one domain out has to say of itself.
PROTOCOL_LABELS = {
  "single_source": "trained on one source domain",
  "in_domain": "trained on rows of the target itself (upper bound)",
}
# Shown in percent; every other metric is shown as it is, with three decimals.
_PERCENT = ("accuracy", "balanced_accuracy", "ece", "auroc_misd", "fpr95_misd")
_DASH = "–"


def is_percent(metric: str) -> bool:
  """Whether a metric is shown in percent (else as it is).

  Example:
    >>> is_percent("accuracy"), is_percent("nll")
    (True, False)
  """
  return metric in _PERCENT


def _number(value: float, metric: str, sign: str = "") -> str:
  if math.isnan(value):
    return "NaN"
  percent = is_percent(metric)
  return f"{100 * value:{sign}.1f}" if percent else f"{value:{sign}.3f}"


def format_change(value: float, metric: str) -> str:
  """A signed difference, in points where the metric is shown in percent.

  Example:
    >>> format_change(0.0125, "accuracy"), format_change(-0.5, "nll")
    ('+1.2', '-0.500')
  """
  return _number(value, metric, "+")


def change_unit(metric: str) -> str:
  """Unit of `format_change`, with a blank before it.

  Example:
    >>> change_unit("accuracy"), change_unit("nll"), change_unit("brier")
    (' points', ' nats', '')
  """
  return " points" if is_percent(metric) else " nats" if metric == "nll" else ""


def format_interval(interval: Interval | None, metric: str) -> str:
  """``51.2 ± 1.3``: mean and half the width of the 95 % interval.

  Example:
    >>> format_interval(Interval(0.512, 0.499, 0.525, 5), "accuracy")
    '51.2 ± 1.3'
  """
  if interval is None:
    return _DASH
  text = _number(interval.mean, metric)
  half = (interval.high - interval.low) / 2
  return text if math.isnan(half) else f"{text} ± {_number(half, metric)}"


def format_p(p: float) -> str:
  """``p = 0.031``, ``p < 0.001``.

  Example:
    >>> format_p(0.00002), format_p(0.0625)
    ('p < 0.001', 'p = 0.062')
  """
  return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def format_difference(difference: Difference | None, p: float, metric: str) -> str:
  """``+2.0 [+0.5, +3.5], p = 0.031``.

  Example:
    >>> format_difference(Difference(0.02, 0.005, 0.035, 5, 0.1), 0.2, "accuracy")
    '+2.0 [+0.5, +3.5], p = 0.200'
  """
  if difference is None:
    return _DASH
  text = _number(difference.mean, metric, "+")
  if not math.isnan(difference.low):
    low, high = (_number(x, metric, "+") for x in (difference.low, difference.high))
    text += f" [{low}, {high}]"
  return text if math.isnan(p) else f"{text}, {format_p(p)}"


def _columns(table: tables.Table) -> list[tuple[str, list[Interval | None]]]:
  """The ranked columns: targets, then their mean (if there are several)."""
  out = [(t, [r.targets.get(t) for r in table.rows]) for t in table.targets]
  if len(table.targets) > 1:
    out.append(("mean", [r.mean for r in table.rows]))
  return out


def places(cells: Sequence[Interval | None], metric: str) -> list[int]:
  """0 for the best shown number of a column, 1 for the second, 2 for the rest."""
  sign = 1 if metric in protocol.LOWER_IS_BETTER else -1
  # Compared as printed (both formats show 3 digits of the raw value): two equal
  # numbers must not differ in type face.
  keys = [
    math.inf if c is None or math.isnan(c.mean) else sign * round(c.mean, 3)
    for c in cells
  ]
  finite = sorted({k for k in keys if k != math.inf})
  if len(finite) < 2:
    return [2] * len(keys)  # Nothing is better than anything.
  return [finite.index(k) if k in finite[:2] else 2 for k in keys]


def cell_texts(
  table: tables.Table, styles: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
  """Header and cell texts of a table.

  Args:
    table: Any.
    styles: Formats of best, second and other cells, e.g. ``("**{}**", "*{}*", "{}")``.

  Returns:
    The header, and one line per method.
  """
  header = ["method"]
  body = [[row.method] for row in table.rows]
  if any(row.source_val for row in table.rows):
    header.append("source val.")
    for line, row in zip(body, table.rows, strict=True):
      line.append(format_interval(row.source_val, table.metric))
  for name, cells in _columns(table):
    header.append(name)
    found = places(cells, table.metric)
    for line, cell, place in zip(body, cells, found, strict=True):
      line.append(styles[place].format(format_interval(cell, table.metric)))
  if table.reference is not None and len(table.rows) > 1:
    header.append(f"paired difference to {table.reference}")
    for line, row in zip(body, table.rows, strict=True):
      line.append(format_difference(row.difference, row.p_holm, table.metric))
  return header, body


def table_name(table: tables.Table) -> str:
  """``dataset (a + b)``, and the protocol if it is not the usual one."""
  assigned = table.protocol.replace("_", " ")
  shown = "" if table.protocol == protocol.PROTOCOLS[0] else f", {assigned}"
  return f"{table.dataset} ({' + '.join(table.modalities)}){shown}"


def caption(table: tables.Table) -> str:
  """One paragraph stating what the numbers are and what they cost to get."""
  counts = [len(units) for row in table.rows for units in row.values.values()]
  trials = sorted({row.trials for row in table.rows})
  unit = "%" if is_percent(table.metric) else "nats" if table.metric == "nll" else "1"
  parts = [
    f"Target {table.metric.replace('_', ' ')} ({unit}) on {table.dataset} "
    f"({' + '.join(table.modalities)}), mean ± half the 95 % interval",
    *([PROTOCOL_LABELS[table.protocol]] if table.protocol in PROTOCOL_LABELS else []),
    RULE_LABELS[table.rule],
    f"{_span(counts)} seed{'s' * (max(counts) > 1)} per target and method",
    f"{_span(trials)} hyperparameter setting{'s' * (trials != [1])} tried per method",
    f"data version {table.data_version}",
    f"code {', '.join(short_revision(r) for r in table.revisions)}",
    f"run on {', '.join(table.devices)}",
  ]
  text = "; ".join(parts) + "."
  text += " Intervals: per target Student t over seeds"
  if len(table.targets) > 1:
    text += "; over targets a bootstrap of targets and of seeds within them"
  text += "."
  comparisons = sum(row.difference is not None for row in table.rows)
  if comparisons:
    text += (
      " Differences pair equal seeds and splits; p: two-sided sign-flip permutation "
      "test over all pairs of these targets"
    )
    text += f", Holm-adjusted over {comparisons} methods." if comparisons > 1 else "."
  return text


def _span(counts: Sequence[int]) -> str:
  low, high = min(counts), max(counts)
  return str(low) if low == high else f"{low} to {high}"


def short_revision(revision: str) -> str:
  """A git hash in 10 digits, its ``-dirty`` kept; a version as it is.

  Example:
    >>> short_revision("0123456789" * 4 + "-dirty"), short_revision("v0.1.0")
    ('0123456789-dirty', 'v0.1.0')
  """
  commit, dash, dirty = revision.partition("-")
  return commit[:10] + dash + dirty if len(commit) == 40 else revision


def to_markdown(table: tables.Table) -> str:
  """A padded pipe table, **best** and *second* marked, and the caption below."""
  return (
    f"{pipe_table(*cell_texts(table, ('**{}**', '*{}*', '{}')))}\n\n{caption(table)}\n"
  )


def pipe_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
  """A padded Markdown table: the first column left, the others right."""
  lines = [[c.replace("|", "\\|") for c in line] for line in (header, *body)]
  widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
  # Names left, numbers right; "---:" needs no less than four characters.
  widths = [max(w, 4) for w in widths]

  def join(line: Sequence[str]) -> str:
    cells = [line[0].ljust(widths[0])]
    cells += [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
    return "| " + " | ".join(cells) + " |"

  rules = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
  rows = [join(line) for line in (lines[0], rules, *lines[1:])]
  return "\n".join(rows)


_LATEX = str.maketrans(
  {c: f"\\{c}" for c in "&%$#_{}"}
  | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
  | {"±": r"$\pm$", "–": "--", "<": "$<$", ">": "$>$", "|": r"\textbar{}"}
)


def to_latex(table: tables.Table) -> str:
  r"""A booktabs table (``\usepackage{booktabs}``), best bold, second underlined."""
  return booktabs(*cell_texts(table, LATEX_MARKS), caption(table))


# Private marks of best and second survive the escaping of the cell texts.
LATEX_MARKS = ("\x01{}\x03", "\x02{}\x03", "{}")


def booktabs(header: Sequence[str], body: Sequence[Sequence[str]], said: str) -> str:
  """A LaTeX table of texts marked by `LATEX_MARKS`, with a caption."""

  def cell(text: str) -> str:
    text = text.translate(_LATEX).replace("\x01", r"\textbf{")
    return text.replace("\x02", r"\underline{").replace("\x03", "}")

  def join(line: Sequence[str]) -> str:
    return "  " + " & ".join(cell(c) for c in line) + r" \\"

  return "\n".join(
    [
      r"\begin{table}",
      r"  \centering",
      r"  \caption{" + said.translate(_LATEX) + "}",
      r"  \begin{tabular}{l" + "r" * (len(header) - 1) + "}",
      r"  \toprule",
      join(header),
      r"  \midrule",
      *(join(line) for line in body),
      r"  \bottomrule",
      r"  \end{tabular}",
      r"\end{table}",
      "",
    ]
  )


CSV_FIELDS = (
  *("dataset", "data_version", "modalities", "protocol", "metric", "selection"),
  "method",
  *("target", "n", "mean", "low", "high", "reference", "difference"),
  *("difference_low", "difference_high", "p", "p_holm", "trials", "values"),
)


def to_csv(tables: Iterable[tables.Table]) -> str:
  """One line per table, method and target, and one with target ``(mean)``.

  Numbers are raw (fractions, nats), at full precision, empty where undefined;
  ``values`` are the single runs as ``seed/split_seed:value``, separated by blanks;
  with many single sources as ``seed/split_seed/source:value``.
  """
  out = io.StringIO()
  writer = csv.DictWriter(out, CSV_FIELDS, lineterminator="\n")
  writer.writeheader()
  for table in tables:
    for row in table.rows:
      cells = [(t, i, row.differences.get(t)) for t, i in row.targets.items()]
      if row.mean is not None:
        cells.append(("(mean)", row.mean, row.difference))
      for target, interval, difference in cells:
        line: dict[str, Any] = {
          "dataset": table.dataset,
          "data_version": table.data_version,
          "modalities": "+".join(table.modalities),
          "protocol": table.protocol,
          "metric": table.metric,
          "selection": table.rule,
          "method": row.method,
          "target": target,
          "n": interval.n,
          "mean": interval.mean,
          "low": interval.low,
          "high": interval.high,
          "trials": row.trials,
          "values": " ".join(
            f"{'/'.join(map(str, unit))}:{value!r}"
            for unit, value in row.values.get(target, {}).items()
          ),
        }
        if difference is not None:
          line |= {
            "reference": table.reference,
            "difference": difference.mean,
            "difference_low": difference.low,
            "difference_high": difference.high,
            "p": difference.p,
            "p_holm": row.p_holm if target == "(mean)" else math.nan,
          }
        writer.writerow({k: "" if v != v else v for k, v in line.items()})
  return out.getvalue()
