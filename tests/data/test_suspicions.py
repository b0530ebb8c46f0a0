"""What is said of a set that trains, but perhaps not on what was meant."""

import time

import numpy as np
import pytest

from mer_dg.data import DataError, load_npz, make_dataset
from tests.data._npz_files import small, write


def _set(n=400, **changes):
  rng = np.random.default_rng(0)
  arrays = {
    "modalities": np.array(["a", "imu"]),
    "a": rng.normal(size=(n, 6)).astype(np.float32),
    "imu": rng.normal(size=(n, 8, 3)).cumsum(axis=1).astype(np.float32),
    "label": np.arange(n) % 4,
    "domain": np.arange(n) * 3 // n,
  }
  return arrays | {k: v(arrays) if callable(v) else v for k, v in changes.items()}


def _mostly(arrays):
  label = np.zeros(len(arrays["label"]), int)
  label[::100] = 1  # 4 of 400, in all domains.
  return label


def _single(arrays):
  return np.where(arrays["domain"] == 2, 3, arrays["label"])


def _repeated(key):
  def make(arrays):
    x = arrays[key].copy()
    x[390:395] = x[5:10]  # Domain 2 and domain 0.
    return x

  return make


def _with_label(noise):
  def make(arrays):
    x = arrays["imu"].copy()
    rng = np.random.default_rng(1)
    x[:, 4, 1] = arrays["label"] + noise * rng.uniform(-1, 1, len(x))
    return x

  return make


def _with_one_hot(arrays):
  one_hot = np.eye(4, dtype=np.float32)[arrays["label"]]
  return np.concatenate([arrays["a"], one_hot], axis=1)


def _stuck(arrays):
  a = arrays["a"].copy()
  a[:, 2] = 1.5
  return a


def _scaled(arrays):
  return arrays["a"] * np.array([1e6, 1, 1, 1, 1, 1e-2], np.float32)


def _in_millimetres(arrays):
  return np.where((arrays["domain"] == 1)[:, None, None], 1000, 1) * arrays["imu"]


CASES = {
  "nothing": ({}, []),
  "majority": ({"label": _mostly}, ["class '0' has 99.0% of the rows"]),
  "one class": (
    {"label": _single, "domain_names": np.array(["x", "y", "z"])},
    ["1 of 3 domains have a single class: ['z']"],
  ),
  "constant": ({"imu": np.ones((400, 8, 3))}, ["'imu' is the same in every row"]),
  "missing": (
    {"imu_present": np.zeros(400, bool)},
    ["'imu' is missing in every row"],
  ),
  "duplicates": (
    {"a": _repeated("a"), "imu": _repeated("imu")},
    ["5 rows stand in another domain too, bit for bit, for instance"],
  ),
  # The same recording under two inputs is no duplicate.
  "half a duplicate": ({"a": _repeated("a")}, []),
  "label": ({"imu": _with_label(0)}, ["'imu' contains the label: number 13 of it"]),
  "noisy label": (
    {"imu": _with_label(0.4)},
    ["'imu' contains the label: number 13 of it tells the class by itself (leakage)"],
  ),
  "blurred label": ({"imu": _with_label(0.8)}, []),
  "one-hot": ({"a": _with_one_hot}, ["'a' contains the label: number 6, 7, 8"]),
  "stuck": ({"a": _stuck}, ["1 of the 6 numbers of 'a' hardly vary"]),
  "scales": ({"a": _scaled}, ["the numbers of 'a' differ in scale by 1e+08"]),
  "another unit": (
    {"imu": _in_millimetres},
    ["'imu' is 955 times larger in '1' than elsewhere: another unit?"],
  ),
  "typos": (
    {"imu_lens": np.ones(400), "groups": np.ones(400), "weather": np.ones(400)},
    [
      "key 'imu_lens' of the file is not read; did you mean 'imu_len'?",
      "key 'groups' of the file is not read; did you mean 'group'?",
      "keys of the file that are not read: ['weather'].",
    ],
  ),
  "what our tools note": ({"preparation": "x", "made_from": "y"}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_said(tmp_path, case):
  changes, expected = CASES[case]
  found = load_npz(write(tmp_path, _set(**changes))).warnings
  assert len(found) == len(expected), found
  for line, start in zip(found, expected, strict=True):
    assert line.startswith(start)
    assert "\n" not in line


def test_one_row_per_class_and_domain(tmp_path):
  arrays = _set(12)
  arrays["domain"] = np.arange(12) // 4
  found = load_npz(write(tmp_path, arrays)).warnings
  assert [line[:38] for line in found] == ["a single row per class and domain: no "]


def test_ten_thousand_domains_are_read_and_looked_at_quickly(tmp_path):
  n = 40_000
  domain = np.arange(n) // 4
  arrays = _set(n, domain=np.char.add("kitchen ", domain.astype(str)))
  arrays["domain_names"] = np.unique(arrays["domain"])[::-1]
  path = write(tmp_path, arrays)
  start = time.process_time()
  found = load_npz(path).warnings
  # Comparing every name with every other would be 10^8 steps.
  assert time.process_time() - start < 3
  assert found[0].startswith("10000 domains for 40000 rows")
  arrays["domain"][7] = "nowhere"
  with pytest.raises(DataError, match="'nowhere' in row 7") as caught:
    load_npz(write(tmp_path, arrays))
  assert len(str(caught.value)) < 1000


def test_work_is_bounded():
  n = 300_000
  rng = np.random.default_rng(0)
  dataset = make_dataset(
    name="large",
    inputs={"a": rng.integers(0, 255, (n, 100), np.uint8)},
    label=np.arange(n) % 7,
    domain=np.arange(n) % 2,
    class_names=list("abcdefg"),
    domain_names=["p", "q"],
  )
  start = time.process_time()
  assert dataset.warnings == []
  assert time.process_time() - start < 5  # 0.2 s where it was written.


def test_missing_everywhere_is_refused(tmp_path):
  none = np.zeros(8, bool)
  path = write(tmp_path, small() | {"a_present": none, "b_present": none})
  with pytest.raises(DataError, match="every modality is missing in every row"):
    load_npz(path)
