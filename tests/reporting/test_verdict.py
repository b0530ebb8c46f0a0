"""The generated sentences say what the statistics say, and no more."""

import pytest

from mer_dg import reporting
from mer_dg.reporting import verdict


def build(make, gains, *, metric="accuracy", seeds=8, targets=("a",), bad=1.0):
  """ERM at 0.5 and one method per gain; gains differ by a tenth between seeds."""
  records = []
  for name, gain in {"erm": 0.0, **gains}.items():
    for target in targets:
      for seed in range(seeds):
        gain_of = gain[target] if isinstance(gain, dict) else gain
        value = 0.5 + gain_of * (1 + bad * 0.1 * (-1) ** seed)
        metrics = {f"val/{metric}": 0.9, f"target/{metric}": value}
        fields = dict(target=target, sources=["s"], seed=seed, metrics=metrics)
        records.append(make(method=name, **fields))
  return reporting.build_table(records, metric=metric, reference="erm")


def told(table):
  found = verdict.verdicts(table)
  return verdict.headline(table, found), [verdict.sentence(v, table) for v in found]


def test_one_better_method_on_one_target(make):
  headline, (text,) = told(build(make, {"mer": 0.1}))
  assert headline == "Yes: mer is 10.0 points better than erm in target accuracy on a."
  assert text.startswith("+10.0 points of target accuracy on a (95 % interval +9.")
  assert text.endswith(
    "How sure: 8 pairs of runs with equal seed and split, sign-flip p = 0.008."
  )


def test_a_worse_method_and_a_metric_that_is_better_when_smaller(make):
  headline, _ = told(build(make, {"mer": -0.1}))
  assert headline.startswith("No, it hurt: mer is 10.0 points worse than erm")
  headline, (text,) = told(build(make, {"mer": -0.1}, metric="nll"))
  assert headline == "Yes: mer is 0.100 nats better than erm in target nll on a."
  assert text.startswith("−0.100 nats of target nll on a")


def test_targets_are_named_from_most_to_least_helped(make):
  gains = {"mer": {"a": 0.1, "b": -0.02, "c": 0.3}}
  _, (text,) = told(build(make, gains, targets=("a", "b", "c")))
  assert "on average over 3 held-out domains" in text
  assert ", ahead on 2 of 3: from +30.0 on c to −2.0 on b. How sure" in text


def test_few_pairs_are_called_too_few_whatever_the_effect(make):
  headline, (text,) = told(build(make, {"mer": 0.4}, seeds=4))
  assert headline.startswith("Not shown: mer is not shown to differ from erm (+40.0")
  # 2 / 2^4 = 0.125 is the least p of four pairs.
  assert "So few pairs cannot give p below 0.12, whatever the effect" in text
  _, (text,) = told(build(make, {"mer": 0.4}, seeds=6))  # 2 / 2^6 = 0.031.
  assert "So few" not in text


def test_several_methods_multiply_the_least_p(make):
  # Six pairs reach 0.031, but not when Holm multiplies by two.
  table = build(make, {"mer": 0.4, "mm": 0.3}, seeds=6)
  headline, texts = told(table)
  assert headline == "mer and mm are not shown to differ from erm."
  assert all("after Holm's adjustment. So few pairs" in text for text in texts)


def test_headline_of_several_methods_groups_them_by_outcome(make):
  gains = {"up": 0.1, "down": -0.1, "same": 0.0, "up2": 0.2}
  headline, _ = told(build(make, gains, seeds=10))
  assert headline == (
    "up and up2 are better than erm; down is worse than erm; "
    "same is not shown to differ from erm."
  )


def test_a_small_p_with_an_interval_around_zero_claims_nothing(make):
  # Large on one target, slightly negative on two: the bootstrap over targets sees 0.
  gains = {"mer": {"a": 0.3, "b": -0.01, "c": -0.01}}
  table = build(make, gains, targets=("a", "b", "c"))
  (v,) = verdict.verdicts(table)
  assert v.p < 0.05
  assert v.difference.low < 0 < v.difference.high
  assert v.outcome == "unclear"
  assert "the interval over domains includes 0" in verdict.sentence(v, table)


@pytest.mark.parametrize(
  ("targets", "said"),
  [
    ("a", "One held-out domain says nothing"),
    (
      "abc",
      "With 3 held-out domains the interval of their mean is too narrow (about 82",
    ),
    ("abcdef", ""),
  ],
)
def test_few_domains_are_warned_of(make, targets, said):
  text = verdict.caution(build(make, {"mer": 0.1}, targets=tuple(targets)))
  assert text.startswith(said)
  assert bool(text) == bool(said)
