"""Paired statistics over targets and seeds: intervals, tests, ranks.

``scores`` are ``{target: {unit: value}}``, a unit being one repetition, here
``(seed, split_seed)``: the same unit has the same split and the same initialisation
whatever the method, so differences between methods are taken unit by unit.

Two questions, two answers, and they may disagree:

* the *interval of a mean over targets* is for the mean over new domains of which these
  targets are a sample: Student t over the target means, one less degrees of freedom
  than there are targets, however many seeds each has. One target gives no interval;
* the *p-value* flips signs of paired differences and holds for these targets: its null
  is "no effect in any of these targets".
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
import dataclasses
import math

import numpy as np
import scipy  # its rooms are loaded when they are used

LEVEL = 0.95
EXACT_LIMIT = 2**16  # Sign patterns enumerated; beyond that as many are drawn.

Scores = Mapping[str, Mapping[Hashable, float]]


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean with its 95 % interval (NaN bounds where one value is all there is).

  Attributes:
    mean: Point estimate, in the units of the values.
    low: Lower end.
    high: Upper end.
    n: Number of values behind it.
  """

  mean: float
  low: float
  high: float
  n: int


@dataclasses.dataclass(frozen=True)
class Difference(Interval):
  """A mean paired difference (method - reference) with interval and p-value.

  Attributes:
    p: Two-sided sign-flip p-value; NaN where there are no pairs.
  """

  p: float


def mean_interval(values: Sequence[float]) -> Interval:
  """Mean and two-sided 95 % Student-t interval of independent values.

  Args:
    values: ``n >= 1`` numbers; NaN values make the mean NaN.

  Returns:
    The interval; its bounds are NaN when ``n == 1``.

  Raises:
    ValueError: If there are no values.

  Example:
    >>> r = mean_interval([1.0, 2.0, 3.0])  # 2 ± 4.3027 / sqrt(3)
    >>> print(f"{r.mean:.1f} [{r.low:.3f}, {r.high:.3f}]")
    2.0 [-0.484, 4.484]
  """
  x = np.asarray(values, dtype=np.float64)
  if x.size == 0:
    raise ValueError("values is empty.")
  mean = float(x.mean())
  if x.size == 1:
    return Interval(mean, math.nan, math.nan, 1)
  half = scipy.stats.t.ppf(0.5 + LEVEL / 2, x.size - 1) * x.std(ddof=1)
  half = float(half / math.sqrt(x.size))
  return Interval(mean, mean - half, mean + half, x.size)


def summarize(scores: Scores) -> Interval:
  """Mean over targets of the target means, with an interval for new domains.

  Student t over the target means with T - 1 degrees of freedom: what the mean over
  domains like these may be, not what more seeds on these would give.

  Args:
    scores: ``{target: {unit: value}}`` of one method, each target with a value.

  Returns:
    The interval; its bounds are NaN with a single target, which says nothing of others.
    ``n`` counts all values. NaN values make it NaN.

  Raises:
    ValueError: If there is no target, or one without a value.

  Example:
    >>> r = summarize({"a": {0: 0.2, 1: 0.4}, "b": {0: 0.4}, "c": {0: 0.5}})
    >>> print(f"{r.mean:.1f} [{r.low:.3f}, {r.high:.3f}] n={r.n}")  # 4.30 * .1 / √3
    0.4 [0.152, 0.648] n=4
  """
  values = {target: list(units.values()) for target, units in scores.items()}
  if not values or not all(values.values()):
    counts = {target: len(of_target) for target, of_target in values.items()}
    raise ValueError(f"every target needs a value, got {counts}.")
  found = mean_interval([float(np.mean(v)) for v in values.values()])
  return dataclasses.replace(found, n=sum(map(len, values.values())))


def sign_flip_p_value(differences: Sequence[float], *, seed: int = 0) -> float:
  """Two-sided paired permutation test that differences are symmetric about 0.

  All ``2^n`` sign patterns are enumerated when there are at most 2^16, else 2^16 are
  drawn and the observed one is added, so the p-value is never 0.

  Args:
    differences: One per pair, ``n >= 1``.
    seed: Of the drawn patterns.

  Returns:
    p in (0, 1]; its least possible value is ``2 / 2^n``. NaN if a difference is.

  Raises:
    ValueError: If there are no differences.

  Example:
    >>> sign_flip_p_value([0.1, 0.2, 0.3, 0.1, 0.2])  # 2 / 2^5
    0.0625
  """
  x = np.asarray(differences, dtype=np.float64)
  if x.size == 0:
    raise ValueError("differences is empty.")
  if np.isnan(x).any():
    return math.nan
  if x.size == 1:  # scipy wants two observations; one flip proves nothing.
    return 1.0
  result = scipy.stats.permutation_test(
    (x,),
    lambda d, axis: np.mean(d, axis=axis),
    permutation_type="samples",
    vectorized=True,
    n_resamples=EXACT_LIMIT,
    batch=4096,  # Bounds the memory at 4096 n floats.
    rng=np.random.default_rng(seed),
  )
  return min(1.0, float(result.pvalue))


