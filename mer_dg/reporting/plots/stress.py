"""Plots of what happens under stress: modalities missing or corrupted, calibration."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import TYPE_CHECKING, Any

from mer_dg.reporting import stress
from mer_dg.reporting.plots import style
from mer_dg.reporting.plots.comparison import error_bar

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# With more conditions, only those with one modality withheld are drawn.
_MOST_BARS = 7
_HATCHES = ("", "///", "...", "\\\\\\", "xx", "--", "++", "oo")


def missing_plot(missing: stress.MissingModality) -> Figure:
  """Bars of the target score with every modality, and with one or more withheld.

  Args:
    missing: Of `stress.missing_modality`.
  """
  import matplotlib
  from matplotlib.figure import Figure

  scale, n = style.scale(missing.metric), len(missing.methods)
  groups = missing.conditions
  if len(groups) > _MOST_BARS:
    groups = tuple(g for g in groups if " + " not in g)
  width = 0.8 / n
  with matplotlib.rc_context(style.RC):
    size = min(12.0, max(4.4, 1.2 + 0.24 * len(groups) * (n + 1)))
    fig = Figure(figsize=(size, 3.2), layout="constrained")
    ax = fig.subplots()
    handles = []
    for i, (method, cells) in enumerate(missing.methods.items()):
      color = style.look(i)["color"]
      # White edges separate bars, white hatches tell them apart in grey print.
      looks: dict[str, Any] = dict(
        color=color, edgecolor="white", hatch=_HATCHES[i % len(_HATCHES)]
      )
      bars = None
      for j, condition in enumerate(groups):
        cell = cells.get(condition)
        if cell is None or math.isnan(cell.mean):
          continue
        x = j + (i - (n - 1) / 2) * width
        bars = ax.bar(x, scale * cell.mean, width, label=method, lw=0.6, **looks)
        ax.errorbar(
          x, scale * cell.mean, yerr=error_bar(cell, scale), color=style.AXIS, lw=1.2
        )
      handles += [bars] if bars is not None else []
    ax.set_xticks(range(len(groups)), [_wrapped(g) for g in groups])
    style.grid(ax, "y")
    ax.set_ylabel(style.axis_label("target", missing.metric))
    ax.set_title(
      "mean over targets, 95 % interval; " + style.SELECTION[missing.rule], loc="left"
    )
    style.legend(fig, handles)
  return fig


def _wrapped(condition: str) -> str:
  """``without a + b`` on two lines."""
  first, _, rest = condition.partition(" ")
  return f"{first}\n{rest}" if rest else first


def severity_plot(corrupted: stress.Corrupted) -> Figure:
  """Target score against severity, a panel for each modality and corruption.

  Args:
    corrupted: Of `stress.corrupted`.
  """
  import matplotlib
  from matplotlib.figure import Figure

  methods = _methods(corrupted)
  ncols = min(3, len(corrupted.panels))
  nrows = -(-len(corrupted.panels) // ncols)
  with matplotlib.rc_context(style.RC):
    fig = Figure(figsize=(2.6 * ncols + 0.6, 2.2 * nrows + 0.5), layout="constrained")
    axes = fig.subplots(nrows, ncols, squeeze=False, sharey=True).flatten()
    for ax, key in zip(axes, corrupted.panels, strict=False):
      _draw_severity(ax, corrupted, key, methods)
    for ax in axes[len(corrupted.panels) :]:
      ax.set_axis_off()
    style.legend(fig, style.handles(methods))
  return fig


def severity_figures(
  corrupted: stress.Corrupted, methods: Sequence[str]
) -> dict[str, Figure]:
  """The panels of `severity_plot` one by one, ``{title: figure}``, without legend."""
  import matplotlib
  from matplotlib.figure import Figure

  figures = {}
  with matplotlib.rc_context(style.RC):
    for key in corrupted.panels:
      fig = Figure(figsize=(3.0, 2.2), layout="constrained")
      ax = fig.subplots()
      _draw_severity(ax, corrupted, key, methods)
      figures[ax.get_title(loc="left")] = fig
    axes = [fig.axes[0] for fig in figures.values()]
    limits = [ax.get_ylim() for ax in axes]
    for ax in axes:  # One axis: corruptions are compared at a glance.
      ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
  return figures


def _methods(corrupted: stress.Corrupted) -> list[str]:
  return list(dict.fromkeys(m for panel in corrupted.panels.values() for m in panel))


def _draw_severity(
  ax: Axes, corrupted: stress.Corrupted, key: tuple[str, str], methods: Sequence[str]
) -> None:
  scale = style.scale(corrupted.metric)
  for i, method in enumerate(methods):
    curve = corrupted.panels[key].get(method, {})
    severity = sorted(curve)
    if not severity:
      continue
    look = style.look(i)
    mean = [scale * curve[s].mean for s in severity]
    low, high = ([scale * getattr(curve[s], end) for s in severity]
                 for end in ("low", "high"))  # fmt: skip
    ax.plot(severity, mean, lw=1.5, ms=4, **look)
    ax.fill_between(severity, low, high, color=look["color"], alpha=0.12, lw=0)
  style.grid(ax, "y")
  ax.set_xticks(range(6), ["clean", *"12345"])
  ax.set_xlabel("severity")
  ax.set_ylabel(style.axis_label("target", corrupted.metric))
  modality, kind = key
  ax.set_title(f"{modality}: {kind.replace('_', ' ')}", loc="left")


def reliability_plot(reliability: stress.Reliability) -> Figure:
  """Accuracy against confidence, bin by bin; the diagonal is perfect calibration.

  The size of a mark is the share of predictions in its bin; below the diagonal
  the network is over-confident.

  Args:
    reliability: Of `stress.reliability`.
  """
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(style.RC):
    fig = Figure(figsize=(4.0, 4.0), layout="constrained")
    ax = fig.subplots()
    ax.plot([0, 100], [0, 100], color=style.RULE, lw=0.9, ls=":")
    for i, bins in enumerate(reliability.methods.values()):
      look = style.look(i)
      kept = [b for b in bins if b.share > 0]
      x = [100 * b.confidence for b in kept]
      y = [100 * b.accuracy for b in kept]
      ax.plot(x, y, color=look["color"], ls=look["linestyle"], lw=1.2)
      # Area, not diameter, is the share: 160 square points for all predictions.
      area = [8 + 160 * b.share for b in kept]
      ax.scatter(x, y, area, color=look["color"], marker=look["marker"], alpha=0.8)
    ax.set_xlim(-2, 102)
    ax.set_ylim(-2, 102)
    ax.set_aspect("equal")
    style.grid(ax, "both")
    ax.set_xlabel("confidence, maximum softmax probability (%)")
    ax.set_ylabel("target accuracy (%)")
    ax.set_title(
      f"all targets and seeds; {style.SELECTION[reliability.rule]}", loc="left"
    )
    style.legend(fig, style.handles(list(reliability.methods)))
  return fig
