"""How methods, rules, metrics and numbers are called and written, everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import math
import re
from typing import Any, NamedTuple

import pandas as pd

from mer_dg import protocol
from mer_dg.protocol import Interval

SIGNIFICANCE = 0.05
LEAST_SEEDS = 4  # With fewer the interval over seeds is shown as the point it is.
FEW = 4  # More methods than this have one line each in the answer, no sentences.
DASH, MINUS = "–", "−"
_METHODS = {
  "erm": "ERM",
  "heads": "Unimodal heads",
  "mer_kde": "MER (kde)",
  "mer_logdet": "MER (logdet)",
  "mm": "MM",
  "mm_alternate": "MM (alternating)",
  "md": "Modality dropout",
  "late": "Late fusion",
  "mer_vmf": "MER (vMF)",
  "mer_per_domain": "MER (per domain)",
  "mer_per_class": "MER (per class)",
  "mer_per_class_and_domain": "MER (per class and domain)",
  "mer_learned": "MER (learned strength)",
  "mer_explored": "MER (strength by exploration)",
  "mm_nested": "MM (nested)",
  "rna": "RNA-Net",
  "simmmdg": "SimMMDG",
  "ogm_ge": "OGM-GE",
  "pmr": "PMR",
  "mixup": "Mixup",
  "sam": "SAM",
  "ema": "EMA",
  "sma": "SMA",
  "swad": "SWAD",
  "cmc": "CMC",
  "cmt_mlp": "CMT (networks)",
  "cmt_l2": "CMT (L2)",
  "moosa": "MOOSA",
  "cmrf": "CMRF",
  "nel": "NEL",
  "jat": "JAT",
  "mbcd": "MBCD",
  "gmp": "GMP",
  "agm": "AGM",
  "g_blend": "G-Blend",
  "mmpareto": "MMPareto",
  "remix": "Data Remixing",
  "mla": "MLA",
  "uniform": "Uniform",
  "coral": "CORAL",
  "mmd": "MMD",
  "dann": "DANN",
  "vrex": "V-REx",
  "group_dro": "Group DRO",
  "fishr": "Fishr",
  "miro": "MIRO",
}
# Colour-blind safe after Okabe & Ito, Color universal design, 2008, but dark enough to
# be seen on white; and what stands for it on the page in its dark scheme.
COLORS = {
  "#000000": "currentColor",
  "#0072B2": "#56B4E9",
  "#D55E00": "#F28E4B",
  "#00805C": "#2CCB9B",
  "#B0508A": "#E59CC6",
  "#946300": "#F0B429",
  "#5B7F95": "#A9C4D4",
}
_MARKERS = "osD^vPX*"  # One more than colours: a colour again has another marker.
_LINES = ("-", "--", "-.", ":")
_SAFE = "(never sees the target)"
# Heading of each selection rule, and what a reader must know before its numbers.
RULES = {
  "source_val": (
    "Checkpoint selected on source validation",
    f"checkpoint selected on source validation {_SAFE}",
  ),
  "re-paired_val": (
    "Checkpoint selected on source validation, modalities re-paired",
    "checkpoint selected on source validation with modalities re-paired within class "
    + _SAFE,
  ),
  "leave_one_source_out": (
    "Setting and step chosen on left-out sources",
    f"setting and step chosen on source domains left out in turn {_SAFE}",
  ),
  "last": (
    "Last step: no checkpoint selection",
    "last step, no checkpoint selection",
  ),
  "oracle": (
    "Oracle: checkpoint selected on the target, not a valid result",
    "ORACLE: checkpoint selected on the target itself, no valid domain-generalisation "
    "result",
  ),
}
# What a table of another protocol than leaving one domain out has to say of itself.
PROTOCOLS = {
  "single_source": "trained on one source domain",
  "target_alone": "trained on rows of the target itself alone",
  "with_target": "trained on the sources and rows of the target itself (upper bound)",
}
# Shown in percent; every other metric is shown as it is, with three decimals.
_PERCENT = ("accuracy", "balanced_accuracy", "ece")


class Look(NamedTuple):
  """How a method is drawn."""

  color: str
  marker: str
  linestyle: str


class Cell(str):
  """Text of a table; ``mark`` is best or second where it is that of a column."""

  mark: str = ""

  @classmethod
  def of(cls, text: str, mark: str) -> Cell:
    """A marked text."""
    cell = cls(text)
    cell.mark = mark
    return cell


def display(method: str) -> str:
  """The name of a method for readers; of one that is not known here, its own.

  Example:
    >>> display("mer_kde"), display("mer_kde+mm"), display("erm [lr=1]"), display("x_1")
    ('MER (kde)', 'MER (kde) + MM', 'ERM [lr=1]', 'x_1')
  """
  name, bracket, setting = method.partition(" [")
  parts = name.split("+")
  if any(part in _METHODS for part in parts):
    name = " + ".join(_METHODS.get(part, part) for part in parts)
  return name + bracket + setting


def looks(methods: Iterable[str]) -> dict[str, Look]:
  """Colour, marker and line of each method: the known ones have theirs, always."""
  fixed = {m: i for i, m in enumerate(_METHODS)}
  methods, colors = list(dict.fromkeys(methods)), list(COLORS)
  taken = {fixed[m] for m in methods if m in fixed}
  free = iter(i for i in range(len(methods) + len(fixed)) if i not in taken)
  place = {m: fixed[m] if m in fixed else next(free) for m in methods}
  return {
    m: Look(colors[i % 7], _MARKERS[i % 8], _LINES[i // 7 % 4])
    for m, i in place.items()
  }


def is_percent(metric: str) -> bool:
  """Whether a metric is shown in percent (else as it is)."""
  return metric in _PERCENT


def scale(metric: str) -> float:
  """Factor from the recorded to the shown number."""
  return 100.0 if is_percent(metric) else 1.0


def largest(metric: str) -> float:
  """Largest possible shown number; the least is 0."""
  return 100.0 if is_percent(metric) else 2.0 if metric == "brier" else math.inf


def metric_name(metric: str, unit: bool = True) -> str:
  """``balanced accuracy (%)``."""
  units = " (%)" if is_percent(metric) else " (nats)" if metric == "nll" else ""
  return metric.replace("_", " ") + units * unit


def change_unit(metric: str) -> str:
  """Unit of a difference, with a blank before it."""
  return " points" if is_percent(metric) else " nats" if metric == "nll" else ""


def number(value: float, metric: str, sign: str = "") -> str:
  """A value as shown.

  Example:
    >>> number(0.512, "accuracy"), number(0.0125, "accuracy", "+"), number(-0.5, "nll")
    ('51.2', '+1.2', '−0.500')
  """
  if math.isnan(value):
    return "NaN"
  text = f"{scale(metric) * value:{sign}.{1 if is_percent(metric) else 3}f}"
  return text.replace("-", MINUS)


def interval(found: Interval | None, metric: str) -> str:
  """``51.2 ± 1.3``: mean and half the width of the 95 % interval, if there is one."""
  if found is None:
    return DASH
  text, half = number(found.mean, metric), (found.high - found.low) / 2
  return text if math.isnan(half) else f"{text} ± {number(half, metric)}"


def pointed(found: Any, least: float | None = None) -> Any:
  """Without bounds where fewer values are behind them (than `LEAST_SEEDS`)."""
  if found is None or found.n >= (LEAST_SEEDS if least is None else least):
    return found
  return dataclasses.replace(found, low=math.nan, high=math.nan)


def p_value(p: float) -> str:
  """``p = 0.031``, ``p < 0.001``."""
  return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def difference(found: Interval | None, p: float, metric: str) -> str:
  """``+2.0 [+0.5, +3.5], p = 0.031``.

  Example:
    >>> difference(Interval(0.02, -0.005, 0.045, 5), 0.2, "accuracy")
    '+2.0 [−0.5, +4.5], p = 0.200'
  """
  if found is None:
    return DASH
  text = number(found.mean, metric, "+")
  if not math.isnan(found.low):
    low, high = (number(x, metric, "+") for x in (found.low, found.high))
    text += f" [{low}, {high}]"
  return text if math.isnan(p) else f"{text}, {p_value(p)}"


def marked(cells: Sequence[Interval | None], texts: Sequence[str], metric: str):
  """Texts of a column, its best and second number marked; ties as printed share it."""
  sign = 1 if metric in protocol.LOWER_IS_BETTER else -1
  keys = [math.inf if c is None or math.isnan(c.mean) else sign * round(c.mean, 3)
          for c in cells]  # fmt: skip
  ranked = sorted({k for k in keys if k != math.inf})
  marks = dict(zip(ranked[:2], ("best", "second"), strict=True)) if ranked[1:] else {}
  return [Cell.of(text, marks.get(k, "")) for text, k in zip(texts, keys, strict=True)]


def short_revision(revision: str) -> str:
  """A git hash in 10 digits, its ``-dirty`` kept; a version as it is."""
  return re.sub(r"^([0-9a-f]{10})[0-9a-f]{30}\b", r"\1", revision)


def plain(text: str) -> str:
  r"""Text that Markdown shows as it is: no cell, no markup, no link of its own.

  Example:
    >>> print(plain("<b>|a](x)"))
    &lt;b>\|a]\(x)
  """
  text = re.sub(r"\s+", " ", text).replace("|", r"\|").replace("<", "&lt;")
  return text.replace("`", "'").replace("](", r"]\(")


def pipe_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
  """A Markdown table that can be read in a terminal, too; the first column is names.

  Example:
    >>> print(pipe_table(["method", "a"], [["erm", Cell.of("1.0", "best")]]))
    | method   |       a |
    |:---------|--------:|
    | erm      | **1.0** |
  """
  wrap = {"best": "**{}**", "second": "*{}*", "": "{}"}
  shown = lambda cell: wrap[getattr(cell, "mark", "")].format(plain(cell))
  lines = [[shown(cell) for cell in line] for line in body]
  table = pd.DataFrame(lines, columns=[plain(name) for name in header])
  align = ["left", *["right"] * (len(header) - 1)]
  return table.to_markdown(index=False, disable_numparse=True, colalign=align)