def paired_differences(
  scores: Scores, reference: Scores, *, seed: int = 0
) -> dict[str, Difference]:
  """Method minus reference on each target, over the units that both have.

  Args:
    scores: Of the method.
    reference: Of the method compared with.
    seed: Of the permutation.

  Returns:
    `mean_interval` over units, for this target alone, and `sign_flip_p_value`; targets
    without a pair are absent.

  Example:
    >>> erm, mer = {"t": {0: 0.5, 1: 0.6, 2: 0.7}}, {"t": {0: 0.6, 1: 0.8, 2: 1.0}}
    >>> d = paired_differences(mer, erm)["t"]
    >>> print(f"{d.mean:.2f} [{d.low:.2f}, {d.high:.2f}] n={d.n}")  # 4.30 * .1 / √3
    0.20 [-0.05, 0.45] n=3
  """
  out = {}
  for target, units in _pairs(scores, reference).items():
    found = mean_interval(list(units.values()))
    p = sign_flip_p_value(list(units.values()), seed=seed)
    out[target] = Difference(found.mean, found.low, found.high, found.n, p)
  return out


def paired_difference(
  scores: Scores, reference: Scores, *, seed: int = 0
) -> Difference | None:
  """Method minus reference, on the (target, unit) pairs that both have.

  Args:
    scores: Of the method.
    reference: Of the method compared with.
    seed: Of the permutation.

  Returns:
    `summarize` of the differences, for new domains, and `sign_flip_p_value` over all
    pairs, for these; ``n`` is the number of pairs; ``None`` if no pair is shared.

  Example:
    >>> erm = {"t": {0: 0.5, 1: 0.6, 2: 0.7}}
    >>> mer = {"t": {0: 0.6, 1: 0.8, 2: 1.0, 3: 0.0}}
    >>> d = paired_difference(mer, erm)
    >>> print(f"{d.mean:.2f} n={d.n} p={d.p}")
    0.20 n=3 p=0.25
  """
  pairs = _pairs(scores, reference)
  if not pairs:
    return None
  found = summarize(pairs)
  p = sign_flip_p_value([d for own in pairs.values() for d in own.values()], seed=seed)
  return Difference(found.mean, found.low, found.high, found.n, p)


def _pairs(scores: Scores, reference: Scores) -> dict[str, dict[Hashable, float]]:
  """``{target: {unit: difference}}`` of the units that both have."""
  out = {}
  for target, units in scores.items():
    other = reference.get(target, {})
    pairs = {u: value - other[u] for u, value in units.items() if u in other}
    if pairs:
      out[target] = pairs
  return out


@dataclasses.dataclass(frozen=True)
class Pooled:
  """A mean over the held-out domains of several sets, with two intervals.

  Domains of one set share sources, so the interval over domains is too narrow where
  sets differ more than the domains of one; a claim needs both.

  Attributes:
    domains: Mean over all domains, Student t over them.
    sets: Mean over the means of sets, Student t over these.
  """

  domains: Interval
  sets: Interval

  @property
  def side(self) -> int:
    """1 or -1 if both intervals lie on that side of 0, else 0."""
    both = (self.domains, self.sets)
    return all(i.low > 0 for i in both) - all(i.high < 0 for i in both)

  def within(self, bound: float) -> bool:
    """Whether both intervals lie inside ``[-bound, bound]``."""
    both = (self.domains, self.sets)
    return all(-bound <= i.low and i.high <= bound for i in both)


def counted_as(sets: Sequence[str]) -> dict[str, str]:
  """Which sets are one, as they share inputs: their names say it.

  A set whose name is another's with ``_`` and more behind it counts as that one.

  Example:
    >>> counted_as(["cars", "cars_road", "gesture_phase", "carstairs"])
    {'cars': 'cars', 'cars_road': 'cars', 'gesture_phase': 'gesture_phase',
     'carstairs': 'carstairs'}
  """
  stems = lambda name: [s for s in sets if name == s or name.startswith(f"{s}_")]
  return {name: min(stems(name), key=len) for name in sets}


def pool(scores: Mapping[str, Scores]) -> Pooled:
  """Pools the target means of one method over several sets, `counted_as` one or more.

  Args:
    scores: ``{set: {target: {unit: value}}}``, each target with a value.

  Raises:
    ValueError: If there is no target, or one without a value.

  Example:
    >>> p = pool({"a": {"s": {0: 1.0}, "t": {0: 2.0, 1: 4.0}}, "b": {"u": {0: 4.0}}})
    >>> print(f"{p.domains.mean:.2f} n={p.domains.n}, {p.sets.mean:.2f} n={p.sets.n}")
    2.67 n=3, 3.00 n=2
  """
  one, means = counted_as(list(scores)), dict[str, list[float]]()
  for name, targets in scores.items():
    own = [mean_interval(list(units.values())).mean for units in targets.values()]
    means.setdefault(one[name], []).extend(own)
  return Pooled(
    mean_interval([mean for own in means.values() for mean in own]),
    mean_interval([mean_interval(own).mean for own in means.values()]),
  )


