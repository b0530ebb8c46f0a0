"""Records of a made-up experiment, written by the function that writes real ones."""

import pytest

from mer_dg.reporting import figures
from tests.factories import record


@pytest.fixture(scope="session")
def experiment():
  """ERM and MER on two targets, three seeds, three steps; MER is 10 points better.

  Target accuracy of ERM at step 20, the best on source validation: a: .50 .52 .54,
  b: .30 .32 .34. Step 30 is 5 points better on the target, and best on re-paired rows,
  where ERM loses 30 points at step 20 and MER 10.
  """
  records = []
  for method, gain in (("mer", 0.1), ("erm", 0.0)):
    for target, base in (("a", 0.5), ("b", 0.3)):
      for seed in range(3):
        for step, val, extra in ((10, 0.6, -0.2), (20, 0.9, 0.0), (30, 0.8, 0.05)):
          # The gain differs a little by seed, so that intervals have a width.
          accuracy = base + 0.02 * seed + extra + gain * (1 + 0.1 * (seed - 1))
          metrics = {
            "val/accuracy": val,
            "val/nll": 1 - val,
            "val/re-paired/accuracy": 0.7
            - 0.1 * (step == 20)
            + 2 * gain * (step == 20),
            "val/re-paired/nll": 1.0 - step / 100,
            "target/accuracy": accuracy,
            "target/nll": 2 - accuracy,
            "entropy/video": -step / 10,
            "entropy/audio": -step / 20,
          }
          sources = ["b", "c"] if target == "a" else ["a", "c"]
          fields = {"target": target, "sources": sources, "seed": seed, "step": step}
          records.append(record(method=method, metrics=metrics, **fields))
  return records


@pytest.fixture
def undrawn(monkeypatch):
  """Reports without the time that drawing takes."""
  monkeypatch.setattr(figures, "to_bytes", lambda *_: b"<svg></svg>")
