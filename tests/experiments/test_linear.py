"""Linear models on the splits of a table: what they see, and what they say."""

import numpy as np
import pytest

from configs import features
from mer_dg.experiments import make_setup, validate
from mer_dg.experiments.linear import linear_models
from mer_dg.reporting.linear import ALL, LATE, behind, says


def _arrays(n=360, shift=4.0):
  """ "own" tells the class everywhere, "place" in the sources alone."""
  rng = np.random.default_rng(0)
  label, domain = np.arange(n) % 3, np.arange(n) * 3 // n
  own = np.eye(3)[label] * 2 + rng.normal(size=(n, 3))
  turned = np.where(domain == 2, (label + 1) % 3, label)
  place = np.eye(3)[turned] * shift + rng.normal(size=(n, 3))
  series = rng.normal(size=(n, 30, 2)).cumsum(axis=1) * (1 + 3 * label[:, None, None])
  return {
    "modalities": np.array(["own", "place", "series"]),
    "own": own.astype(np.float32),
    "place": place.astype(np.float32),
    "series": series.astype(np.float32),
    "label": label,
    "domain": np.array(["a", "b", "c"])[domain],
  }


@pytest.fixture
def models(tmp_path):
  def make(arrays, **fields):
    np.savez(tmp_path / "set.npz", **arrays)
    config = features.get_config()
    fields |= {"data.path": str(tmp_path / "set.npz"), "network.hidden_dim": 8}
    config.update_from_flattened_dict(fields)
    setup = make_setup(validate(config))
    return {row.name: row for row in linear_models(setup)}

  return make


def test_rows_and_what_they_find(models):
  found = models(_arrays())
  assert list(found) == [ALL, "own", "place", "series", LATE]
  assert list(found["own"].target) == ["a", "b", "c"]
  assert found["own"].mean > 0.7
  assert found["series"].mean > 0.5  # Its spread tells the class.
  # Held out, "c" shows the class by another place.
  assert found["place"].target["c"] < 0.05
  assert found["place"].val > 0.6
  models = list(found.values())
  assert not behind(models, found[ALL].mean, "accuracy")
  said = behind(models, found[ALL].mean - 0.1, "accuracy")
  assert said.startswith("It is 10.0 points behind a logistic regression")


def test_fusion_that_overfits_is_said(models):
  arrays = _arrays() | {"modalities": np.array(["own", "place"])}
  found = models(arrays, targets=("c",), sources=("a", "b"))
  assert found[ALL].val >= found["own"].val
  assert found[ALL].mean < found["own"].mean - 0.2
  said = says([found[ALL], found["own"]])
  assert "Fusion overfits: against 'own'" in said


def test_missing_padded_and_constant_inputs_hurt_nothing(models):
  arrays = _arrays()
  n = len(arrays["label"])
  arrays["own"][::3] = np.nan
  arrays["own_present"] = np.arange(n) % 3 > 0
  arrays["series_len"] = 5 + np.arange(n) % 20
  arrays["series"][:, 25:] = np.inf  # Behind every length.
  arrays["place"] = np.ones_like(arrays["place"])
  found = models(arrays, metric="balanced_accuracy")
  for row in found.values():
    assert 0 <= row.val <= 1
    assert 0 <= row.mean <= 1
  # Of "own" the rows of one class are missing: the two others can be told.
  assert found["own"].mean > 0.4
  assert found["place"].mean == pytest.approx(1 / 3, abs=0.02)


def test_pictures_are_averaged(models):
  rng = np.random.default_rng(0)
  arrays = _arrays()
  n = len(arrays["label"])
  image = rng.integers(0, 99, (n, 20, 18)).astype(np.uint8)
  for row, k in enumerate(arrays["label"]):
    image[row, 6 * k : 6 * k + 6] += 100
  arrays |= {"modalities": np.array(["image"]), "image": image}
  found = models(arrays)
  assert list(found) == ["image"]  # Nothing to fuse.
  assert found["image"].mean > 0.95
