"""Numbers about embeddings with a known answer."""

import types

import numpy as np
import pytest
from sklearn.decomposition import PCA

from mer_dg.data.dataset import make_dataset
from mer_dg.data.splits import Split, leave_one_domain_out
from mer_dg.experiments.representation import (
  draw_all_sides,
  draw_sides,
  embedding_maps,
  make_map,
  representation,
)
from mer_dg.protocol import Assignment

N, D, CLASSES = 320, 6, 4


def dataset(group=None):
  return make_dataset(
    name="toy",
    inputs={"a": np.zeros((N, 1), np.float32), "b": np.zeros((N, 1), np.float32)},
    label=np.arange(N) % CLASSES,
    domain=np.arange(N) // (N // 2),
    class_names=list("wxyz"),
    domain_names=["s", "t"],
    group=group,
    present={"b": np.arange(N) % 5 > 0},
  )


def split_of(d) -> Split:
  return leave_one_domain_out(d, "t", split_seed=0, val_fraction=0.5)


def test_sides_are_balanced_disjoint_and_have_the_modality():
  d = dataset()
  split = split_of(d)
  sides = draw_sides(d, split, "b")
  source, target = sides.rows.reshape(2, -1)
  assert set(source) <= set(split.val["s"])
  assert set(target) <= set(split.test)
  assert len(set(sides.rows)) == len(sides.rows) > 40
  assert d.present["b"][sides.rows].all()
  assert (sides.fit ^ sides.test).all()
  fit = sides.fit.reshape(2, -1)[0]
  for half in (fit, ~fit):
    count = [np.bincount(d.label[side[half]]) for side in (source, target)]
    np.testing.assert_array_equal(*count)


def test_a_recording_is_fitted_on_or_judged_on():
  d = dataset(group=np.arange(N) // 20)  # 20 rows of all classes.
  sides = draw_sides(d, split_of(d), "a")
  fitted, judged = (set(d.group[sides.rows[m]]) for m in (sides.fit, sides.test))
  assert fitted
  assert judged
  assert not fitted & judged


def test_classes_of_one_recording_are_split_by_rows():
  # Each class of a domain is one group: by groups, no half would have every class.
  d = dataset(group=np.arange(N) % CLASSES + CLASSES * (np.arange(N) // (N // 2)))
  source = np.flatnonzero(d.domain == 0)
  split = Split("t", ("s",), {"s": source[:40]}, {"s": source[40:]}, source + N // 2)
  sides = draw_sides(d, split, "a")
  for half in (sides.fit, sides.test):
    assert set(d.label[sides.rows[half]]) == set(range(CLASSES))


@pytest.fixture(scope="module")
def found():
  """Modality a: the target is the source, moved. Modality b: one direction."""
  d, rng = dataset(), np.random.default_rng(0)
  center = 4 * rng.normal(size=(CLASSES, D))
  z = center[d.label] + 0.1 * rng.normal(size=(N, D))
  moved = z + 20.0 * (d.domain == 1)[:, None] * np.eye(D)[0]
  line = rng.normal(size=(N, 1)) * np.ones((1, D))
  run = {"a": moved.astype(np.float32), "b": line.astype(np.float32)}
  return representation(d, draw_all_sides(d, {"t": split_of(d)})["t"], run)


def test_a_moved_target_is_told_but_has_the_same_shape(found):
  assert found["a"]["domain_accuracy"] == 1.0
  assert found["a"]["cka"] > 0.99
  assert found["a"]["procrustes"] < 0.01
  # Seen from the origin, the moved rows lie in nearly one direction.
  for name in ("entropy_kde", "entropy_gaussian", "effective_rank"):
    assert found["a"][f"{name}/target"] < found["a"][f"{name}/val"] - 0.1


def test_one_direction_has_rank_one_and_tells_no_domain(found):
  for side in ("val", "target"):
    assert found["b"][f"effective_rank/{side}"] == pytest.approx(1.0, abs=1e-3)
  # About 60 rows are judged: three standard errors of a coin are 0.19.
  assert abs(found["b"]["domain_accuracy"] - 0.5) < 0.2


def test_every_estimator_on_both_sides_and_nothing_infinite(found):
  for name in ("gaussian", "kde", "knn", "logdet", "marginal", "mixture", "renyi"):
    assert {f"entropy_{name}/val", f"entropy_{name}/target"} <= set(found["a"])
  # Rows at two points of the sphere: neighbours coincide, the estimate is -inf.
  assert "entropy_knn/val" not in found["b"]
  assert all(np.isfinite(list(values.values())).all() for values in found.values())


def test_maps_hold_both_sides_of_the_first_target_and_seed():
  d, rng = dataset(), np.random.default_rng(0)
  parts = dict(tasks=(Assignment("t"),), splits=[split_of(d)])
  config = types.SimpleNamespace(seeds=(3, 4))
  setup = types.SimpleNamespace(dataset=d, config=config, **parts)
  z = {m: rng.normal(size=(N, D)) for m in "ab"}
  partial = {"a": z["a"]}  # Modality b of it diverged.
  maps = embedding_maps(setup, {"erm": z, "alone": partial})
  assert [(m.training, m.modality) for m in maps.maps] == [
    *(("erm", "a"), ("alone", "a"), ("erm", "b"))
  ]
  assert (maps.target, maps.seed, maps.domain_names) == ("t", 3, ("s", "t"))
  for m in maps.maps:
    assert len(m.points) == len(m.label) == len(m.domain) <= 320
    assert set(m.domain) == {0, 1}


def mapped(z):
  label = np.arange(24) % 3
  return make_map(z, label, label, training="erm", modality="video")


Z = np.random.default_rng(0).normal(size=(24, 5)) * np.array([5, 3, 1, 1, 1])


def test_coordinates_of_a_map_are_those_of_scikit_learn():
  pca = PCA(2, svd_solver="full").fit(Z)
  found = mapped(Z)
  np.testing.assert_allclose(found.points, pca.transform(Z), atol=1e-9)
  np.testing.assert_allclose(found.share, pca.explained_variance_ratio_, rtol=1e-9)


@pytest.mark.parametrize("z", [np.ones((24, 5)), Z[:, :1]])
def test_what_has_no_second_direction_lies_on_a_line(z):
  found = mapped(z)
  np.testing.assert_array_equal(found.points[:, 1], 0)
  assert found.share[1] == 0
  assert np.isfinite(found.points).all()
