"""All sets of a benchmark together: the primary endpoint of docs/protocol.md.

Which tables count, what each method gains over plain fusion and over the free baseline,
and in which of the protocol's words. ``templates/verdict.j2`` makes a sentence of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from mer_dg import protocol
from mer_dg.protocol import Pooled, Scores
from mer_dg.reporting import frame, names
from mer_dg.reporting.linear import ALL, ModelRow
from mer_dg.reporting.tables import Grid, Table

# The baseline that costs nothing: what is put on top of it has to add to it.
FREE = "heads+md"
# As fractions: plain fusion so far behind a logistic regression, and a set is not
# pooled; an interval inside this, and there is no effect worth its name.
_BEHIND, _EQUIVALENT = 0.02, 0.01
# Of an effect above 0 and below, to whom.
_FIRST, _ON_TOP = ("helps", "hurts"), ("adds something", "takes something away")
_BESIDE = ("is ahead", "is behind")
_SAME, _UNSHOWN = "equivalent (within 1 point)", "not shown"
_WORDS = (*_FIRST, *_ON_TOP, *_BESIDE, _SAME, _UNSHOWN)

# {data set: {method: scores}}
_Scores = Mapping[str, Mapping[str, Scores]]


class Part(NamedTuple):
  """One table as it is pooled.

  Attributes:
    table: By the rule of the headline.
    rows: The evaluations behind it, in a frame.
    numbers: ``{method: names of its hyperparameters}``.
    linear: Linear models on the same splits, if there are any.
    generated: Whether its data come from a generator.
  """

  table: Table
  rows: pd.DataFrame
  numbers: Mapping[str, frozenset[str]]
  linear: Sequence[ModelRow] = ()
  generated: bool = False


class Gain(NamedTuple):
  """What a method has over a base, and the protocol's word for it."""

  method: str
  found: Pooled
  word: str


class Endpoint(NamedTuple):
  """What all sets say together.

  Attributes:
    domains: Number of pooled held-out domains.
    sets: ``{set: data sets that count as it}``.
    left_out: Data sets that are not pooled, and why.
    gains: ``{base: a line per method}``.
    lacking: Methods without a run that the base has, which have no pooled number.
    grids: ``{base: the gains}``.
    beside: Secondary measures.
    scores: ``{method: {"data set: target": values}}`` of methods that all sets have.
  """

  domains: int
  sets: Mapping[str, Sequence[str]]
  left_out: Sequence[str]
  gains: Mapping[str, Sequence[Gain]]
  lacking: Sequence[str]
  grids: Mapping[str, Grid]
  beside: Grid
  scores: Mapping[str, Mapping[str, Mapping[Any, float]]]

  def said(self, base: str) -> dict[str, list[str]]:
    """``{word: methods}``, claims first."""
    gains = self.gains[base]
    found = {word: [g.method for g in gains if g.word == word] for word in _WORDS}
    return {word: methods for word, methods in found.items() if methods}


def candidates(parts: Sequence[Part]) -> tuple[dict[str, Part], list[str]]:
  """The tables that are pooled, one of each data set, and why others are not.

  Only tables that leave one domain out count, and of each data set the one with most
  modalities: pairs of domains and subsets of modalities share their data. Generated
  sets, and those on which plain fusion is more than 2 points behind a logistic
  regression, are not pooled.
  """
  chosen: dict[str, Part] = {}
  for part in parts:
    table = part.table
    best = chosen.get(table.dataset)
    more = best is None or len(table.modalities) > len(best.table.modalities)
    if table.protocol == protocol.PROTOCOLS[0] and more:
      chosen[table.dataset] = part
  why = {name: _why_not(part) for name, part in chosen.items()}
  pooled = {name: part for name, part in chosen.items() if not why[name]}
  return pooled, [f"{name} ({reason})" for name, reason in why.items() if reason]


def _why_not(part: Part) -> str:
  if part.generated:
    return "generated"
  table = part.table
  plain = next((r.mean for r in table.rows if r.method == table.reference), None)
  linear = next((m.mean for m in part.linear if m.name == ALL), None)
  if plain is None or linear is None or not linear - plain.mean > _BEHIND:
    return ""
  gap = names.number(linear - plain.mean, table.metric)
  who = names.display(table.reference or "")
  return f"{who} is {gap} points behind a logistic regression"