def pooled_difference(
  scores: Mapping[str, Scores], reference: Mapping[str, Scores]
) -> Pooled | None:
  """Method minus reference, paired by unit and pooled over several sets.

  Args:
    scores: ``{set: scores}`` of the method.
    reference: Of the method compared with.

  Returns:
    `pool` of the differences; ``None`` unless the method has every unit of every target
    of the reference: a mean over fewer domains is another mean.

  Example:
    >>> erm = {"x": {"a": {0: 0.5}, "b": {0: 0.5}}, "y": {"c": {0: 0.25, 1: 0.75}}}
    >>> mer = {"x": {"a": {0: 1.0}, "b": {0: 0.5}}, "y": {"c": {0: 0.50, 1: 1.00}}}
    >>> p = pooled_difference(mer, erm)
    >>> p.domains.mean, p.sets.mean
    (0.25, 0.25)
  """
  pairs = {name: _pairs(scores.get(name, {}), own) for name, own in reference.items()}
  for name, targets in reference.items():
    for target, units in targets.items():
      if pairs[name].get(target, {}).keys() != units.keys():
        return None
  return pool(pairs)


def holm(p_values: Sequence[float]) -> list[float]:
  """Holm's step-down adjustment for several comparisons; keeps order, NaN stays NaN.

  Source: Holm, A simple sequentially rejective multiple test procedure, 1979.

  Example:
    >>> holm([0.01, 0.04, 0.03])  # 3 * 0.01, then max(2 * 0.03, 1 * 0.04)
    [0.03, 0.06, 0.06]
  """
  valid = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
  out = [math.nan] * len(p_values)
  running = 0.0
  for rank, (p, i) in enumerate(valid):
    running = max(running, min(1.0, (len(valid) - rank) * p))
    out[i] = running
  return out


@dataclasses.dataclass(frozen=True)
class Ranking:
  """Critical-difference ranking of k methods over N targets.

  Attributes:
    ranks: ``{method: mean rank}``, 1 is best, ties share the mean rank.
    critical_difference: Nemenyi: mean ranks closer than this do not differ at 5 %.
    p: Friedman test that all methods are equal.
    n: Number of targets.
  """

  ranks: dict[str, float]
  critical_difference: float
  p: float
  n: int


def rank_methods(
  scores: Mapping[str, Scores], *, higher_is_better: bool = True
) -> Ranking:
  """Friedman test and Nemenyi critical difference of the target means.

  The blocks are targets (each score its mean over units), since seeds of one target
  are no independent data sets.

  Args:
    scores: ``{method: scores}``, at least 3 methods with at least 2 common targets.
    higher_is_better: Whether rank 1 goes to the largest score.

  Raises:
    ValueError: With fewer methods or common targets.

  Source:
    Demšar, Statistical comparisons of classifiers over multiple data sets, 2006, §3.2.

  Example:
    >>> table = {m: {t: {0: v + 0.1 * i} for i, t in enumerate("ab")}
    ...          for m, v in (("x", 0.5), ("y", 0.6), ("z", 0.7))}
    >>> rank_methods(table).ranks
    {'x': 3.0, 'y': 2.0, 'z': 1.0}
  """
  common = [
    t for t in next(iter(scores.values()), {}) if all(t in s for s in scores.values())
  ]
  k, n = len(scores), len(common)
  if k < 3 or n < 2:
    raise ValueError(f"need >= 3 methods on >= 2 common targets, got {k} on {n}.")
  means = np.array(
    [[np.mean(list(s[t].values())) for s in scores.values()] for t in common]
  )  # [n, k]
  ranks = scipy.stats.rankdata(-means if higher_is_better else means, axis=1).mean(0)
  # All methods tied everywhere: scipy would divide by zero; nothing differs.
  tied = bool((means == means[:, :1]).all())
  p = 1.0 if tied else float(scipy.stats.friedmanchisquare(*means.T).pvalue)
  q = scipy.stats.studentized_range.ppf(LEVEL, k, math.inf) / math.sqrt(2)
  cd = float(q * math.sqrt(k * (k + 1) / (6 * n)))
  named = dict(zip(scores, ranks.tolist(), strict=True))
  return Ranking(named, cd, p, n)


def cliques(ranking: Ranking) -> list[tuple[str, ...]]:
  """Largest groups of methods whose mean ranks do not differ by Nemenyi.

  Args:
    ranking: Of `rank_methods`.

  Returns:
    Groups of two or more, each in order of rank, none inside another; a method in two
    groups differs from neither.

  Source:
    Demšar, Statistical comparisons of classifiers over multiple data sets, 2006, §4.

  Example:
    >>> cliques(Ranking({"x": 1.0, "y": 1.8, "z": 2.6}, 1.0, p=0.01, n=9))
    [('x', 'y'), ('y', 'z')]
  """
  order = sorted(ranking.ranks, key=lambda m: ranking.ranks[m])
  groups, reached = [], 0
  for i, first in enumerate(order):
    limit = ranking.ranks[first] + ranking.critical_difference
    end = sum(ranking.ranks[m] <= limit for m in order)
    if end - i > 1 and end > reached:
      groups.append(tuple(order[i:end]))
    reached = max(reached, end)
  return groups
