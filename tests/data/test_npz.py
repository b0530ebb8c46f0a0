"""The bring-your-own format: whatever is valid loads, and what is saved loads again."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from mer_dg.data.dataset import DataError, make_dataset
from mer_dg.data.npz import from_arrays, load_npz, save_npz
from tests.data._npz_files import small, write

# --- valid files ---------------------------------------------------------------------


_MODALITY = st.sampled_from(
  ["vector", "float16 padded", "tail axes", "grey", "rgb", "clip", "float64", "int16"]
)


def _make_modality(flavour, n, rng):
  """(array, extra keys, expected kind, expected sample shape)."""
  if flavour == "vector":
    return rng.normal(size=(n, 4)).astype(np.float32), {}, "vector", (4,)
  if flavour == "float64":
    return rng.normal(size=(n, 6)), {}, "vector", (6,)
  if flavour == "float16 padded":
    x = rng.normal(size=(n, 7, 3)).astype(np.float16)
    length = rng.integers(1, 8, n)
    x[np.arange(7)[None, :] >= length[:, None]] = np.nan  # Padding is never read.
    return x, {"len": length}, "sequence", (7, 3)
  if flavour == "tail axes":
    x = rng.normal(size=(n, 5, 2, 3)).cumsum(axis=1)
    return x.astype(np.float32), {}, "sequence", (5, 6)
  if flavour == "int16":
    x = rng.integers(-99, 99, (n, 5, 2)).cumsum(axis=1)
    return x.astype(np.int16), {}, "sequence", (5, 2)
  shape, kind, sample = {
    "grey": ((n, 6, 5), "image", (6, 5, 1)),
    "rgb": ((n, 6, 5, 3), "image", (6, 5, 3)),
    "clip": ((n, 4, 6, 5), "clip", (4, 6, 5, 1)),
  }[flavour]
  return rng.integers(0, 256, shape).astype(np.uint8), {}, kind, sample


@settings(max_examples=60, deadline=None)
@given(
  flavours=st.lists(_MODALITY, min_size=2, max_size=6),
  classes=st.integers(2, 30),
  sizes=st.lists(st.integers(1, 60), min_size=2, max_size=5),
  named=st.booleans(),
  text_domains=st.booleans(),
  absent=st.booleans(),
  seed=st.integers(0, 2**16),
)
def test_any_valid_file_loads(
  tmp_path_factory, flavours, classes, sizes, named, text_domains, absent, seed
):
  rng = np.random.default_rng(seed)
  n = sum(sizes)
  domain = np.repeat(np.arange(len(sizes)), sizes)
  label = rng.integers(0, classes, n)
  label[:2] = [0, classes - 1]
  names = [f"m{i}" for i in range(len(flavours))]
  arrays = {"modalities": np.array(names), "label": label.astype(np.int16)}
  text = np.array([f"site {d}" for d in range(len(sizes))])
  arrays["domain"] = text[domain] if text_domains else domain.astype(np.uint8)
  if named:
    arrays["class_names"] = np.array([f"c{k}" for k in range(classes)])
    arrays["domain_names"] = text
  made = {}
  for m, flavour in zip(names, flavours, strict=True):
    x, extra, kind, sample = _make_modality(flavour, n, rng)
    arrays[m] = x
    arrays |= {f"{m}_{key}": value for key, value in extra.items()}
    made[m] = (x, extra, kind, sample)
  if absent:
    arrays["m0_present"] = rng.integers(0, 2, n).astype(bool)
  path = write(tmp_path_factory.mktemp("valid"), arrays)

  loaded = load_npz(path)

  assert loaded.modalities == tuple(names)
  assert len(loaded) == n
  assert loaded.num_domains == len(sizes)
  for m, (x, extra, kind, sample) in made.items():
    assert (loaded.kinds[m], loaded.inputs[m].shape[1:]) == (kind, sample)
    np.testing.assert_array_equal(
      loaded.inputs[m], x.reshape(n, *sample).astype(loaded.inputs[m].dtype)
    )
    assert (m in loaded.lengths) == ("len" in extra)
  # Names must lead back to the values of the file, in whatever order they are kept.
  shown = np.array(loaded.domain_names)[loaded.domain]
  np.testing.assert_array_equal(
    shown, text[domain] if named or text_domains else domain.astype(str)
  )
  classes_shown = np.array(loaded.class_names)[loaded.label]
  np.testing.assert_array_equal(
    classes_shown, np.char.add("c", label.astype(str)) if named else label.astype(str)
  )
  np.testing.assert_array_equal(loaded.index, np.arange(n))

  copy = path.with_name("copy.npz")
  save_npz(loaded, copy)
  assert load_npz(copy).version == loaded.version
  assert load_npz(copy).kinds == loaded.kinds


def test_everything_optional_is_read(tmp_path):
  arrays = small() | {
    "class_names": np.array([b"no", b"yes"]),  # Bytes are text too.
    "domain_names": np.array(["unused", "y", "x"]),
    "domain": np.array([2, 2, 2, 2, 1, 1, 1, 1]),
    "b_len": np.array([5, 4, 3, 2, 1, 5, 5, 5], np.int8),
    "a_present": np.array([1, 1, 1, 1, 1, 1, 1, 0]),
    "a_kind": np.array("vector"),
    "group": np.array(["g1", "g1", "g0", "g0", "g2", "g2", "g3", "g3"]),
    "split": np.array(["train", "val"] * 4),
    "id": np.array([f"clip_{i}" for i in range(8)]),
    "something_else": np.array(3.0),
  }
  loaded = load_npz(write(tmp_path, arrays, "kitchen.npz"))
  assert loaded.name == "kitchen"
  assert loaded.class_names == ("no", "yes")
  assert loaded.domain_names == ("y", "x")  # "unused" has no row.
  assert loaded.domain.tolist() == [1] * 4 + [0] * 4
  assert loaded.lengths["b"].tolist() == [5, 4, 3, 2, 1, 5, 5, 5]
  assert loaded.present["a"].tolist() == [True] * 7 + [False]
  assert loaded.group.tolist() == [1, 1, 0, 0, 2, 2, 3, 3]
  assert loaded.split is not None
  assert loaded.split.tolist() == [0, 1] * 4
  assert load_npz(write(tmp_path, arrays), modalities=["b"]).modalities == ("b",)
  assert load_npz(write(tmp_path, arrays), modalities=["b", "a"]).modalities == (
    "b",
    "a",
  )


def test_the_variant_is_part_of_the_version_and_survives(tmp_path):
  plain = load_npz(write(tmp_path, small(), "plain.npz"))
  arrays = small() | {"variant": np.array("split=time,dedup=on")}
  path = write(tmp_path, arrays)
  loaded = load_npz(path)
  assert loaded.version == f"split=time,dedup=on/{plain.version}"
  save_npz(loaded, tmp_path / "copy.npz")
  assert load_npz(tmp_path / "copy.npz").version == loaded.version
  assert load_npz(path, modalities=["a"]).version.startswith("split=time,dedup=on/")
  for wrong in ("two words", "", "a/b", "x" * 101):
    with pytest.raises(DataError, match="variant is .*must be one word"):
      load_npz(write(tmp_path, small() | {"variant": np.array(wrong)}, "w.npz"))


def test_labels_with_gaps_are_named_by_themselves(tmp_path):
  arrays = small() | {"label": np.array([-7, 40, 3, 3, 40, -7, 3, 3])}
  loaded = load_npz(write(tmp_path, arrays))
  assert loaded.class_names == ("-7", "3", "40")
  assert loaded.label.tolist() == [0, 2, 1, 1, 2, 0, 1, 1]


def test_only_what_is_asked_for_is_read(tmp_path):
  arrays = small()
  arrays["b"] = np.full_like(arrays["b"], np.nan)
  path = write(tmp_path, arrays)
  assert load_npz(path, modalities=["a"]).modalities == ("a",)
  with pytest.raises(DataError, match="'b' holds NaN"):
    load_npz(path)


def test_missing_rows_may_hold_nan(tmp_path):
  arrays = small()
  arrays["a"][3] = np.nan
  arrays["a_present"] = np.arange(8) != 3
  assert len(load_npz(write(tmp_path, arrays))) == 8


def test_clip_with_length_loops(tmp_path):
  clip = np.arange(8 * 4, dtype=np.uint8).reshape(8, 4, 1, 1) * np.ones(
    (1, 1, 2, 2), np.uint8
  )
  arrays = small() | {"a": clip, "a_len": np.array([4, 3, 2, 1, 4, 4, 4, 4])}
  loaded = load_npz(write(tmp_path, arrays))
  assert "a" not in loaded.lengths
  frames = loaded.inputs["a"][:, :, 0, 0, 0]  # [N, T]; row i holds 4i .. 4i + 3.
  assert frames[:4].tolist() == [[0, 1, 2, 3], [4, 5, 6, 4], [8, 9, 8, 9], [12] * 4]


def test_big_endian_and_wide_numbers_become_float32(tmp_path):
  arrays = small()
  arrays["a"] = arrays["a"].astype(">f8")
  arrays["b"] = (arrays["b"] * 100).astype(np.int64)
  loaded = load_npz(write(tmp_path, arrays))
  assert {m: x.dtype for m, x in loaded.inputs.items()} == {
    "a": np.float32,
    "b": np.float32,
  }


# --- writing -------------------------------------------------------------------------


def test_round_trip_keeps_everything(tmp_path):
  rng = np.random.default_rng(1)
  dataset = make_dataset(
    name="made",
    # "file" is an argument of numpy.savez: names must not collide with it.
    inputs={
      "file": rng.normal(size=(6, 4, 3)).astype(np.float16),
      "pic": rng.integers(0, 256, (6, 5, 5)).astype(np.uint8),
    },
    label=np.array([0, 1, 2, 0, 1, 2]),
    domain=np.array([0, 0, 0, 1, 1, 1]),
    class_names=["x", "y", "z"],
    domain_names=["p", "q"],
    present={"pic": np.array([1, 1, 1, 1, 1, 0], bool)},
    lengths={"file": np.array([1, 2, 3, 4, 4, 4])},
    group=np.array([5, 5, 7, 7, 9, 9]),
    split=np.array([0, 1, 2, 0, 1, 2]),
  )
  path = tmp_path / "sub" / "made.npz"
  save_npz(dataset, path)
  again = load_npz(path)
  assert again.version == dataset.version
  assert (again.name, again.kinds, again.class_names, again.domain_names) == (
    "made",
    dataset.kinds,
    dataset.class_names,
    dataset.domain_names,
  )
  for key in ("label", "domain", "group", "split", "index"):
    np.testing.assert_array_equal(getattr(again, key), getattr(dataset, key))
  for key in ("inputs", "present", "lengths"):
    left, right = getattr(again, key), getattr(dataset, key)
    assert list(left) == list(right)
    for m in left:
      np.testing.assert_array_equal(left[m], right[m])
      assert left[m].dtype == right[m].dtype


def test_bad_data_is_not_written_and_leaves_the_old_file(tmp_path):
  path = tmp_path / "set.npz"
  save_npz(small(), path)
  before = path.read_bytes()
  with pytest.raises(DataError, match="label"):
    save_npz(small() | {"label": np.zeros(7, int)}, path)
  with pytest.raises(DataError, match="Python objects"):
    save_npz(small() | {"notes": np.array([{}], object)}, path)
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ["set.npz"]


def test_a_killed_write_leaves_nothing_under_the_name(tmp_path, monkeypatch):
  def die(*args, **kwargs):
    raise KeyboardInterrupt

  monkeypatch.setattr(np.lib.format, "write_array", die)
  with pytest.raises(KeyboardInterrupt):
    save_npz(small(), tmp_path / "set.npz")
  assert list(tmp_path.iterdir()) == []


def test_version_follows_the_content(tmp_path):
  def version(**changes):
    return from_arrays(small() | changes, name="set").version

  base = version()
  assert version() == base
  a = small()["a"].copy()
  a[0, 0] += 1
  changes = [
    {"a": a},
    {"domain_names": np.array(["u", "v"])},
    {"split": np.array([0, 1] * 4)},
    {"group": np.zeros(8, int)},
    {"b_len": np.full(8, 4)},
    {"b_present": np.arange(8) > 0},
  ]
  assert len({base, *(version(**c) for c in changes)}) == len(changes) + 1


# --- shipped sets --------------------------------------------------------------------


@pytest.mark.parametrize(
  ("name", "modalities", "classes", "domains", "rows"),
  [
    ("dsads", ("acc", "gyro", "mag"), 19, 8, 4560),
    ("gesture_phase", ("hands", "wrists", "head", "velacc"), 5, 3, 3220),
  ],
)
def test_shipped_sets_load_unchanged(
  shared_data, name, modalities, classes, domains, rows
):
  path = shared_data / f"{name}.npz"
  loaded = load_npz(path)
  assert loaded.modalities == modalities
  assert (loaded.num_classes, loaded.num_domains, len(loaded)) == (
    classes,
    domains,
    rows,
  )
  with np.load(path, allow_pickle=False) as file:
    for m in modalities:
      assert loaded.inputs[m].dtype == file[m].dtype
      np.testing.assert_array_equal(loaded.inputs[m], file[m])
    np.testing.assert_array_equal(loaded.group, file["group"])
    np.testing.assert_array_equal(loaded.label, file["label"])
    np.testing.assert_array_equal(loaded.domain, file["domain"])
    assert loaded.domain_names == tuple(file["domain_names"])


def test_the_example_of_the_docs_loads(repo_root, tmp_path, monkeypatch):
  page = (repo_root / "docs" / "data.md").read_text(encoding="utf-8")
  code = page.split("```python\n")[1].split("```")[0]
  monkeypatch.chdir(tmp_path)
  exec(code, {})
  loaded = load_npz("mine.npz")
  assert loaded.kinds == {"imu": "sequence", "camera": "image"}
  assert loaded.domain_names == ("home", "office", "street")
