"""Methods compared on one table: levels, paired differences, ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mer_dg import protocol
from mer_dg.reporting import formats, tables
from mer_dg.reporting.plots import style

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure


def target_plot(table: tables.Table) -> Figure:
  """Per target and method: mean and 95 % interval, single runs, source validation.

  The open mark above each method is its source validation on the same runs, so the
  length of the thin line is what is lost by going to the target.

  Args:
    table: Of any rule; says on the axis which.
  """
  import matplotlib
  from matplotlib.figure import Figure

  columns = _columns(table)
  with matplotlib.rc_context(style.RC):
    width = min(12.0, max(4.2, 1.6 + 0.26 * len(columns) * (len(table.rows) + 1)))
    fig = Figure(figsize=(width, 4.0), layout="constrained")
    ax = fig.subplots()
    for i, row in enumerate(table.rows):
      for j, column in enumerate(columns):
        _draw_target(ax, table, row, i, j, column)
    if len(table.targets) > 1:
      ax.axvline(len(columns) - 1.5, color=style.RULE, lw=0.8, ls=":")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_xlim(-0.5, len(columns) - 0.5)
    style.grid(ax, "y")
    ax.set_xlabel("held-out domain")
    ax.set_ylabel(style.axis_label("", table.metric))
    marks = "filled: target, 95 % interval and single runs"
    if any(row.source_val for row in table.rows):
      marks += "\nopen: source validation of the same runs"
    ax.set_title(f"{table.dataset}, {style.SELECTION[table.rule]}\n{marks}", loc="left")
    style.legend(fig, style.handles([r.method for r in table.rows], linestyle="none"))
  return fig


def _columns(table: tables.Table) -> list[str]:
  return [*table.targets, *(["mean"] if len(table.targets) > 1 else [])]


def _draw_target(
  ax: Axes, table: tables.Table, row: tables.Row, i: int, j: int, column: str
) -> None:
  """One method (the i-th) on one target (the j-th)."""
  is_mean = j == len(table.targets)
  interval = row.mean if is_mean else row.targets.get(column)
  if interval is None or math.isnan(interval.mean):
    return
  scale, step = style.scale(table.metric), 0.7 / len(table.rows)
  look = style.look(i)
  color, marker = look["color"], look["marker"]
  x = j + (i - (len(table.rows) - 1) / 2) * step
  y = scale * interval.mean
  val = row.source_val if is_mean else row.source_vals.get(column)
  if val is not None:
    top = scale * val.mean
    ax.plot([x, x], [y, top], color=color, lw=0.7, alpha=0.6, zorder=1)
    ax.plot(x, top, marker=marker, mfc="white", mec=color, ms=4.5, zorder=3)
  if not is_mean:
    runs = [scale * v for v in row.values[column].values()]
    beside = [x - 0.22 * step] * len(runs)
    ax.plot(beside, runs, ".", color=color, ms=4, mew=0, alpha=0.5, zorder=2)
  error = error_bar(interval, scale)
  ax.errorbar(x, y, yerr=error, color=color, marker=marker, ms=5.5, lw=1.8, zorder=4)


def error_bar(
  interval: protocol.Interval, scale: float = 1.0
) -> list[list[float]] | None:
  """What matplotlib's ``errorbar`` takes; ``None`` where there is no interval."""
  if math.isnan(interval.low):
    return None
  below, above = interval.mean - interval.low, interval.high - interval.mean
  return [[scale * below], [scale * above]]


def difference_plot(table: tables.Table) -> Figure:
  """Paired differences to the reference with 95 % intervals, per target and overall.

  Args:
    table: With a reference.

  Raises:
    ValueError: If the table compares with no reference, or nothing can be compared.
  """
  import matplotlib
  from matplotlib.figure import Figure

  rows = [row for row in table.rows if row.differences]
  if not rows:
    raise ValueError(f"no paired differences to reference={table.reference!r}.")
  labels = _columns(table)
  with matplotlib.rc_context(style.RC):
    height = 1.5 + len(labels) * (0.25 + 0.13 * len(rows))
    fig = Figure(figsize=(4.5, height), layout="constrained")
    ax = fig.subplots()
    handles = []
    for i, row in enumerate(rows):
      bars = [_draw_difference(ax, table, row, i, len(rows), j, label)
              for j, label in enumerate(labels)]  # fmt: skip
      handles.extend([bar for bar in bars if bar is not None][:1])
    if len(table.targets) > 1:
      ax.axhline(len(labels) - 1.5, color=style.RULE, lw=0.8, ls=":")
    ax.axvline(0, color=style.AXIS, lw=1.0)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    style.grid(ax, "x")
    ax.set_ylabel("held-out domain")
    unit = " (points)" if formats.is_percent(table.metric) else ""
    better = "left" if table.metric in protocol.LOWER_IS_BETTER else "right"
    name = table.metric.replace("_", " ")
    ax.set_xlabel(
      f"difference in target {name}\nto {table.reference}{unit}; {better} is better"
    )
    ax.set_title(f"{table.dataset}, {style.SELECTION[table.rule]}", loc="left")
    if handles:
      style.legend(fig, handles)
  return fig


