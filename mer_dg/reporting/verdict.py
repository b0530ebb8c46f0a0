"""The question a reader has first: did it help? `templates/verdict.j2` says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mer_dg import protocol
from mer_dg.reporting import names, tables

# Sign and words of an outcome, and how they go on.
OUTCOMES = {
  "better": ("▲", "better", "better than"),
  "worse": ("▼", "worse", "worse than"),
  "unclear": ("◆", "not shown to differ", "not shown to differ from"),
}


class Verdict(NamedTuple):
  """One method against the reference."""

  row: tables.Row
  outcome: str  # Of `OUTCOMES`; the first two need small p and an interval without 0.
  least_p: float  # That so many pairs and comparisons could have given.
  targets: Sequence[tuple[str, float]]  # Mean differences, most helped first.
  ahead: int  # Number of targets where the method has the better mean.

  @property
  def size(self) -> float:
    """Of the difference, without its sign."""
    return abs(self.row.difference.mean) if self.row.difference else 0.0


def verdicts(table: tables.Table) -> list[Verdict]:
  """A verdict on each method that shares pairs with the reference on every target."""
  sign = -1 if table.metric in protocol.LOWER_IS_BETTER else 1
  judged = [(r, r.difference) for r in table.rows if r.difference]
  judged = [(row, d) for row, d in judged if d.mean == d.mean]  # Not NaN.
  out = []
  for row, d in judged:
    side = "better" if sign * d.mean > 0 else "worse"
    means = [(t, x.mean) for t, x in row.differences.items()]
    out.append(
      Verdict(
        row,
        side if row.sure else "unclear",
        min(1.0, len(judged) * 2 / 2**d.n),
        sorted(means, key=lambda item: -sign * item[1]),
        sum(sign * mean > 0 for _, mean in means),
      )
    )
  if len(out) > names.FEW:  # A ranking; in the order of the config they are told fully.
    gains = {row.method: sign * d.mean for row, d in judged}
    out.sort(key=lambda v: -gains[v.row.method])
  return out


def listed(methods: Sequence[str]) -> str:
  """``MER, MM and ERM``."""
  *others, last = map(names.display, methods)
  return f"{', '.join(others)} and {last}" if others else last
