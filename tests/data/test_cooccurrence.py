"""The generator does what its docstring says, checked against its definition."""

import numpy as np
import pytest

from mer_dg.data.cooccurrence import (
  Cooccurrence,
  best_target_accuracy,
  make_cooccurrence,
)
from mer_dg.data.dataset import SPLITS, DataError

TEST = SPLITS.index("test")
# Noise-free and nearly linear in the words: the pairing can be read off exactly.
CLEAN = Cooccurrence(
  strengths=(0.0, 0.0), nuisance_scale=8.0, noise=(0.0, 0.0), train_per_domain=900
)


def nearest_mean(x, label, train, test):
  """Accuracy of nearest class mean, a rule no test needs to trust training for."""
  means = np.stack([x[train][label[train] == k].mean(0) for k in np.unique(label)])
  gap = ((x[test][:, None] - means[None]) ** 2).sum(-1)
  return (gap.argmin(1) == label[test]).mean()


def paired(x, y, classes=4):
  """Features that see both words: outer product of soft cluster memberships."""
  from sklearn.cluster import KMeans

  words = [KMeans(classes, n_init=4, random_state=0).fit_predict(a) for a in (x, y)]
  return np.eye(classes**2)[words[0] * classes + words[1]]


def test_same_seed_same_data_other_seed_other_data():
  knobs = Cooccurrence(train_per_domain=5, val_per_domain=5, test_per_domain=5)
  one, two = make_cooccurrence(knobs), make_cooccurrence(knobs)
  assert one.version == two.version
  assert one.version != make_cooccurrence(knobs._replace(seed=1)).version


def test_shapes_follow_the_knobs():
  knobs = Cooccurrence(
    num_classes=3,
    num_domains=2,
    strengths=(1.0, 2.0, 3.0),
    widths=(5, 6, 7),
    noise=(0.1, 0.2, 0.3),
    train_per_domain=4,
    val_per_domain=3,
    test_per_domain=2,
  )
  d = make_cooccurrence(knobs)
  assert [d.inputs[m].shape for m in d.modalities] == [(18, 5), (18, 6), (18, 7)]
  assert d.num_classes == 3
  assert d.num_domains == 2
  assert np.bincount(d.split).tolist() == [8, 6, 4]


@pytest.mark.parametrize("target_pairing", ["absent", "reversed"])
def test_pairing_names_the_class_in_sources_only(target_pairing):
  d = make_cooccurrence(CLEAN._replace(target_pairing=target_pairing))
  both = paired(d.inputs["m0"], d.inputs["m1"])
  source, target = d.split == 0, d.split == TEST
  half = np.arange(len(d)) % 2 == 0
  # With no causal signal at all, the pairing alone is a perfect rule in the sources.
  assert nearest_mean(both, d.label, source & half, source & ~half) > 0.97
  # In the target it says nothing, or the class before the one it names.
  hit = nearest_mean(both, d.label, source, target)
  assert (
    hit == pytest.approx(0.25, abs=0.03) if target_pairing == "absent" else (hit < 0.02)
  )


def test_one_modality_alone_does_not_see_the_pairing():
  d = make_cooccurrence(CLEAN)
  half = np.arange(len(d)) % 2 == 0
  source = d.split == 0
  for m in d.modalities:
    accuracy = nearest_mean(d.inputs[m], d.label, source & half, source & ~half)
    assert accuracy == pytest.approx(0.25, abs=0.03)  # chance of 4 classes


def test_best_accuracy_is_the_closed_form_of_two_classes():
  # Two Gaussians at distance s, unit noise, M independent views: error
  # Phi(-sqrt(M) s / 2), the textbook Bayes error of equal covariances.
  from scipy.stats import norm

  knobs = Cooccurrence(num_classes=2, strengths=(1.2, 1.2), test_per_domain=20_000)
  assert best_target_accuracy(knobs) == pytest.approx(
    norm.cdf(np.sqrt(2) * 1.2 / 2), abs=0.005
  )
  assert best_target_accuracy(knobs, modalities=["m0"]) == pytest.approx(
    norm.cdf(1.2 / 2), abs=0.005
  )


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("num_classes", 1),
    ("num_domains", 1),
    ("strengths", (1.0,)),
    ("strengths", (1.0, -1.0)),
    ("widths", (3,)),
    ("widths", (3, 0)),
    ("noise", (0.1, -0.1)),
    ("pairing", 1.5),
    ("target_pairing", "sideways"),
    ("nuisance_scale", -1.0),
    ("train_per_domain", 0),
    ("val_per_domain", 0),
    ("test_per_domain", 0),
  ],
)
def test_a_bad_knob_is_named(field, value):
  with pytest.raises(DataError, match=field):
    make_cooccurrence(Cooccurrence()._replace(**{field: value}))