def _draw_difference(
  ax: Axes, table: tables.Table, row: tables.Row, i: int, n: int, j: int, label: str
):
  """The i-th of n methods on the j-th line; returns the drawn bar, if any."""
  is_mean = j == len(table.targets)
  difference = row.difference if is_mean else row.differences.get(label)
  if difference is None or math.isnan(difference.mean):
    return None
  scale = style.scale(table.metric)
  look = style.look(table.rows.index(row))
  del look["linestyle"]
  return ax.errorbar(
    scale * difference.mean,
    j + (i - (n - 1) / 2) * 0.7 / n,
    xerr=error_bar(difference, scale),
    ms=5.5,
    lw=1.8,
    label=row.method,
    **look,
  )


def can_rank(table: tables.Table) -> bool:
  """Whether `rank_plot` has its 3 methods on 2 common targets."""
  common = [t for t in table.targets if all(t in row.values for row in table.rows)]
  return len(table.rows) >= 3 and len(common) >= 2


def rank_plot(table: tables.Table) -> Figure:
  """Critical-difference diagram: mean ranks over targets, Nemenyi at 5 %.

  Methods joined by a bar are not shown to differ. With few targets the critical
  difference is large, whatever the number of seeds: targets are the blocks.

  Args:
    table: At least 3 methods on at least 2 common targets.

  Raises:
    ValueError: With fewer methods or common targets.

  Source:
    Demšar, Statistical comparisons of classifiers over multiple data sets, 2006, §4.
  """
  import matplotlib
  from matplotlib.figure import Figure

  ranking = protocol.rank_methods(
    {row.method: row.values for row in table.rows},
    higher_is_better=table.metric not in protocol.LOWER_IS_BETTER,
  )
  cliques = protocol.cliques(ranking)
  k, cd = len(ranking.ranks), ranking.critical_difference
  depth = 0.6 + (len(cliques) + (k + 1) // 2) * 0.32  # Data units below the axis.
  with matplotlib.rc_context(style.RC):
    fig = Figure(figsize=(4.5, 1.1 + 0.7 * depth), layout="constrained")
    ax = fig.subplots()
    # The bar of the critical difference lies above the axis and may be longer.
    ax.set_xlim(0.8, max(k, 1 + cd) + 0.2)
    ax.set_ylim(-depth, 1.0)
    ax.plot([1, 1 + cd], [0.62, 0.62], color=style.AXIS, lw=1.5, marker="|", ms=8)
    ax.text(1, 0.74, f"critical difference {cd:.2f}", va="bottom")
    ax.plot([1, k], [0, 0], color="black", lw=1)
    for rank in range(1, k + 1):
      ax.plot([rank, rank], [0, 0.14], color="black", lw=1)
      ax.text(rank, 0.2, str(rank), ha="center", va="bottom")
    _draw_ranks(ax, table, ranking, cliques)
    ax.set_axis_off()
    ax.set_title(
      f"mean rank over {ranking.n} targets, 1 is best\n"
      f"Friedman {formats.format_p(ranking.p)}\n"
      "a bar joins methods not shown to differ",
      loc="left",
    )
  return fig


def _draw_ranks(ax: Axes, table, ranking, cliques) -> None:
  """Bars of the cliques below the axis, then a line and a name for each method."""
  for i, clique in enumerate(cliques):
    ends = [ranking.ranks[clique[0]], ranking.ranks[clique[-1]]]
    y = -0.3 - 0.32 * i
    # A bar of no length (tied methods) still shows.
    ax.plot([ends[0] - 0.04, ends[1] + 0.04], [y, y], color=style.AXIS, lw=4)
  order = sorted(ranking.ranks, key=lambda m: ranking.ranks[m])
  position = {row.method: i for i, row in enumerate(table.rows)}
  # The better half is named on the left, the other on the right, outermost on top:
  # then no line crosses another.
  half = (len(order) + 1) // 2
  sides = [(order[:half], 0.8, "right"), (order[half:][::-1], len(order) + 0.2, "left")]
  for methods, edge, align in sides:
    for i, method in enumerate(methods):
      rank, look = ranking.ranks[method], style.look(position[method])
      y = -0.6 - 0.32 * (len(cliques) + i)
      ax.plot([rank, rank, edge], [0, y, y], color=style.RULE, lw=0.7, zorder=0)
      ax.plot(rank, 0, marker=look["marker"], color=look["color"], ms=6, zorder=5)
      ax.text(edge, y, f" {method}  {rank:.2f} ", ha=align, va="center")
