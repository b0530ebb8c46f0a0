"""Plots of records: colour-blind safe, told apart in grey print by their markers.

matplotlib is imported inside the functions; no global state of it is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import io
import math
import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from mer_dg import evaluation
from mer_dg.evaluation import AnyRecord
from mer_dg.reporting import formats, tables
from mer_dg.reporting.files import write_atomic

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Okabe & Ito, Color universal design, 2008; without the yellow, too pale on white.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# One more than colours: a colour that comes again comes with another marker.
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")
_RULES = {
  "source_val": "selected on source validation",
  "last": "last step",
  "oracle": "ORACLE, selected on the target",
}
_RC: dict[Any, Any] = {
  "font.size": 9,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.titlesize": 9,
  "grid.color": "#DDDDDD",
  "grid.linewidth": 0.6,
  "legend.frameon": False,
  "svg.fonttype": "none",  # Text stays text: searchable, and small.
  "svg.hashsalt": "mer_dg",  # Ids that do not change from run to run.
}


def _look(position: int) -> dict[str, Any]:
  """Colour, marker and line of the n-th method; lines change when colours repeat."""
  return {
    "color": COLORS[position % len(COLORS)],
    "marker": MARKERS[position % len(MARKERS)],
    "linestyle": LINES[position // len(COLORS) % len(LINES)],
  }


def _axis_label(split: str, metric: str) -> str:
  unit = " (%)" if formats.is_percent(metric) else " (nats)" if metric == "nll" else ""
  return f"{split} {metric.replace('_', ' ')}{unit}".strip()


def _scale(metric: str) -> float:
  return 100.0 if formats.is_percent(metric) else 1.0


def _legend(fig: Figure, handles: Sequence[Any]) -> None:
  fig.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)))


def target_plot(table: tables.Table) -> Figure:
  """Per target and method: mean and 95 % interval, single runs, source validation.

  The open mark above each method is its source validation on the same runs, so the
  length of the thin line is what is lost by going to the target.

  Args:
    table: Of any rule; says on the axis which.
  """
  import matplotlib
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D

  scale = _scale(table.metric)
  columns = [*table.targets, *(["mean"] if len(table.targets) > 1 else [])]
  step = 0.7 / len(table.rows)
  with matplotlib.rc_context(_RC):
    width = min(12.0, max(4.2, 1.6 + 0.26 * len(columns) * (len(table.rows) + 1)))
    fig = Figure(figsize=(width, 4.0), layout="constrained")
    ax = fig.subplots()
    handles = []
    for i, row in enumerate(table.rows):
      look = _look(i)
      color, marker = look["color"], look["marker"]
      handles.append(
        Line2D([], [], color=color, marker=marker, linestyle="none", label=row.method)
      )
      for j, column in enumerate(columns):
        interval = row.mean if column == "mean" else row.targets.get(column)
        if interval is None or math.isnan(interval.mean):
          continue
        x = j + (i - (len(table.rows) - 1) / 2) * step
        y = scale * interval.mean
        val = row.source_val if column == "mean" else row.source_vals.get(column)
        if val is not None:
          top = scale * val.mean
          ax.plot([x, x], [y, top], color=color, lw=0.7, alpha=0.6, zorder=1)
          ax.plot(x, top, marker=marker, mfc="white", mec=color, ms=4.5, zorder=3)
        if column != "mean":
          runs = [scale * v for v in row.values[column].values()]
          beside = [x - 0.22 * step] * len(runs)
          ax.plot(beside, runs, ".", color=color, ms=4, mew=0, alpha=0.5, zorder=2)
        bounds = [scale * (interval.mean - interval.low)]
        bounds.append(scale * (interval.high - interval.mean))
        error = None if math.isnan(bounds[0]) else [[bounds[0]], [bounds[1]]]
        ax.errorbar(
          x, y, yerr=error, color=color, marker=marker, ms=5.5, lw=1.8, zorder=4
        )
    if len(table.targets) > 1:
      ax.axvline(len(columns) - 1.5, color="#888888", lw=0.8, ls=":")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    ax.set_xlabel("held-out domain")
    ax.set_ylabel(_axis_label("", table.metric))
    marks = "filled: target, 95 % interval and single runs"
    if any(row.source_val for row in table.rows):
      marks += "; open: source validation"
    ax.set_title(f"{table.dataset}, {_RULES[table.rule]}\n{marks}", loc="left")
    _legend(fig, handles)
  return fig


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
  scale = _scale(table.metric)
  labels = [*table.targets, *(["mean"] if len(table.targets) > 1 else [])]
  step = 0.7 / len(rows)
  with matplotlib.rc_context(_RC):
    height = 1.3 + len(labels) * (0.25 + 0.13 * len(rows))
    fig = Figure(figsize=(5.6, height), layout="constrained")
    ax = fig.subplots()
    handles = []
    for i, row in enumerate(rows):
      look = {k: v for k, v in _look(table.rows.index(row)).items() if k != "linestyle"}
      for j, label in enumerate(labels):
        d = row.difference if label == "mean" else row.differences.get(label)
        if d is None or math.isnan(d.mean):
          continue
        y = j + (i - (len(rows) - 1) / 2) * step
        error = None
        if not math.isnan(d.low):
          error = [[scale * (d.mean - d.low)], [scale * (d.high - d.mean)]]
        bar = ax.errorbar(
          scale * d.mean, y, xerr=error, ms=5.5, lw=1.8, label=row.method, **look
        )
        if len(handles) == i:
          handles.append(bar)
    if len(table.targets) > 1:
      ax.axhline(len(labels) - 1.5, color="#888888", lw=0.8, ls=":")
    ax.axvline(0, color="#555555", lw=1.0)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(axis="x")
    ax.set_axisbelow(True)
    ax.set_ylabel("held-out domain")
    unit = " (points)" if formats.is_percent(table.metric) else ""
    better = "left" if table.metric in evaluation.LOWER_IS_BETTER else "right"
    name = table.metric.replace("_", " ")
    ax.set_xlabel(
      f"difference in target {name} to {table.reference}{unit}; {better} is better"
    )
    ax.set_title(f"{table.dataset}, {_RULES[table.rule]}", loc="left")
    _legend(fig, handles)
  return fig


def _curve(rows: Iterable[AnyRecord], name: str) -> np.ndarray:
  """``[steps, 4]``: step, mean and bounds over units of the mean over targets."""
  out = []
  rows = [r for r in rows if name in r["metrics"]]
  for step, at in sorted(evaluation.group_by(rows, lambda r: r["step"]).items()):
    units = evaluation.group_by(at, lambda r: (r["seed"], r["split_seed"]))
    means = [np.mean([r["metrics"][name] for r in unit]) for unit in units.values()]
    interval = evaluation.mean_interval(means)
    out.append((step, interval.mean, interval.low, interval.high))
  return np.array(out, dtype=np.float64).reshape(-1, 4)


def _draw_curves(
  ax: Axes, rows: Sequence[AnyRecord], methods: Sequence[str], name: str, scale: float
) -> None:
  for i, method in enumerate(methods):
    curve = _curve((r for r in rows if r["method"] == method), name)
    if not len(curve):
      continue
    step, mean, low, high = curve.T
    look = _look(i)
    every = max(1, len(step) // 8)
    # Markers staggered: curves that coincide still show all their markers.
    offset = (i * every) // max(1, len(methods))
    ax.plot(step, scale * mean, lw=1.5, ms=4, markevery=(offset, every), **look)
    band = ~np.isnan(low)
    if band.any():
      ax.fill_between(
        step[band],
        scale * low[band],
        scale * high[band],
        color=look["color"],
        alpha=0.15,
        lw=0,
      )
  ax.grid(axis="y")
  ax.set_axisbelow(True)
  ax.set_xlabel("step")


def learning_curves(
  records: Iterable[AnyRecord],
  *,
  metric: str = "accuracy",
  history: Iterable[AnyRecord] = (),
) -> Figure:
  """Source validation and target over steps, and the entropy of every modality.

  Lines are means over targets and seeds, bands 95 % t intervals over seeds of the mean
  over targets. An entropy panel is drawn for each metric ``entropy/<modality>`` (nats).

  Args:
    records: Evaluations of one dataset at several steps.
    metric: Name without split.
    history: More rows of the same form (method, seed, split_seed, step, metrics), such
      as training metrics logged between evaluations.

  Raises:
    ValueError: If there are no records.
  """
  import matplotlib
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D

  records = list(records)
  if not records:
    raise ValueError("Nothing to plot: no records.")
  rows = [*records, *history]
  methods = list(dict.fromkeys(r["method"] for r in records))
  named = {k for r in rows for k in r["metrics"] if k.startswith("entropy/")}
  order = [f"entropy/{m}" for m in records[0]["modalities"]]
  entropies = [k for k in order if k in named] + sorted(named.difference(order))
  panels = [(f"val/{metric}", "source validation"), (f"target/{metric}", "target")]
  panels = [p for p in panels if any(p[0] in r["metrics"] for r in records)]
  panels += [(name, f"entropy of {name.partition('/')[2]}") for name in entropies]
  ncols = 2 if len(panels) in (1, 2, 4) else 3
  nrows = -(-len(panels) // ncols)
  with matplotlib.rc_context(_RC):
    fig = Figure(figsize=(2.6 * ncols + 0.6, 2.3 * nrows + 0.5), layout="constrained")
    axes = fig.subplots(nrows, ncols, squeeze=False).flatten()
    scored = [a for a, p in zip(axes, panels, strict=False) if p[0] not in entropies]
    for ax, (name, title) in zip(axes, panels, strict=False):
      is_entropy = name in entropies
      _draw_curves(ax, rows, methods, name, 1.0 if is_entropy else _scale(metric))
      ax.set_title(title, loc="left")
      ax.set_ylabel("nats" if is_entropy else _axis_label("", metric))
    for ax in scored[1:]:
      ax.sharey(scored[0])  # The drop from source to target is read off at a glance.
    for ax in axes[len(panels) :]:
      ax.set_axis_off()
    handles = [Line2D([], [], label=m, ms=4, **_look(i)) for i, m in enumerate(methods)]
    _legend(fig, handles)
  return fig


def save_figure(fig: Figure, stem: str | os.PathLike) -> list[pathlib.Path]:
  """Writes ``<stem>.png`` (200 dpi) and ``<stem>.svg``; no half-written file is left.

  Args:
    fig: Any figure.
    stem: Path without suffix; its folder must exist.

  Returns:
    The two paths.
  """
  import matplotlib

  paths = []
  for suffix in ("png", "svg"):
    buffer = io.BytesIO()
    # An SVG without its date: the same figure gives the same bytes.
    metadata = {"Date": None} if suffix == "svg" else None
    with matplotlib.rc_context(_RC):
      fig.savefig(buffer, format=suffix, dpi=200, metadata=metadata)
    paths.append(pathlib.Path(f"{os.fspath(stem)}.{suffix}"))
    write_atomic(paths[-1], buffer.getvalue())
  return paths
