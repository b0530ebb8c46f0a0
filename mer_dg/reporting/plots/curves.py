"""Learning curves: scores, entropy and effective rank over training steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mer_dg import protocol
from mer_dg.protocol import AnyRecord
from mer_dg.reporting.plots import style

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Of the embeddings of each modality; prefix of the metric -> (title, unit).
_DIAGNOSTICS = {
  "entropy": ("entropy of {}", "nats"),
  "effective_rank": ("effective rank of {}", "dimensions"),
}


class Panel(NamedTuple):
  """One metric over training.

  Attributes:
    name: Key in ``metrics``.
    title: What the reader sees above it.
    label: Of the y axis, with unit.
    scale: From the recorded to the shown number.
    scored: Whether it is a score (which share their axis) or a diagnostic.
  """

  name: str
  title: str
  label: str
  scale: float
  scored: bool


def curve_panels(
  records: Sequence[AnyRecord],
  *,
  metric: str = "accuracy",
  history: Iterable[AnyRecord] = (),
) -> list[Panel]:
  """The panels that records have data for, modalities in the order of the config.

  Example:
    >>> record = {"modalities": ["audio"],
    ...           "metrics": {"val/accuracy": 0.5, "entropy/audio": 1.0}}
    >>> [panel.title for panel in curve_panels([record])]
    ['source validation', 'entropy of audio']
  """
  named = {k for r in (*records, *history) for k in r["metrics"]}
  label, scale = style.axis_label("", metric), style.scale(metric)
  panels = [
    Panel(f"{split}/{metric}", title, label, scale, True)
    for split, title in (("val", "source validation"), ("target", "target"))
    if f"{split}/{metric}" in named
  ]
  for kind, (title, unit) in _DIAGNOSTICS.items():
    order = [f"{kind}/{m}" for m in records[0]["modalities"]]
    others = {k for k in named if k.startswith(f"{kind}/")}.difference(order)
    for name in [k for k in order if k in named] + sorted(others):
      shown = title.format(name.partition("/")[2])
      panels.append(Panel(name, shown, unit, 1.0, False))
  return panels


def learning_curves(
  records: Iterable[AnyRecord],
  *,
  metric: str = "accuracy",
  history: Iterable[AnyRecord] = (),
  methods: Sequence[str] | None = None,
) -> Figure:
  """Source validation, target, and entropy and effective rank of every modality.

  Lines are means over targets and seeds, bands 95 % t intervals over seeds of the mean
  over targets. A panel is drawn for each metric ``entropy/<modality>`` (nats) and
  ``effective_rank/<modality>``.

  Args:
    records: Evaluations of one dataset at several steps.
    metric: Name without split.
    history: More rows of the same form (method, seed, split_seed, step, metrics), such
      as training metrics logged between evaluations.
    methods: Order of the methods, and so of their looks; by default of appearance.

  Raises:
    ValueError: If there are no records.
  """
  import matplotlib
  from matplotlib.figure import Figure

  rows, names, panels = _prepare(records, metric, history)
  methods = list(methods or names)
  ncols = 2 if len(panels) in (1, 2, 4) else 3
  nrows = -(-len(panels) // ncols)
  with matplotlib.rc_context(style.RC):
    fig = Figure(figsize=(2.6 * ncols + 0.6, 2.3 * nrows + 0.5), layout="constrained")
    axes = fig.subplots(nrows, ncols, squeeze=False).flatten()
    for ax, panel in zip(axes, panels, strict=False):
      _draw_panel(ax, rows, methods, panel)
    scored = [a for a, p in zip(axes, panels, strict=False) if p.scored]
    for ax in scored[1:]:
      ax.sharey(scored[0])  # The drop from source to target is read off at a glance.
    for ax in axes[len(panels) :]:
      ax.set_axis_off()
    style.legend(fig, style.handles(methods))
  return fig


def curve_figures(
  records: Iterable[AnyRecord],
  *,
  metric: str = "accuracy",
  history: Iterable[AnyRecord] = (),
  methods: Sequence[str] | None = None,
) -> dict[str, Figure]:
  """The panels of `learning_curves` one by one, ``{title: figure}``, without legend.

  For a page that lays them out itself; `style.swatch` draws the entries of a legend.
  """
  import matplotlib
  from matplotlib.figure import Figure

  rows, names, panels = _prepare(records, metric, history)
  methods = list(methods or names)
  figures, scored = {}, []
  with matplotlib.rc_context(style.RC):
    for panel in panels:
      fig = Figure(figsize=(3.0, 2.2), layout="constrained")
      ax = fig.subplots()
      _draw_panel(ax, rows, methods, panel)
      if panel.scored:
        scored.append(ax)
      figures[panel.title] = fig
    limits = [ax.get_ylim() for ax in scored]
    for ax in scored:
      ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
  return figures


def _prepare(
  records: Iterable[AnyRecord], metric: str, history: Iterable[AnyRecord]
) -> tuple[list[AnyRecord], list[str], list[Panel]]:
  records, history = list(records), list(history)
  if not records:
    raise ValueError("Nothing to plot: no records.")
  methods = list(dict.fromkeys(r["method"] for r in records))
  panels = curve_panels(records, metric=metric, history=history)
  return [*records, *history], methods, panels


def _curve(rows: Iterable[AnyRecord], name: str) -> np.ndarray:
  """``[steps, 4]``: step, mean and bounds over units of the mean over targets."""
  out = []
  rows = [r for r in rows if name in r["metrics"]]
  for step, at in sorted(protocol.group_by(rows, lambda r: r["step"]).items()):
    units = protocol.group_by(at, lambda r: (r["seed"], r["split_seed"]))
    means = [np.mean([r["metrics"][name] for r in unit]) for unit in units.values()]
    interval = protocol.mean_interval(means)
    out.append((step, interval.mean, interval.low, interval.high))
  return np.array(out, dtype=np.float64).reshape(-1, 4)


def _draw_panel(
  ax: Axes, rows: Sequence[AnyRecord], methods: Sequence[str], panel: Panel
) -> None:
  for i, method in enumerate(methods):
    curve = _curve((r for r in rows if r["method"] == method), panel.name)
    if not len(curve):
      continue
    step, mean, low, high = curve.T
    look = style.look(i)
    every = max(1, len(step) // 8)
    # Markers staggered: curves that coincide still show all their markers.
    offset = (i * every) // max(1, len(methods))
    ax.plot(step, panel.scale * mean, lw=1.5, ms=4, markevery=(offset, every), **look)
    band = ~np.isnan(low)
    if band.any():
      ax.fill_between(
        step[band],
        panel.scale * low[band],
        panel.scale * high[band],
        color=look["color"],
        alpha=0.15,
        lw=0,
      )
  style.grid(ax, "y")
  ax.set_xlabel("step")
  ax.set_ylabel(panel.label)
  ax.set_title(panel.title, loc="left")
