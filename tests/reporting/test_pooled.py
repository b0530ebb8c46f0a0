"""What is pooled over sets, and in which words; numbers worked out by hand."""

import pytest

from mer_dg import reporting
from mer_dg.reporting import frame, pooled
from mer_dg.reporting.linear import ALL, ModelRow
from tests.factories import record

# Target scores of four sets with two domains each, and what methods have above them.
SETS = {"av": 0.8, "cars": 0.4, "cars_road": 0.5, "hydraulic": 0.6}
HEADS, DROPOUT, MER = {"u.weight": 0.5}, {"md.rate": 0.3}, {"mer.weight": 0.1}
GAINS = {  # Points on the first and second domain of each set, and what it is made of.
  "erm": ((0, 0), {}),
  "heads+md": ((2, 4), HEADS | DROPOUT),
  "heads+md+mer": ((5, 6.5), HEADS | DROPOUT | MER),
  "mer": ((-0.5, 0.5), MER),
  "late": ((-5, 9), {}),
  "sam": ((-3, -4), {}),
}


def part(dataset, worse=0.0, generated=False, linear=None, **fields):
  base, rows = SETS.get(dataset, 0.5), []
  for method, (points, hyper) in GAINS.items():
    for target, gain in zip("ab", points, strict=True):
      # Seeds differ by the same for all, and sets a little, so that both have a width.
      extra = gain / 100 * (1 + 0.1 * (len(dataset) % 3)) - worse
      for seed in range(2):
        score = base + extra + 0.05 * seed
        metrics = {
          "val/accuracy": 0.9,
          "target/accuracy": score,
          "target/nll": 1 - score,
          "target/without_audio/accuracy": score / 2 + 0.1 * seed,
          "target/without_video/accuracy": score / 2 + 0.1 * (1 - seed),
          "target/without_audio+video/accuracy": 0.1,
        }
        rows.append(
          record(
            dataset=dataset, method=method, target=target, seed=seed, hyper=hyper,
            metrics=metrics, **fields,
          )
        )  # fmt: skip
  table = reporting.build_table(rows, reference="erm")
  numbers = {m: frozenset(hyper) for m, (_, hyper) in GAINS.items()}
  models = [ModelRow(ALL, 0.9, {"a": linear, "b": linear})] if linear else []
  return pooled.Part(table, frame.to_frame(rows), numbers, models, generated)


@pytest.fixture(scope="module")
def found():
  return pooled.endpoint([*map(part, SETS), part("made", generated=True)])


def test_the_words_are_those_of_the_protocol(found):
  assert found.domains == 8
  assert found.sets == {
    "av": ["av"],
    "cars": ["cars", "cars_road"],
    "hydraulic": ["hydraulic"],
  }
  assert found.left_out == ["made (generated)"]
  assert found.said("erm") == {
    "helps": ["heads+md+mer", "heads+md"],
    "hurts": ["sam"],
    "equivalent (within 1 point)": ["mer"],
    "not shown": ["late"],
  }
  assert found.said("heads+md") == {
    "adds something": ["heads+md+mer"],
    "is behind": ["mer", "sam"],
    "not shown": ["late"],
  }
  (gain,) = (g for g in found.gains["erm"] if g.method == "heads+md")
  # 3 points times 1.2 (av), 1.1 (cars), 1.0 (cars_road), 1.0 (hydraulic).
  assert gain.found.domains.mean == pytest.approx(0.01 * 3 * 4.3 / 4)
  assert gain.found.sets.mean == pytest.approx(0.01 * 3 * (1.2 + 1.05 + 1.0) / 3)


def test_secondary_measures_are_pooled_alike(found):
  header, body = found.beside
  cells = {line[0]: dict(zip(header, line, strict=True)) for line in body}
  assert list(cells["ERM"]) == [
    *("method", "accuracy (%)", "worst missing", "source val.", "NLL")
  ]
  # Mean of .8 .4 .5 .6 and half a step between seeds; a run misses most the modality
  # that the other seed misses least.
  assert cells["ERM"]["accuracy (%)"] == "60.0"
  assert cells["ERM"]["worst missing"] == "30.0"
  assert cells["ERM"]["NLL"] == "0.400"
  both = cells["Unimodal heads + Modality dropout"]
  assert both["accuracy (%)"] == "63.2 (+3.2*)"

  assert cells["Late fusion"]["worst missing"].endswith("(+1.1)")


def test_what_is_not_pooled():
  parts = [part("av"), part("cars"), part("hydraulic")]
  names = lambda parts: list(pooled.candidates(parts)[0])
  # Plain fusion has 50 and 55 there.
  close, behind = part("x", linear=0.544), part("x", linear=0.546)
  assert names([*parts, close]) == ["av", "cars", "hydraulic", "x"]
  assert pooled.candidates([*parts, behind]) == (
    dict(zip(names(parts), parts, strict=True)),
    ["x (ERM is 2.1 points behind a logistic regression)"],
  )
  # Pairs of domains and subsets of modalities share their data.
  subset = part("av", modalities=["video"])
  pairs = part("y", protocol="single_source")
  assert pooled.candidates([subset, *parts, pairs])[0]["av"] is parts[0]
  assert names([subset, *parts, pairs]) == names(parts)
  # Two tasks on the same inputs are one set, which says nothing of others.
  assert pooled.endpoint([part("cars"), part("cars_road")]) is None


def test_a_method_without_a_run_has_no_pooled_number():
  parts = [part("av"), part("cars")]
  row = next(r for r in parts[0].table.rows if r.method == "sam")
  del row.values["a"][0, 0]
  found = pooled.endpoint(parts)
  assert found.lacking == ["sam"]
  assert "sam" not in [gain.method for gain in found.gains["erm"]]
  assert "sam" in found.scores  # Ranks are of means.
