"""The in-memory dataset: kinds, defaults, subsets."""

import numpy as np
import pytest

from mer_dg.data.dataset import DataError, infer_kind, make_dataset


def _make(**changes):
  made = {
    "name": "toy",
    "inputs": {
      "a": np.arange(18, dtype=np.float32).reshape(6, 3),
      "s": np.arange(36, dtype=np.float16).reshape(6, 3, 2),
      "pic": np.zeros((6, 4, 4), np.uint8),
    },
    "label": [0, 1, 0, 1, 0, 1],
    "domain": [0, 0, 0, 1, 1, 1],
    "class_names": ["x", "y"],
    "domain_names": ["p", "q"],
    "lengths": {"s": [3, 2, 1, 3, 2, 1]},
  }
  return make_dataset(**(made | changes))


# (dtype, shape) -> kind, as the format is specified.
@pytest.mark.parametrize(
  ("dtype", "shape", "kind"),
  [
    ("float32", (5, 7), "vector"),
    ("float16", (5, 7, 3), "sequence"),
    ("float64", (5, 7, 3, 2), "sequence"),
    ("int16", (5, 7, 3), "sequence"),
    ("uint8", (5, 7), "vector"),
    ("uint8", (5, 8, 8), "image"),
    ("uint8", (5, 8, 8, 1), "image"),
    ("uint8", (5, 8, 8, 3), "image"),
    ("uint8", (5, 8, 8, 4), "image"),
    ("uint8", (5, 8, 8, 2), "clip"),
    ("uint8", (5, 8, 8, 9), "clip"),
    ("uint8", (5, 2, 8, 8, 3), "clip"),
  ],
)
def test_kind_by_dtype_and_shape(dtype, shape, kind):
  assert infer_kind(np.zeros(shape, dtype)) == kind


def test_named_kind_overrides():
  pic = np.zeros((6, 4, 5), np.float32)
  assert _make(inputs={"pic": pic}, lengths={}).kinds == {"pic": "sequence"}
  as_image = _make(inputs={"pic": pic}, kinds={"pic": "image"}, lengths={})
  assert as_image.inputs["pic"].shape == (6, 4, 5, 1)
  as_vector = _make(inputs={"pic": pic}, kinds={"pic": "vector"}, lengths={})
  assert as_vector.inputs["pic"].shape == (6, 20)


def test_take_keeps_identities():
  dataset = _make(group=[7, 7, 8, 8, 9, 9], split=[0, 1, 2, 0, 1, 2])
  some = dataset.take(np.array([4, 1]))
  assert some.index.tolist() == [4, 1]
  assert some.group.tolist() == [9, 7]
  assert some.split is not None
  assert some.split.tolist() == [1, 1]
  assert some.domain.tolist() == [1, 0]
  assert some.lengths["s"].tolist() == [2, 2]
  np.testing.assert_array_equal(some.inputs["a"][0], dataset.inputs["a"][4])
  assert len(some.present["pic"]) == len(some) == 2


def test_select_modalities_orders():
  dataset = _make().select_modalities(("pic", "a"))
  assert dataset.modalities == ("pic", "a")
  assert list(dataset.kinds) == list(dataset.present) == ["pic", "a"]
  assert dataset.lengths == {}
  with pytest.raises(DataError, match="modalities=.'sound',. must be one or more of"):
    _make().select_modalities(("sound",))
  with pytest.raises(DataError, match=r"modalities=\(\) must"):
    _make().select_modalities(())


def test_errors_name_set_array_and_row():
  for changes, message in [
    (dict(inputs={}), "toy: no modalities"),
    (dict(label=[0, 1, 0, 1, 0, 2]), "toy: label is 2 in row 5; allowed 0..1"),
    (dict(label=[0.0] * 6), "label must hold integers, got float64"),
    (dict(domain=[0, 0, 0, 0, -1, 1]), "domain is -1 in row 4"),
    (dict(domain=[0, 1]), "domain must be .6."),
    (dict(lengths={"s": [3, 3, 3, 3, 3, 4]}), "s_len is 4 in row 5; allowed 1..3"),
    (dict(lengths={"a": [3] * 6}), "a_len is given, but 'a' is of kind 'vector'"),
    (dict(present={"a": np.ones((6, 1), bool)}), "a_present must be .6."),
    (dict(group=np.zeros((6, 2), int)), "group must be .6."),
  ]:
    with pytest.raises(DataError, match=message):
      _make(**changes)
  with pytest.raises(DataError, match="domain 'r' is not one of .'p', 'q'."):
    _make().domain_id("r")
