"""Paired differences of many tables in one plot."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import TYPE_CHECKING

from mer_dg import protocol
from mer_dg.reporting import formats, tables
from mer_dg.reporting.plots import comparison, style

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def can_compare(found: Sequence[tables.Table]) -> bool:
  """Whether `overview_plot` has a difference to show."""
  return any(row.difference for table in found for row in table.rows)


def overview_plot(found: Sequence[tables.Table]) -> Figure:
  """Difference to the reference over all targets, one line per table.

  Args:
    found: Tables of one metric and selection rule.

  Raises:
    ValueError: If no table compares anything.
  """
  import matplotlib
  from matplotlib.figure import Figure

  if not can_compare(found):
    raise ValueError("no table has paired differences.")
  head = found[0]
  methods = list(dict.fromkeys(row.method for t in found for row in t.rows))
  compared = [m for m in methods if m != head.reference]
  with matplotlib.rc_context(style.RC):
    height = 1.3 + len(found) * (0.3 + 0.13 * len(compared))
    fig = Figure(figsize=(5.5, height), layout="constrained")
    ax = fig.subplots()
    handles = {}
    for j, table in enumerate(found):
      for row in table.rows:
        if row.difference is None or math.isnan(row.difference.mean):
          continue
        scale, look = style.scale(table.metric), style.look(methods.index(row.method))
        del look["linestyle"]
        i = compared.index(row.method)
        handles[row.method] = ax.errorbar(
          scale * row.difference.mean,
          j + (i - (len(compared) - 1) / 2) * 0.7 / len(compared),
          xerr=comparison.error_bar(row.difference, scale),
          ms=5,
          lw=1.6,
          label=row.method,
          **look,
        )
      if j:
        ax.axhline(j - 0.5, color=style.GRID, lw=0.6)
    ax.axvline(0, color=style.AXIS, lw=1.0)
    ax.set_yticks(range(len(found)), [formats.table_name(t) for t in found])
    ax.set_ylim(len(found) - 0.5, -0.5)
    style.grid(ax, "x")
    unit = " (points)" if formats.is_percent(head.metric) else ""
    better = "left" if head.metric in protocol.LOWER_IS_BETTER else "right"
    name = head.metric.replace("_", " ")
    # Under the whole figure: names of tables may leave little to the axis.
    fig.supxlabel(
      f"difference in target {name} to {head.reference}{unit}; {better} is better",
      fontsize=style.RC["font.size"],
    )
    style.legend(fig, [handles[m] for m in compared if m in handles])
  return fig
