"""Building blocks of the HTML page: figures, small multiples, tables of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mer_dg.reporting.markup import Markup, svg, tag
from mer_dg.reporting.plots import style

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def figure(fig: Figure, prefix: str, caption: str, *, wide: bool = False) -> Markup:
  """A plot and its caption; a wide one scrolls sideways on a phone."""
  drawn = svg(fig, prefix, caption)
  if wide:  # Shrunk, its text could not be read.
    drawn = tag("div", drawn, class_="wide")
  return tag("figure", drawn, tag("figcaption", caption))


def grid(header: Sequence[str], *body: Sequence[str]) -> Markup:
  """A table whose first column names the lines; scrolls sideways on a phone."""
  head = tag("thead", tag("tr", [tag("th", h, scope="col") for h in header]))
  lines = [
    tag("tr", tag("th", line[0], scope="row"), [tag("td", c) for c in line[1:]])
    for line in body
  ]
  inside = tag("table", head, tag("tbody", lines), class_="numbers")
  return tag("div", inside, class_="scroll")


def panels(
  figures: dict[str, Figure], methods: Sequence[str], ids: Iterator[str], caption: str
) -> Markup:
  """Small plots side by side, on a phone below each other, under one legend.

  Args:
    figures: ``{what a screen reader says: figure}``.
    methods: In the order of their looks.
    ids: Prefixes for the ids inside the figures, each used once in a page.
    caption: Below all of them.
  """
  return tag(
    "figure",
    tag("p", [_key(i, m, ids) for i, m in enumerate(methods)], class_="key"),
    tag(
      "div",
      [tag("div", svg(fig, next(ids), label)) for label, fig in figures.items()],
      class_="panels",
    ),
    tag("figcaption", caption),
  )


def _key(position: int, method: str, ids: Iterator[str]) -> Markup:
  drawn = svg(style.swatch(position), next(ids), f"look of {method}")
  return tag("span", drawn, " ", method)
