"""HTML that is escaped unless it says it is markup, and figures inside it."""

from __future__ import annotations

from collections.abc import Iterable
import html
import re
from typing import TYPE_CHECKING
import xml.etree.ElementTree as ET

from mer_dg.reporting.plots import style

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_VOID = frozenset({"meta", "br", "hr", "img"})
# Colours that have to follow the scheme of the page, light or dark.
_COLORS = {
  "#000000": "currentColor",
  "#ffffff": "var(--paper)",
  style.GRID.lower(): "var(--grid)",
  style.RULE.lower(): "var(--rule)",
  style.AXIS.lower(): "var(--axis)",
}


class Markup(str):
  """A string that is HTML already; every other string is data and gets escaped."""

  __slots__ = ()


def tag(name: str, /, *children: str | Iterable[str], **attributes: str) -> Markup:
  """One element.

  Args:
    name: Of the element.
    *children: Strings, escaped unless they are `Markup`, or iterables of such.
    **attributes: Their values are escaped; a trailing underscore of a name is dropped
      (``class_``), other underscores become hyphens (``aria_label``).

  Example:
    >>> print(tag("p", "a < b", tag("b", "c"), class_="x"))
    <p class="x">a &lt; b<b>c</b></p>
  """
  named = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items()}
  inside = "".join(f' {k}="{html.escape(v)}"' for k, v in named.items())
  if name in _VOID:
    return Markup(f"<{name}{inside}>")
  return Markup(f"<{name}{inside}>{join(*children)}</{name}>")


def join(*children: str | Iterable[str]) -> Markup:
  """Children one after another, escaped where they are data.

  Example:
    >>> print(join("<", [tag("br"), "&"]))
    &lt;<br>&amp;
  """
  out = []
  for child in children:
    if isinstance(child, str):
      out.append(child if isinstance(child, Markup) else html.escape(child))
    else:
      out.append(join(*child))
  return Markup("".join(out))


def svg(fig: Figure, prefix: str, label: str) -> Markup:
  """A figure as inline SVG: no network, colours of the page, ids of its own.

  Args:
    fig: Any.
    prefix: Put before every id, unique in the page.
    label: What a screen reader says.

  Example:
    >>> from matplotlib.figure import Figure
    >>> text = svg(Figure(figsize=(1, 1)), "p1", "an empty figure")
    >>> text.startswith("<svg"), 'aria-label="an empty figure"' in text
    (True, True)
  """
  root = ET.fromstring(style.to_bytes(fig, "svg", transparent=True))
  for parent in list(root.iter()):
    for child in list(parent):
      # Metadata names the software and its web pages; style would leave the figure.
      if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
        parent.remove(child)
  for element in root.iter():
    for name, value in element.attrib.items():
      element.set(name, _attribute(name, value, prefix))
  root.set("role", "img")
  root.set("aria-label", label)
  root.set("fill", "currentColor")  # matplotlib leaves black out.
  ET.register_namespace("", _SVG)
  ET.register_namespace("xlink", _XLINK)
  return Markup(ET.tostring(root, encoding="unicode"))


def _attribute(name: str, value: str, prefix: str) -> str:
  if name == "id":
    return f"{prefix}-{value}"
  if name == f"{{{_XLINK}}}href":
    return value.replace("#", f"#{prefix}-", 1)
  value = re.sub(r"url\(#", f"url(#{prefix}-", value)
  if name in ("style", "fill", "stroke"):
    return re.sub(r"#[0-9a-fA-F]{6}", lambda m: _COLORS.get(m[0].lower(), m[0]), value)
  return value
