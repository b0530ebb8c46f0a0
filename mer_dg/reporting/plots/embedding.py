"""Maps of embeddings: colour and number are the class, the mark is the domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mer_dg.reporting.maps import EmbeddingMap, EmbeddingMaps
from mer_dg.reporting.plots import style

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_TARGET = "^"  # The target's mark; sources have the others, again from the start.
_SOURCES = "osDPX*"
_HEIGHT = 0.85  # Of a panel, over its width.


def embedding_map(maps: EmbeddingMaps, training: str) -> Figure:
  """A panel per modality: two principal components of source and target embeddings.

  Colours repeat where there are more classes than colours; the numbers, at the median
  of a class in the sources and (framed) in the target, do not.

  Args:
    maps: Of one task.
    training: Which of its networks.

  Raises:
    ValueError: If there is no map of that training.
  """
  import matplotlib
  from matplotlib.figure import Figure

  panels = maps.of(training)
  if not panels:
    raise ValueError(f"training={training!r} is not one of {maps.trainings}.")
  ncols = min(len(panels), 2 if len(panels) == 4 else 3)
  nrows = -(-len(panels) // ncols)
  handles = _handles(maps)
  width = max(6.0, 3.1 * ncols + 0.4)
  longest = max(len(handle.get_label()) for handle in handles)
  columns = max(1, int(72 * width / (34 + 5 * longest)))
  rows = -(-len(handles) // columns)
  with matplotlib.rc_context(style.RC):
    size = (width, 3.2 * nrows + 0.2 * rows)  # The legend takes nothing from the maps.
    fig = Figure(figsize=size, layout="constrained")
    axes = fig.subplots(nrows, ncols, squeeze=False).flatten()
    for ax, panel in zip(axes, panels, strict=False):
      _draw(ax, maps, panel)
    for ax in axes[len(panels) :]:
      ax.set_axis_off()
    fig.legend(
      handles=handles, loc="outside upper left", ncols=columns, handletextpad=0.2,
      columnspacing=1.2,
    )  # fmt: skip
  return fig


def _color(label: int) -> str:
  return style.COLORS[label % len(style.COLORS)]


def _marker(maps: EmbeddingMaps, domain: int) -> str:
  if maps.domain_names[domain] == maps.target:
    return _TARGET
  sources = [d for d, name in enumerate(maps.domain_names) if name != maps.target]
  return _SOURCES[sources.index(domain) % len(_SOURCES)]


def _handles(maps: EmbeddingMaps) -> list[Any]:
  from matplotlib.lines import Line2D

  shown = np.unique(np.concatenate([m.label for m in maps.maps]))
  seen = np.unique(np.concatenate([m.domain for m in maps.maps]))
  entry = lambda label, **look: Line2D([], [], ls="", ms=5, label=label, **look)
  handles = [
    entry(f"{k} {maps.class_names[k]}" if maps.class_names[k] != str(k) else str(k),
          marker="s", color=_color(k))
    for k in shown
  ]  # fmt: skip
  for d in sorted(seen, key=lambda d: maps.domain_names[d] == maps.target):
    name, target = maps.domain_names[d], maps.domain_names[d] == maps.target
    look = dict(markeredgecolor=style.AXIS, color="#BBBBBB" if target else style.RULE)
    label = f"{name} (target)" if target else name
    handles.append(entry(label, marker=_marker(maps, d), **look))
  return handles


def _draw(ax: Axes, maps: EmbeddingMaps, panel: EmbeddingMap) -> None:
  held_out = np.array([name == maps.target for name in maps.domain_names])
  is_target = held_out[panel.domain]
  for d in np.unique(panel.domain):
    rows = panel.domain == d
    look: dict[str, Any] = (
      dict(s=20, edgecolors=style.AXIS, linewidths=0.5, alpha=0.9, zorder=3)
      if held_out[d]
      else dict(s=11, linewidths=0, alpha=0.45, zorder=2)
    )
    colors = [_color(k) for k in panel.label[rows]]
    x, y = panel.points[rows].T
    ax.scatter(x, y, c=colors, marker=_marker(maps, d), **look)
  for k in np.unique(panel.label):
    for target in (False, True):
      rows = (panel.label == k) & (is_target == target)
      if rows.any():
        at = np.median(panel.points[rows], axis=0)
        _number(ax, k, at, framed=target, many=len(maps.class_names) > 10)
  ax.set_xticks([])
  ax.set_yticks([])
  _fit(ax, panel.points)
  first, second = (f"{100 * s:.0f} %" for s in panel.share)
  ax.set_xlabel(f"first component, {first} of the variance")
  ax.set_ylabel(f"second, {second}")
  ax.set_title(f"{panel.training}: {panel.modality}", loc="left")


def _fit(ax: Axes, points: np.ndarray) -> None:
  """Both axes in the same units, around the points, in a frame of fixed shape."""
  low, high = points.min(axis=0), points.max(axis=0)
  half = 0.54 * max(high[0] - low[0], (high[1] - low[1]) / _HEIGHT, 1e-6)
  (x, y) = (low + high) / 2
  ax.set_box_aspect(_HEIGHT)
  ax.set_xlim(x - half, x + half)
  ax.set_ylim(y - _HEIGHT * half, y + _HEIGHT * half)


def _number(ax: Axes, label: int, at: np.ndarray, *, framed: bool, many: bool) -> None:
  box: dict[str, Any] = dict(
    boxstyle="square,pad=0.12", fc="#FFFFFF", alpha=0.8, lw=0.8
  )
  box["ec"] = _color(label) if framed else "none"
  x, y = at
  look: dict[str, Any] = dict(color=_color(label), bbox=box, fontweight="bold")
  look |= dict(fontsize=6 if many else 8, ha="center", va="center", zorder=4)
  ax.text(float(x), float(y), str(label), **look)
