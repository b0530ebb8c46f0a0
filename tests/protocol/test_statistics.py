"""Intervals, tests and ranks against scipy, enumeration and published tables."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from mer_dg import protocol


def test_t_interval_agrees_with_scipy():
  x = np.random.default_rng(0).normal(size=7)
  low, high = scipy.stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
  actual = protocol.mean_interval(x)
  np.testing.assert_allclose([actual.low, actual.high], [low, high])
  assert actual.n == 7


def test_one_value_has_no_interval():
  r = protocol.mean_interval([0.25])
  assert r.mean == 0.25
  assert math.isnan(r.low)
  assert math.isnan(r.high)


def of_groups(groups):
  return {t: dict(enumerate(group)) for t, group in enumerate(groups)}


def test_the_mean_over_targets_weighs_targets_not_runs():
  r = protocol.summarize(of_groups([[0.0], [1.0, 1.0, 1.0]]))
  assert (r.mean, r.n) == (0.5, 4)


def test_the_interval_is_of_target_means_and_one_target_has_none():
  groups = [[0.1, 0.3], [0.4], [0.6, 0.7, 0.8]]
  r = protocol.summarize(of_groups(groups))
  by_scipy = scipy.stats.ttest_1samp([0.2, 0.4, 0.7], 0).confidence_interval(0.95)
  np.testing.assert_allclose([r.low, r.high], [by_scipy.low, by_scipy.high])
  # More seeds of the same mean say nothing more about new domains.
  again = protocol.summarize(of_groups([group * 5 for group in groups]))
  np.testing.assert_allclose([again.low, again.high], [r.low, r.high])
  alone = protocol.summarize(of_groups(groups[2:]))
  assert alone.mean == pytest.approx(0.7)
  assert math.isnan(alone.low)
  assert math.isnan(alone.high)


@pytest.mark.parametrize("count", [3, 4, 8])
def test_the_interval_covers_the_mean_over_new_domains(count):
  """Domains and seeds drawn anew 2000 times: 95 % of the intervals hold the truth."""
  rng = np.random.default_rng(count)
  domain = 0.7 + 0.05 * rng.normal(size=(2000, count, 1))
  values = domain + 0.03 * rng.normal(size=(2000, count, 5))  # Five seeds.
  found = [protocol.summarize(of_groups(groups)) for groups in values.tolist()]
  covered = np.mean([r.low <= 0.7 <= r.high for r in found])
  # The Monte-Carlo error of 95 % in 2000 is 0.5 %.
  assert 0.93 <= covered <= 0.97


def test_a_target_without_values_is_an_error():
  with pytest.raises(ValueError, match=r"every target needs a value, got {0: 1, 1: 0}"):
    protocol.summarize(of_groups([[0.1], []]))


def test_exact_sign_flip_agrees_with_enumeration():
  d = np.array([0.3, -0.1, 0.4, 0.2, 0.05, 0.25])
  flips = np.array(list(itertools.product([1, -1], repeat=len(d))))
  null = (flips * d).mean(1)
  expected = np.mean(np.abs(null) >= abs(d.mean()) - 1e-12)
  np.testing.assert_allclose(protocol.sign_flip_p_value(d), expected)


def test_least_exact_p_of_16_pairs_and_a_drawn_p_beyond():
  assert protocol.sign_flip_p_value([0.1] * 16) == 2 / 2**16
  # 2^30 patterns are drawn from, not enumerated; a p of 0 would be a claim too far.
  p = protocol.sign_flip_p_value([0.1] * 30)
  assert 0 < p <= 2 * 2 / 2**16
  mixed = np.random.default_rng(0).normal(0.3, 1.0, 30)
  # The t test is the large-sample limit of the sign-flip test.
  np.testing.assert_allclose(
    protocol.sign_flip_p_value(mixed),
    scipy.stats.ttest_1samp(mixed, 0.0).pvalue,
    atol=0.02,
  )
  assert protocol.sign_flip_p_value(mixed) == protocol.sign_flip_p_value(mixed)


def test_degenerate_differences_prove_nothing():
  assert protocol.sign_flip_p_value([0.0, 0.0, 0.0]) == 1.0
  assert protocol.sign_flip_p_value([0.4]) == 1.0
  assert math.isnan(protocol.sign_flip_p_value([0.4, math.nan]))
  with pytest.raises(ValueError, match="empty"):
    protocol.sign_flip_p_value([])


def test_sign_flip_keeps_its_level_under_the_null():
  rng = np.random.default_rng(0)
  p = [protocol.sign_flip_p_value(rng.normal(size=8)) for _ in range(400)]
  # 400 tests at 5 %: 20 ± 4.4 rejections; 35 is beyond three standard deviations.
  assert 5 < sum(x <= 0.05 for x in p) < 35


def test_paired_difference_pairs_by_target_and_unit():
  erm = {"a": {0: 0.5, 1: 0.9}, "b": {0: 0.2, 1: 0.3}}
  mer = {"a": {1: 1.0, 0: 0.6}, "b": {1: 0.4, 2: 0.0}}  # Another order; b/0 missing.
  d = protocol.paired_difference(mer, erm)
  np.testing.assert_allclose(d.mean, 0.1)
  assert d.n == 3
  np.testing.assert_allclose([d.low, d.high], [0.1, 0.1])  # Pairing removes the spread.
  assert d.p == 2 / 2**3
  assert protocol.paired_difference({"c": {0: 1.0}}, erm) is None
  each = protocol.paired_differences(mer, erm)
  np.testing.assert_allclose([each["a"].mean, each["a"].low, each["b"].mean], 0.1)
  assert (each["a"].n, each["b"].n) == (2, 1)
  assert math.isnan(each["b"].low)


def test_pooled_over_domains_and_over_sets_that_share_no_inputs():
  """cars and cars_road are one set; its mean is over the domains of both."""
  base = {
    name: {t: {0: 0.5, 1: 0.5} for t in targets}
    for name, targets in {"cars": "ab", "cars_road": "c", "x": "d"}.items()
  }
  gains = {"a": (0.1, 0.3), "b": (0.0, 0.2), "c": (0.3, 0.3), "d": (0.3, 0.5)}
  score = {name: {t: dict(enumerate(0.5 + np.array(gains[t]))) for t in own}
           for name, own in base.items()}  # fmt: skip
  found = protocol.pooled_difference(score, base)
  for got, means in ((found.domains, [0.2, 0.1, 0.3, 0.4]), (found.sets, [0.2, 0.4])):
    by_scipy = scipy.stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert got.n == len(means)
    np.testing.assert_allclose(
      [got.mean, got.low, got.high], [np.mean(means), by_scipy.low, by_scipy.high]
    )
  assert found.side == 0  # Two sets: 12.7 standard errors.
  del score["cars_road"]["c"][1]
  assert protocol.pooled_difference(score, base) is None


@pytest.mark.parametrize(
  ("domains", "sets", "side", "small"),
  [
    ((0.001, 0.009), (0.002, 0.008), 1, True),
    ((-0.009, -0.001), (-0.02, -0.001), -1, False),
    ((0.001, 0.009), (-0.001, 0.009), 0, True),
    ((-0.002, 0.002), (-0.002, 0.02), 0, False),
    ((0.001, 0.002), (-0.002, -0.001), 0, True),
    ((0.001, 0.002), (math.nan, math.nan), 0, False),
  ],
)
def test_a_claim_needs_both_intervals(domains, sets, side, small):
  interval = lambda bounds: protocol.Interval(0.0, *bounds, n=3)
  found = protocol.Pooled(interval(domains), interval(sets))
  assert found.side == side
  assert found.within(0.01) == small


def test_where_sets_differ_the_interval_over_sets_covers():
  """Seven sets of two to eight domains, drawn anew 2000 times; the truth is 0.

  The effect differs by 2 points between sets and 1 within: domains are no independent
  sample, their interval is too narrow, and the one over sets holds what it promises.
  """
  rng, sizes = np.random.default_rng(0), (3, 8, 2, 3, 3, 4, 3)
  covered = np.zeros(2)
  for _ in range(2000):
    effects = 2 * rng.normal(size=len(sizes))
    found = protocol.pool(
      {f"set{i}": {str(t): {0: mean + rng.normal()} for t in range(size)}
       for i, (size, mean) in enumerate(zip(sizes, effects, strict=True))}
    )  # fmt: skip
    covered += [i.low <= 0 <= i.high for i in (found.domains, found.sets)]
  assert 0.93 <= covered[1] / 2000 <= 0.97
  assert covered[0] / 2000 < 0.85


def test_holm_by_hand_and_with_nan():
  # Holm 1979: sorted .005 .01 .03 .04, times 4 3 2 1, made monotone.
  actual = protocol.holm([0.01, 0.04, math.nan, 0.03, 0.005])
  np.testing.assert_allclose(actual, [0.03, 0.06, math.nan, 0.06, 0.02])


def test_nemenyi_critical_difference_of_the_published_table():
  # Demšar 2006, §3.2.3: k=4, N=14, q_0.05 = 2.569 -> CD = 1.25.
  rng = np.random.default_rng(0)
  table = {
    f"m{i}": {f"t{j}": {0: float(v)} for j, v in enumerate(rng.random(14))}
    for i in range(4)
  }
  r = protocol.rank_methods(table)
  np.testing.assert_allclose(
    r.critical_difference, 2.569 * math.sqrt(4 * 5 / (6 * 14)), rtol=1e-3
  )
  matrix = np.array([[u[0] for u in s.values()] for s in table.values()])
  expected = scipy.stats.friedmanchisquare(*matrix).pvalue
  np.testing.assert_allclose(r.p, expected)
  np.testing.assert_allclose(sum(r.ranks.values()), 10.0)  # 1 + 2 + 3 + 4


def test_ranks_average_units_first_share_ties_and_turn_for_errors():
  table = {
    "x": {"a": {0: 0.0, 1: 1.0}, "b": {0: 0.5}},
    "y": {"a": {0: 0.5, 1: 0.5}, "b": {0: 0.6}},
    "z": {"a": {0: 0.9, 1: 0.9}, "b": {0: 0.7}},
  }
  assert protocol.rank_methods(table).ranks == {"x": 2.75, "y": 2.25, "z": 1.0}
  turned = protocol.rank_methods(table, higher_is_better=False).ranks
  assert turned == {"x": 1.25, "y": 1.75, "z": 3.0}


def test_identical_methods_do_not_differ():
  same = {m: {"a": {0: 0.5}, "b": {0: 0.5}} for m in "xyz"}
  assert protocol.rank_methods(same).p == 1.0


def test_ranking_too_little_is_an_error():
  with pytest.raises(ValueError, match="got 1 on 1"):
    protocol.rank_methods({"x": {"a": {0: 0.5}}})


def test_cliques_by_hand():
  def of(*ranks, cd):
    named = dict(zip("vwxyz", ranks, strict=False))
    return ["".join(c) for c in protocol.cliques(protocol.Ranking(named, cd, 0, 9))]

  # From each method as far as the critical difference reaches; subsets are dropped.
  assert of(1.0, 1.5, 2.4, 4.0, 4.5, cd=1.0) == ["vw", "wx", "yz"]
  assert of(1.0, 2.0, 3.0, cd=2.0) == ["vwx"]
  assert of(1.0, 2.0, 3.0, cd=0.5) == []
  assert of(3.0, 1.0, 2.9, cd=0.2) == ["xv"]  # In order of rank.
