"""What all plots share: colours, markers, labels, legends, and files.

Colour-blind safe, and told apart in grey print by their markers. matplotlib is imported
inside the functions; no global state of it is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import io
import os
import pathlib
from typing import TYPE_CHECKING, Any, Literal

from mer_dg.protocol.files import write_atomic
from mer_dg.reporting import formats

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D

# Okabe & Ito, Color universal design, 2008; without the yellow, too pale on white.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# One more than colours: a colour that comes again comes with another marker.
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")
# Greys by their part; the HTML page replaces them in its dark scheme.
GRID, RULE, AXIS = "#DDDDDD", "#888888", "#555555"
SELECTION = {
  "source_val": "selected on source validation",
  "repaired_val": "selected on re-paired source validation",
  "last": "last step",
  "leave_one_source_out": "selected on left-out sources",
  "oracle": "ORACLE, selected on the target",
}
RC: dict[Any, Any] = {
  "font.size": 9,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.titlesize": 9,
  "grid.color": GRID,
  "grid.linewidth": 0.6,
  "legend.frameon": False,
  "svg.fonttype": "none",  # Text stays text: searchable, and small.
  "svg.hashsalt": "mer_dg",  # Ids that do not change from run to run.
  "text.parse_math": False,  # A modality may be called $x_1$.
}


def look(position: int) -> dict[str, Any]:
  """Colour, marker and line of the n-th method; lines change when colours repeat."""
  return {
    "color": COLORS[position % len(COLORS)],
    "marker": MARKERS[position % len(MARKERS)],
    "linestyle": LINES[position // len(COLORS) % len(LINES)],
  }


def axis_label(split: str, metric: str) -> str:
  """``target accuracy (%)``: split, metric and unit."""
  unit = " (%)" if formats.is_percent(metric) else " (nats)" if metric == "nll" else ""
  return f"{split} {metric.replace('_', ' ')}{unit}".strip()


def scale(metric: str) -> float:
  """Factor from the recorded to the shown number."""
  return 100.0 if formats.is_percent(metric) else 1.0


def grid(ax: Axes, axis: Literal["x", "y", "both"]) -> None:
  """Grid lines of one axis, behind the data."""
  ax.grid(axis=axis)
  ax.set_axisbelow(True)


def legend(fig: Figure, handles: Sequence[Any]) -> None:
  """A legend above all axes, on the left: wide figures are scrolled from there."""
  longest = max(len(handle.get_label()) for handle in handles)
  # Letters are about 5 points wide, the mark and the gaps 45.
  columns = int(72 * fig.get_figwidth() / (45 + 5 * longest))
  columns = max(1, min(4, len(handles), columns))
  fig.legend(handles=handles, loc="outside upper left", ncols=columns)


def handles(methods: Sequence[str], **changes: Any) -> list[Line2D]:
  """Legend entries of methods in the order of their looks."""
  from matplotlib.lines import Line2D

  return [
    Line2D([], [], label=m, ms=5, **(look(i) | changes)) for i, m in enumerate(methods)
  ]


def swatch(position: int) -> Figure:
  """Line and marker of the n-th method alone, for a legend outside of matplotlib."""
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(RC):
    fig = Figure(figsize=(0.36, 0.14))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.plot([0, 1, 2], [0, 0, 0], markevery=[1], ms=5, lw=1.5, **look(position))
    ax.set_axis_off()
  return fig


def to_bytes(fig: Figure, suffix: str, *, transparent: bool = False) -> bytes:
  """The figure as ``png`` (200 dpi) or ``svg``; the same figure, the same bytes."""
  import matplotlib

  buffer = io.BytesIO()
  metadata: Mapping[str, None] | None = {"Date": None} if suffix == "svg" else None
  with matplotlib.rc_context(RC):
    fig.savefig(
      buffer, format=suffix, dpi=200, metadata=metadata, transparent=transparent
    )
  return buffer.getvalue()


def save_figure(fig: Figure, stem: str | os.PathLike) -> list[pathlib.Path]:
  """Writes ``<stem>.png`` (200 dpi) and ``<stem>.svg``; no half-written file is left.

  Args:
    fig: Any figure.
    stem: Path without suffix; its folder must exist.

  Returns:
    The two paths.
  """
  paths = []
  for suffix in ("png", "svg"):
    paths.append(pathlib.Path(f"{os.fspath(stem)}.{suffix}"))
    write_atomic(paths[-1], to_bytes(fig, suffix))
  return paths
