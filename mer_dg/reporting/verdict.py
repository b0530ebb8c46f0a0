"""The question a reader has first: did it help, where, by how much, how sure.

Sentences are generated from the paired statistics of a table and from nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math

from mer_dg import protocol
from mer_dg.protocol import Difference
from mer_dg.reporting import formats, tables

SIGNIFICANCE = 0.05
_SAID = {
  "better": "better",
  "worse": "worse",
  "unclear": "not shown to differ",
}
# Below this many targets a bootstrap over targets is markedly too narrow.
_FEW_TARGETS = 6


@dataclasses.dataclass(frozen=True)
class Verdict:
  """One method against the reference.

  Attributes:
    method: Name.
    outcome: ``better``, ``worse`` or ``unclear``. The first two need both an adjusted
      p below 0.05 and an interval without 0.
    difference: Method minus reference over all targets.
    p: Adjusted p-value.
    least_p: The least p that so many pairs and comparisons could have given.
    targets: ``(target, mean difference)``, most helped first.
    ahead: Number of targets where the method has the better mean.
  """

  method: str
  outcome: str
  difference: Difference
  p: float
  least_p: float
  targets: tuple[tuple[str, float], ...]
  ahead: int

  @property
  def said(self) -> str:
    """The outcome in words."""
    return _SAID[self.outcome]


def verdicts(table: tables.Table) -> list[Verdict]:
  """A verdict on each method that shares pairs with the reference on every target."""
  sign = -1 if table.metric in protocol.LOWER_IS_BETTER else 1
  judged = [
    (row, row.difference)
    for row in table.rows
    if row.difference is not None and not math.isnan(row.difference.mean)
  ]
  out = []
  for row, d in judged:
    outcome = "unclear"
    if row.p_holm < SIGNIFICANCE and (d.low > 0 or d.high < 0):
      outcome = "better" if sign * d.mean > 0 else "worse"
    means = [(t, x.mean) for t, x in row.differences.items()]
    out.append(
      Verdict(
        method=row.method,
        outcome=outcome,
        difference=d,
        p=row.p_holm,
        least_p=min(1.0, len(judged) * 2 / 2**d.n),
        targets=tuple(sorted(means, key=lambda item: -sign * item[1])),
        ahead=sum(sign * mean > 0 for _, mean in means),
      )
    )
  return out


def headline(table: tables.Table, found: Sequence[Verdict]) -> str:
  """The answer in one line.

  Args:
    table: With a reference.
    found: Its `verdicts`.
  """
  if not found:
    return "Nothing to compare with, so no answer."
  if len(found) == 1:
    (v,) = found
    start = {
      "better": "Yes",
      "worse": "No, it hurt",
      "unclear": "Not shown",
    }[v.outcome]
    return f"{start}: {_claim(v, table)}."
  named = lambda outcome: [v.method for v in found if v.outcome == outcome]
  parts = []
  for outcome, said in (
    ("better", "better than"),
    ("worse", "worse than"),
    ("unclear", "not shown to differ from"),
  ):
    if names := named(outcome):
      parts.append(f"{_listed(names)} {_are(names)} {said} {table.reference}")
  return "; ".join(parts) + "."


def sentence(verdict: Verdict, table: tables.Table) -> str:
  """By how much, on which target, how sure: plain text, a few short sentences.

  Args:
    verdict: One of `verdicts`.
    table: The same table.
  """
  d, metric = verdict.difference, table.metric
  change = f"{_signed(d.mean, metric)}{formats.change_unit(metric)}"
  first = f"{change} of {_name(metric)} {_where(table)}"
  if not math.isnan(d.low):
    low, high = _signed(d.low, metric), _signed(d.high, metric)
    first += f" (95 % interval {low} to {high})"
  if len(verdict.targets) > 1:
    (best, most), (worst, least) = verdict.targets[0], verdict.targets[-1]
    first += (
      f", ahead on {verdict.ahead} of {len(verdict.targets)}: from "
      f"{_signed(most, metric)} on {best} to {_signed(least, metric)} on {worst}"
    )
  return f"{first}. {_how_sure(verdict, table)}"


def _how_sure(verdict: Verdict, table: tables.Table) -> str:
  d = verdict.difference
  pairs = f"{d.n} pair{'s' * (d.n != 1)} of runs with equal seed and split"
  adjusted = sum(row.difference is not None for row in table.rows) > 1
  p = formats.format_p(verdict.p) + (" after Holm's adjustment" if adjusted else "")
  text = f"How sure: {pairs}, sign-flip {p}."
  if verdict.least_p >= SIGNIFICANCE:
    text += (
      f" So few pairs cannot give p below {verdict.least_p:.2g}, whatever the effect: "
      "more seeds are needed for an answer."
    )
  elif verdict.outcome == "unclear" and verdict.p < SIGNIFICANCE:
    text += " But the interval over domains includes 0, so nothing is claimed."
  return text


def caution(table: tables.Table) -> str:
  """What the intervals cannot say; empty if there is nothing to warn of.

  Example:
    >>> from mer_dg.reporting.verdict import _few_targets
    >>> _few_targets(1), _few_targets(8)
    ('One held-out domain says nothing about others.', '')
  """
  return _few_targets(len(table.targets))


def _few_targets(count: int) -> str:
  if count == 1:
    return "One held-out domain says nothing about others."
  if count < _FEW_TARGETS:
    width = math.sqrt((count - 1) / count)
    return (
      f"With {count} held-out domains the interval of their mean is too narrow (about "
      f"{width:.0%} of what it should be) as a statement about new domains. The "
      "p-value speaks about these domains only."
    )
  return ""


def _claim(verdict: Verdict, table: tables.Table) -> str:
  """``mer is 2.0 points better than erm in target accuracy on average over 3 …``."""
  d, metric = verdict.difference, table.metric
  unit, name, where = formats.change_unit(metric), _name(metric), _where(table)
  if verdict.outcome == "unclear":
    return (
      f"{verdict.method} is not shown to differ from {table.reference} "
      f"({_signed(d.mean, metric)}{unit} of {name} {where})"
    )
  size = _signed(abs(d.mean), metric).removeprefix("+")
  return (
    f"{verdict.method} is {size}{unit} {verdict.outcome} than {table.reference} in "
    f"{name} {where}"
  )


def _name(metric: str) -> str:
  return f"target {metric.replace('_', ' ')}"


def _where(table: tables.Table) -> str:
  if len(table.targets) == 1:
    return f"on {table.targets[0]}"
  return f"on average over {len(table.targets)} held-out domains"


def _signed(value: float, metric: str) -> str:
  return formats.format_change(value, metric).replace("-", "−")


def _listed(names: Sequence[str]) -> str:
  return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _are(names: Sequence[str]) -> str:
  return "is" if len(names) == 1 else "are"