def endpoint(parts: Sequence[Part]) -> Endpoint | None:
  """Everything pooled; ``None`` unless two sets that share no inputs count."""
  pooled, left_out = candidates(parts)
  counted = protocol.counted_as(list(pooled))
  sets = {s: [n for n in pooled if counted[n] == s] for s in counted.values()}
  if len(sets) < 2:
    return None
  first = next(iter(pooled.values())).table
  scores = {name: part.table.scores for name, part in pooled.items()}
  bases = [base for base in (first.reference, FREE) if base and _has(scores, base)]
  if not bases:
    return None
  gains = {
    base: list(_gains(pooled, scores, base, bases[0], first.metric))
    for base in dict.fromkeys(bases)
  }
  methods = [bases[0], *(g.method for g in gains[bases[0]])]
  everyone = dict.fromkeys(m for own in scores.values() for m in own)
  domains = sum(len(own[bases[0]]) for own in scores.values())
  header = [f"difference, {domains} domains", f"{len(sets)} sets", "verdict"]
  return Endpoint(
    domains=domains,
    sets=sets,
    left_out=left_out,
    gains=gains,
    lacking=[m for m in everyone if m not in methods],
    grids={
      base: (["method", *header], [_line(gain, first.metric) for gain in own])
      for base, own in gains.items()
    },
    beside=_beside(pooled, methods, first.metric),
    scores={m: _targets(scores, m) for m in everyone if _has(scores, m)},
  )


def _has(scores: _Scores, method: str) -> bool:
  return all(own.get(method) for own in scores.values())


def _of(scores: _Scores, method: str) -> dict[str, Scores]:
  return {name: own.get(method, {}) for name, own in scores.items()}


def _targets(scores: _Scores, method: str) -> dict[str, Mapping[Any, float]]:
  return {
    f"{name}: {target}": values
    for name, own in _of(scores, method).items()
    for target, values in own.items()
  }


def _gains(
  pooled: Mapping[str, Part], scores: _Scores, base: str, plain: str, metric: str
) -> Iterator[Gain]:
  """What every method has over a base, largest first."""
  sign = -1 if metric in protocol.LOWER_IS_BETTER else 1
  found = {
    method: protocol.pooled_difference(_of(scores, method), _of(scores, base))
    for method in dict.fromkeys(m for own in scores.values() for m in own)
    if method not in (base, plain)
  }
  lines = [(m, d) for m, d in found.items() if d is not None]
  for method, difference in sorted(lines, key=lambda x: -sign * x[1].domains.mean):
    words = _FIRST
    if base != plain:
      words = _ON_TOP if _on_top(pooled, method, base, plain) else _BESIDE
    word = _UNSHOWN
    if side := sign * difference.side:
      word = words[side < 0]
    elif names.is_percent(metric) and difference.within(_EQUIVALENT):
      word = _SAME
    yield Gain(method, difference, word)


def _on_top(pooled: Mapping[str, Part], method: str, base: str, plain: str) -> bool:
  """Whether a method has the numbers of a base, which it then stands on."""
  own = lambda part, m: part.numbers.get(m, frozenset())
  return all(
    own(part, base) - own(part, plain) <= own(part, method) for part in pooled.values()
  )


def _line(gain: Gain, metric: str) -> list[str]:
  both = (gain.found.domains, gain.found.sets)
  shown = [names.difference(found, float("nan"), metric) for found in both]
  return [names.display(gain.method), *shown, gain.word]


def _beside(pooled: Mapping[str, Part], methods: Sequence[str], metric: str) -> Grid:
  """Pooled means of what is measured on all sets, and paired differences of them."""
  plain, columns = methods[0], {}
  for name, (of, found) in _measures(pooled, metric).items():
    base, cells = _of(found, plain), []
    for method in methods if _has(found, plain) else ():
      own = _of(found, method)
      gain = protocol.pooled_difference(own, base)
      shown = names.number(protocol.pool(own).domains.mean, of) if gain else names.DASH
      if gain and method != plain:
        shown += f" ({names.number(gain.domains.mean, of, '+')}{'*' * bool(gain.side)})"
      cells.append(shown)
    if cells:
      columns[name] = cells
  body = zip(map(names.display, methods), *columns.values(), strict=True)
  return ["method", *columns], [list(line) for line in body]


def _measures(
  pooled: Mapping[str, Part], metric: str
) -> dict[str, tuple[str, _Scores]]:
  """``{column: (metric, scores)}``; a set whose records lack it has no scores."""
  of = lambda metric, *where: {
    name: frame.scores(frame.pick(part.rows, metric, *where))
    for name, part in pooled.items()
  }
  worst = {name: frame.scores(_worst(part, metric)) for name, part in pooled.items()}
  return {
    names.metric_name(metric): (metric, of(metric)),
    "worst missing": (metric, worst),
    "source val.": (metric, of(metric, "val")),
    "re-paired": (metric, of(metric, "val", "re-paired")),
    "same domain": (metric, of(metric, "val", "re-paired_within")),
    "NLL": ("nll", of("nll")),
    "ECE (%)": ("ece", of("ece")),
  }


def _worst(part: Part, metric: str) -> pd.DataFrame:
  """The least target score of each run with one modality missing."""
  single = [f"without_{m}" for m in part.table.modalities]
  rows = part.rows[(part.rows["split"] == "target") & (part.rows["metric"] == metric)]
  rows = rows[rows["condition"].isin(single)].sort_values("value")
  if metric in protocol.LOWER_IS_BETTER:
    rows = rows.iloc[::-1]
  return rows.drop_duplicates("run_id").sort_index()
