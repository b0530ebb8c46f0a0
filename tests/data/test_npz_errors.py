"""A broken file is explained: which file, which array, which row, what is allowed."""

import pathlib

import numpy as np
import pytest

from mer_dg.data.dataset import DataError
from mer_dg.data.npz import load_npz
from tests.data._npz_files import small, write


def _with(**changes):
  return lambda: small() | changes


def _without(key):
  return lambda: {k: v for k, v in small().items() if k != key}


def _broken_row(key, row, value):
  def make():
    arrays = small()
    arrays[key][row] = value
    return arrays

  return make


BROKEN = {
  "no modalities": (_without("modalities"), "'modalities' .* missing; the file has"),
  "no label": (_without("label"), "'label' missing; the file has"),
  "no domain": (_without("domain"), "'domain' missing"),
  "no array": (_without("b"), "'b' missing"),
  "empty list": (
    _with(modalities=np.array([], "U1")),
    "must list different, non-empty",
  ),
  "twice": (_with(modalities=np.array(["a", "a"])), "must list different"),
  "reserved name": (_with(modalities=np.array(["a", "label"])), "other than"),
  "names are floats": (_with(modalities=np.array([1.5])), "list of names"),
  "pickled modalities": (
    _with(modalities=np.array(["a", "b"], object)),
    "'modalities' holds Python objects .a pickle., which are never loaded",
  ),
  "pickled input": (
    _with(a=np.array([[1, None]] * 8, object)),
    "'a' holds Python objects",
  ),
  "text input": (_with(a=np.array([["x", "y"]] * 8)), "'a' must hold numbers, got <U1"),
  "complex input": (_with(a=np.ones((8, 2), complex)), "'a' must hold numbers"),
  "scalar per row": (_with(a=np.ones(8)), "'a' with dtype .* is none of: numbers"),
  "no channels": (_with(a=np.ones((8, 0))), "'a' with shape .8, 0. is not of kind"),
  "unequal": (_with(a=np.ones((7, 3))), "'a' has 7 rows but label has 8"),
  "NaN": (_broken_row("a", (5, 1), np.nan), "'a' holds NaN or infinity in row 5"),
  "infinity": (_broken_row("b", (2, 4, 1), np.inf), "'b' .* infinity in row 2 .1 rows"),
  "beyond float32": (_with(a=np.full((8, 3), 1e300)), "'a' holds NaN or infinity"),
  "float labels": (_with(label=np.ones(8)), "label must be integers .N., got float64"),
  "column of labels": (_with(label=np.ones((8, 1), int)), "label must be integers"),
  "one class": (_with(label=np.full(8, 3)), "every label is 3; two classes"),
  "no rows": (
    _with(
      label=np.zeros(0, int),
      domain=np.zeros(0, int),
      a=np.ones((0, 3)),
      b=np.ones((0, 3)),
    ),
    "label is empty",
  ),
  "label beyond names": (
    _with(class_names=np.array(["x", "y"]), label=np.array([0, 1, 1, 2, 0, 0, 2, 0])),
    "label is 2 in row 3 .2 rows in all., but class_names has 2 names",
  ),
  "class named twice": (_with(class_names=np.array(["x", "x"])), r"\['x'\] is not"),
  "class without name": (_with(class_names=np.array(["x", ""])), "non-empty"),
  "domain beyond names": (
    _with(domain=np.array([0, 0, 0, 1, 1, 9, 9, 1]), domain_names=np.array(["u", "v"])),
    "domain is 9 in row 5, not in 0..1, a position in domain_names",
  ),
  "negative domain": (
    _with(
      domain=np.array([0, 0, -1, 1, 1, 1, 0, 1]), domain_names=np.array(["u", "v"])
    ),
    "domain is -1 in row 2",
  ),
  "unknown domain name": (
    _with(domain=np.array(["u", "v", "w", "v"] * 2), domain_names=np.array(["u", "v"])),
    "domain is 'w' in row 2, not one of domain_names .'u', 'v'.",
  ),
  "domain without name": (_with(domain=np.array(["u", "", "v", "v"] * 2)), "in row 1"),
  "float domain": (_with(domain=np.ones(8)), "domain must be integers or names .8."),
  "short domain": (_with(domain=np.arange(7)), "domain must be .* got int64 .7,."),
  "one domain": (_with(domain=np.full(8, "u")), "every row is of domain 'u'"),
  "unknown kind": (_with(a_kind=np.array("video")), "a_kind is .'video'.; allowed"),
  "wrong kind": (_with(a_kind=np.array("image")), "'a' .* is not of kind 'image'"),
  "kind needs time": (_with(a_kind=np.array("clip")), "is not of kind 'clip'"),
  "length of a vector": (_with(a_len=np.ones(8, int)), "'a' is of kind 'vector'"),
  "length too long": (_with(b_len=np.array([5] * 7 + [6])), "b_len is 6 in row 7"),
  "length zero": (_with(b_len=np.array([5] * 7 + [0])), "b_len is 0 in row 7"),
  "length float": (_with(b_len=np.ones(8)), "b_len must be integers .8."),
  "short length": (_with(b_len=np.ones(7, int)), "b_len must be integers"),
  "short present": (_with(a_present=np.ones(7, bool)), "a_present must be .8."),
  "present twos": (_with(a_present=np.full(8, 2)), "a_present must hold booleans"),
  "short group": (_with(group=np.arange(7)), "group must be .8."),
  "float group": (_with(group=np.ones(8)), "group must be integers or names"),
  "short split": (_with(split=np.zeros(7, int)), "split must be .8."),
  "unknown split": (_with(split=np.array(["train", "dev"] * 4)), "'dev' in row 1"),
  "split beyond": (_with(split=np.array([0, 3] * 4)), "split is 3 in row 1"),
  "same id": (
    _with(id=np.array([0, 1, 2, 3, 4, 5, 2, 7])),
    "id 2 stands in rows .2, 6.",
  ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file_is_explained(tmp_path, case):
  make, message = BROKEN[case]
  path = write(tmp_path, make())
  with pytest.raises(DataError, match=message) as caught:
    load_npz(path)
  text = str(caught.value)
  assert str(path) in text
  assert "\n" not in text  # One paragraph.


def test_unknown_modality_asked_for(tmp_path):
  path = write(tmp_path, small())
  with pytest.raises(
    DataError, match=r"modalities=\('sound',\) must be .* \['a', 'b'\]"
  ):
    load_npz(path, modalities=["sound"])


def test_no_such_file(tmp_path):
  with pytest.raises(DataError, match="nothing.npz: no such file"):
    load_npz(tmp_path / "nothing.npz")


def test_not_an_npz(tmp_path):
  path = tmp_path / "x.npz"
  path.write_text("hello")
  with pytest.raises(DataError, match="not an .npz file"):
    load_npz(path)
  path.write_bytes(b"")
  with pytest.raises(DataError, match="not an .npz file"):
    load_npz(path)
  with path.open("wb") as file:
    np.save(file, np.ones(3))
  with pytest.raises(DataError, match="a single array"):
    load_npz(path)


def test_truncated_and_damaged(tmp_path):
  path = write(tmp_path, small())
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(DataError, match="not an .npz file"):
    load_npz(path)
  # The zip directory is whole, the content of "a" is not: its checksum fails.
  data = small()["a"].tobytes()
  at = whole.index(data)
  path.write_bytes(whole[:at] + bytes(len(data)) + whole[at + len(data) :])
  with pytest.raises(DataError, match="'a' is damaged"):
    load_npz(path)


def test_a_pickle_is_not_executed(tmp_path):
  class Bomb:
    def __reduce__(self):
      return (pathlib.Path.touch, (tmp_path / "boom",))

  path = write(tmp_path, small() | {"group": np.array([Bomb()] * 8, object)})
  with pytest.raises(DataError, match="'group' holds Python objects"):
    load_npz(path)
  assert not (tmp_path / "boom").exists()
