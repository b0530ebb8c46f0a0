"""Figures, drawn once for report.md and the page; no global state of matplotlib.

None is wider than `WIDTH`, so that a phone shows it whole and readable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import html
import io
import itertools
import math
import os
import pathlib
import re
import textwrap
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
import numpy as np
import pandas as pd

from mer_dg import protocol
from mer_dg.protocol import Interval, write_atomic
from mer_dg.reporting import extras, names
from mer_dg.reporting.maps import EmbeddingMap, EmbeddingMaps
from mer_dg.reporting.names import Look

WIDTH, SMALL = 4.8, (3.1, 2.2)  # Inches: the widest figure, and a panel of several.
LEAST_TARGETS = 6  # Ranks over fewer can tell hardly anything apart.
MANY = 6  # More methods than this have a line each, with their names on the axis.
GRID, RULE, AXIS = "#DDDDDD", "#888888", "#555555"
RC: dict[Any, Any] = {
  "font.size": 9,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.titlesize": 9,
  "axes.axisbelow": True,
  "grid.color": GRID,
  "grid.linewidth": 0.6,
  "legend.frameon": False,
  "svg.fonttype": "none",  # Text stays text: searchable, and small.
  "svg.hashsalt": "mer_dg",  # Ids that do not change from run to run.
  "text.parse_math": False,  # A modality may be called $x_1$.
}


_styled = matplotlib.rc_context(RC)  # Our settings; those of the process stay.


def _figure(
  size: tuple[float, float], grid: Literal["x", "y", "both", ""] = ""
) -> tuple[Figure, Axes]:
  fig = Figure(figsize=size, layout="constrained")
  ax = fig.subplots()
  if grid:
    ax.grid(axis=grid)
  return fig, ax


def _legend(fig: Figure, entries: Mapping[str, Look], line: bool, loc: Any) -> int:
  """A legend as wide as the figure; returns its number of lines."""
  handles = [
    Line2D([], [], label=label, ms=5, color=look.color, marker=look.marker,
           ls=look.linestyle if line else "")
    for label, look in entries.items()
  ]  # fmt: skip
  # Letters are about 5 points wide, the mark and the gaps 45.
  longest = max(map(len, entries), default=1)
  columns = max(1, min(4, int(72 * fig.get_figwidth() / (45 + 5 * longest))))
  fig.legend(handles=handles, loc=loc, ncols=columns)
  return -(-len(entries) // columns)


def named(looks: Mapping[str, Look], methods: Iterable[str]) -> dict[str, Look]:
  """Looks of some methods by their names for readers."""
  return {names.display(m): look for m, look in looks.items() if m in set(methods)}


@_styled
def key_figure(entries: Mapping[str, Look], line: bool = True) -> Figure:
  """The legend of a row of panels, alone."""
  fig = Figure(figsize=(WIDTH, 1.0))
  fig.set_figheight(0.15 + 0.19 * _legend(fig, entries, line, "center left"))
  return fig


@_styled
def interval_plot(
  lines: Mapping[str, Mapping[str, Interval]],
  looks: Mapping[str, Look],
  *,
  metric: str,
  xlabel: str,
  difference: bool = False,
  runs: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
  beside: Mapping[str, Mapping[str, Interval]] | None = None,
) -> Figure:
  """A mark with its 95 % interval for each method on each line.

  Args:
    lines: ``{line: {method: interval}}``.
    looks: Of the methods, in their order.
    metric: Says what is possible; nothing is drawn outside of it.
    xlabel: Of the axis.
    difference: Whether there is a rule at 0.
    runs: Values of single runs, as dots.
    beside: Open marks, with a thin line to the filled ones.
  """
  methods = [m for m in looks if any(m in cells for cells in lines.values())]
  k = len(methods)
  height = 1.0 + len(lines) * (0.14 + 0.15 * k) + 0.2 * (k // 3)
  fig, ax = _figure((WIDTH, height), "x")
  for j, (line, cells) in enumerate(lines.items()):
    for method in (m for m in methods if m in cells):
      y = j + (methods.index(method) - (k - 1) / 2) * 0.76 / k
      dots = (runs or {}).get(line, {}).get(method, ())
      other = (beside or {}).get(line, {}).get(method)
      of = (looks[method], metric, difference)
      _interval(ax, y, cells[method], *of, dots=dots, other=other)
    if line == "mean" and j:
      ax.axhline(j - 0.5, color=RULE, lw=0.8, ls=":")
  _finish(ax, list(lines), xlabel, metric, difference)
  _legend(fig, named(looks, methods), False, "outside upper left")
  return fig


@_styled
def forest_plot(
  cells: Mapping[str, Interval],
  looks: Mapping[str, Look],
  *,
  metric: str,
  xlabel: str,
  difference: bool = False,
  dots: Mapping[str, Sequence[float]] | None = None,
  beside: Mapping[str, Interval] | None = None,
  title: str = "",
) -> Figure:
  """`interval_plot` of many methods: a line each under its name, largest mean first.

  Args:
    cells: ``{method: interval}``.
    looks: Of the methods.
    metric: Says what is possible; nothing is drawn outside of it.
    xlabel: Of the axis.
    difference: Whether there is a rule at 0.
    dots: Values behind a mark, e.g. the mean of each target.
    beside: Open marks, with a thin line to the filled ones.
    title: Of the figure.
  """
  order = sorted(cells, key=lambda m: -cells[m].mean)
  fig, ax = _figure((WIDTH, 0.7 + 0.22 * len(order)), "x")
  for y, method in enumerate(order):
    of, other = (looks[method], metric, difference), (beside or {}).get(method)
    _interval(ax, y, cells[method], *of, dots=(dots or {}).get(method, ()), other=other)
  _finish(ax, [*map(names.display, order)], xlabel, metric, difference, wrap=36)
  ax.set_title(title, loc="left")
  return fig


def _possible(metric: str, difference: bool) -> tuple[float, float]:
  """Least and largest number that an axis can show."""
  most = names.largest(metric)
  return (-most if difference else 0.0), most


def _interval(ax: Axes, y: float, found, look, metric, difference, *, dots, other):
  """A mark, its interval clipped to what is possible, and what goes with it."""
  factor, ends = names.scale(metric), _possible(metric, difference)
  x = factor * found.mean
  if math.isnan(x):
    return
  for value in dots:
    ax.plot(factor * value, y, ".", color=look.color, ms=4, mew=0, alpha=0.5)
  if other is not None:
    at = factor * other.mean
    ax.plot([x, at], [y, y], color=look.color, lw=0.7, alpha=0.6)
    ax.plot(at, y, look.marker, mfc="#FFFFFF", mec=look.color, ms=4.5)
  if not math.isnan(found.low):
    bar = [min(max(factor * end, ends[0]), ends[1]) for end in (found.low, found.high)]
    ax.plot(bar, [y, y], color=look.color, lw=1.8, solid_capstyle="butt")
  ax.plot(x, y, look.marker, color=look.color, ms=5.5, zorder=4, clip_on=False)


def _finish(ax: Axes, lines, xlabel: str, metric: str, difference: bool, wrap=22):
  """Names of the lines, and an axis of what is possible."""
  if difference:
    ax.axvline(0, color=AXIS, lw=1.0)
  (low, high), (least, most) = ax.get_xlim(), _possible(metric, difference)
  ax.set_xlim(max(low, least), min(high, most))
  wrapped = [textwrap.fill(line, wrap, break_long_words=False) for line in lines]
  ax.set_yticks(range(len(lines)), wrapped)
  ax.set_ylim(len(lines) - 0.5, -0.5)
  ax.set_xlabel(xlabel)


@_styled
def curve_plots(
  panels: Mapping[tuple[str, str], extras.Curves],
  looks: Mapping[str, Look],
  metric: str,
  xlabel: str,
) -> dict[str, Figure]:
  """Lines with bands, a panel each without a legend; scores share their axis.

  Args:
    panels: ``{(title, label of y): {method: {x: interval}}}``.
    looks: Of the methods.
    metric: Of the panels whose label names it.
    xlabel: Of every panel.

  Returns:
    ``{title: figure}``.
  """
  scored = {key: names.metric_name(metric) in key[1] for key in panels}
  ends = [names.scale(metric) * end for key, curves in panels.items() if scored[key]
          for curve in curves.values() for i in curve.values()
          for end in (i.mean, i.low, i.high) if not math.isnan(end)]  # fmt: skip
  edge = 0.05 * (max(ends, default=1.0) - min(ends, default=0.0))
  found = {}
  for (title, ylabel), curves in panels.items():
    fig, ax = _figure(SMALL, "y")
    factor = names.scale(metric) if scored[title, ylabel] else 1.0
    for i, (method, curve) in enumerate(curves.items()):
      x, look = list(curve), looks[method]._asdict()
      y = factor * np.array([[v.mean, v.low, v.high] for v in curve.values()]).T
      every = max(1, len(x) // 8)
      # Markers staggered: curves that coincide still show all their markers.
      mark = ((i * every) // len(curves), every)
      ax.plot(x, y[0], lw=1.5, ms=4, markevery=mark, clip_on=False, **look)
      ax.fill_between(x, y[1], y[2], color=looks[method].color, alpha=0.15, lw=0)
    if scored[title, ylabel] and ends:
      most = min(names.largest(metric), max(ends) + edge)
      ax.set_ylim(max(0.0, min(ends) - edge), most)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title, loc="left")
    found[title] = fig
  return found


def can_rank(scores: Mapping[str, protocol.Scores]) -> bool:
  """Whether ranks could say something: 3 methods on `LEAST_TARGETS` common targets."""
  common = set.intersection(*(set(s) for s in scores.values())) if scores else set()
  return len(scores) >= 3 and len(common) >= LEAST_TARGETS


@_styled
def rank_plot(ranking: protocol.Ranking, looks: Mapping[str, Look]) -> Figure:
  """Critical-difference diagram: mean ranks over targets, Nemenyi at 5 %.

  Methods that a bar on the right joins are not shown to differ.

  Source:
    Demšar, Statistical comparisons of classifiers over multiple data sets, 2006, §4;
    turned, so that any number of methods keeps its names.
  """
  order = sorted(ranking.ranks, key=lambda m: ranking.ranks[m])
  cliques, k = protocol.cliques(ranking), len(order)
  fig, ax = _figure((WIDTH, 0.8 + 0.22 * k), "x")
  for y, method in enumerate(order):
    look, rank = looks[method], ranking.ranks[method]
    ax.plot(rank, y, look.marker, color=look.color, ms=6, zorder=5, clip_on=False)
  for i, clique in enumerate(cliques):
    at = 1.03 + 0.035 * i  # Of the width of the axis: outside, on the right.
    ends = [order.index(clique[0]) - 0.25, order.index(clique[-1]) + 0.25]
    ax.plot([at, at], ends, color=AXIS, lw=4, clip_on=False, solid_capstyle="butt",
            transform=ax.get_yaxis_transform())  # fmt: skip
  ax.set_xlim(1, k)
  ax.xaxis.set_major_locator(MaxNLocator(integer=True))
  ax.set_ylim(k - 0.5, -0.5)
  ax.set_yticks(
    range(k), [f"{names.display(m)}  {ranking.ranks[m]:.2f}" for m in order]
  )
  ax.set_xlabel(f"mean rank (critical difference {ranking.critical_difference:.2f})")
  return fig


@_styled
def reliability_plot(
  found: Mapping[str, pd.DataFrame], looks: Mapping[str, Look]
) -> Figure:
  """Accuracy against confidence, bin by bin; the diagonal is perfect calibration.

  The area of a mark is the share of predictions in its bin; bins with less than one
  in a hundred are faint.
  """
  fig, ax = _figure((4.0, 4.3), "both")
  ax.plot([0, 100], [0, 100], color=RULE, lw=0.9, ls=":")
  for method, bins in found.items():
    look, many = looks[method], bins[bins["share"] >= 0.01]
    x, y = 100 * many["confidence"], 100 * many["accuracy"]
    ax.plot(x, y, color=look.color, ls=look.linestyle, lw=1.2)
    for _, share, confidence, accuracy in bins.itertuples():
      # Area, not diameter, is the share: 160 square points for all predictions.
      ax.scatter(
        100 * confidence, 100 * accuracy, 8 + 160 * share, color=look.color,
        marker=look.marker, lw=0, alpha=0.8 if share >= 0.01 else 0.2, clip_on=False,
      )  # fmt: skip
  ax.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", ylabel="target accuracy (%)")
  ax.set_xlabel("confidence, maximum softmax probability (%)")
  _legend(fig, named(looks, found), True, "outside upper left")
  return fig


def map_plots(maps: EmbeddingMaps) -> tuple[Figure, dict[str, Figure]]:
  """Two principal components of source and target embeddings, a panel per map.

  Colours repeat where there are more classes than colours; the numbers, at the median
  of a class in the sources and (framed) in the target, do not.

  Returns:
    What colours and marks stand for, and ``{title: panel}``.
  """
  colors, order = list(names.COLORS), {int(k) for m in maps.maps for k in m.label}
  of = lambda k: colors[k % len(colors)]
  sources = [d for d in maps.domain_names if d != maps.target]
  marks = {d: "osDPX*"[i % 6] for i, d in enumerate(sources)} | {maps.target: "^"}
  key = {str(k) if (name := maps.class_names[k]) == str(k) else f"{k} {name}":
         Look(of(k), "s", "") for k in sorted(order)}  # fmt: skip
  seen = {maps.domain_names[d] for m in maps.maps for d in m.domain}
  key |= {f"{d} (target)" if d == maps.target else d: Look(AXIS, mark, "")
          for d, mark in marks.items() if d in seen}  # fmt: skip
  panels = {f"{names.display(m.training)}: {m.modality}": m for m in maps.maps}
  found = {title: _map_plot(maps, m, title, marks, of) for title, m in panels.items()}
  return key_figure(key, line=False), found


@_styled
def _map_plot(maps: EmbeddingMaps, panel: EmbeddingMap, title: str, marks, of):
  fig, ax = _figure((3.1, 2.9))
  held_out = np.array([name == maps.target for name in maps.domain_names])
  for d in np.unique(panel.domain):
    rows = panel.domain == d
    look: dict[str, Any] = dict(s=11, linewidths=0, alpha=0.45, zorder=2)
    if held_out[d]:
      look = dict(s=20, edgecolors=AXIS, linewidths=0.5, alpha=0.9, zorder=3)
    mark, colors = marks[maps.domain_names[d]], [of(k) for k in panel.label[rows]]
    ax.scatter(*panel.points[rows].T, c=colors, marker=mark, **look)
  labels = np.unique(panel.label)
  for k, framed in itertools.product(labels, (False, True)):
    own = (panel.label == k) & (held_out[panel.domain] == framed)
    if own.any():
      edge = of(k) if framed else "none"
      box = dict(boxstyle="square,pad=0.12", fc="#FFFFFF", alpha=0.8, lw=1, ec=edge)
      x, y = np.median(panel.points[own], axis=0).tolist()
      look = dict(ha="center", va="center", fontweight="bold", zorder=4)
      ax.text(x, y, str(k), bbox=box, fontsize=6 if len(labels) > 10 else 8, **look)
  ax.set(xticks=[], yticks=[])
  ax.set_aspect("equal", adjustable="datalim")
  first, second = (f"{100 * s:.0f} %" for s in panel.share)
  ax.set_xlabel(f"first component, {first} of variance")
  ax.set_ylabel(f"second, {second}")
  ax.set_title(title, loc="left")
  return fig


@_styled
def to_bytes(fig: Figure, suffix: str) -> bytes:
  """The figure as ``svg``, ``pdf`` or ``png``; the same figure, the same bytes."""
  buffer = io.BytesIO()
  metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix)
  fig.savefig(buffer, format=suffix, dpi=200, metadata=metadata)
  return buffer.getvalue()


def save_figure(
  fig: Figure, stem: str | os.PathLike, suffixes: Sequence[str] = ("svg", "png")
) -> list[pathlib.Path]:
  """Writes ``<stem>.<suffix>`` for each suffix; no half-written file is left."""
  paths = [pathlib.Path(f"{os.fspath(stem)}.{suffix}") for suffix in suffixes]
  for path, suffix in zip(paths, suffixes, strict=True):
    write_atomic(path, to_bytes(fig, suffix))
  return paths


# Colours that follow the scheme of the page, light or dark.
_SCHEME = {color.lower(): f"var(--c{i})" for i, color in enumerate(names.COLORS)}
_SCHEME |= {"#ffffff": "var(--paper)", GRID.lower(): "var(--grid)"}
_SCHEME |= {"#000000": "currentColor", RULE: "var(--rule)", AXIS: "var(--axis)"}


def inline(svg: bytes, prefix: str, label: str) -> str:
  """An SVG for use inside a page: its colours, no styles, ids of its own.

  Names from the data are text in it, and escaped.

  Args:
    svg: Of `to_bytes`.
    prefix: Put before every id, unique in the page.
    label: What a screen reader says.
  """
  text = svg.decode()
  # Metadata names the software and its web pages; style would leave the figure.
  text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
  text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
  own = lambda m: m[1] + _SCHEME.get(m[2].lower(), m[2])
  text = re.sub(r'((?:fill|stroke)(?:: |="))(#[0-9a-fA-F]{6})', own, text)
  said = f'<svg role="img" aria-label="{html.escape(label)}" '
  # matplotlib leaves black out.
  return said + 'fill="currentColor"' + text[text.index("<svg") + len("<svg") :]
