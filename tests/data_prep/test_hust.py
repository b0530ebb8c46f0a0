"""The HUST motor set from text files in the published layout."""

import re

import numpy as np
import pytest

from data_prep import hust
from data_prep.hust_windows import (
  WINDOW,
  WINDOWS,
  cut,
  make_draw,
  overlap_starts,
  overlaps,
  time_starts,
)
from mer_dg.data.dataset import DataError
from mer_dg.data.npz import load_npz
from mer_dg.data.splits import leave_one_domain_out
from tests.data_prep._sensors import (
  FEW,
  HEADER,
  LENGTH,
  hust_command,
  signals,
  write_recording,
)


def spans(ids):
  """First samples of the windows, by recording."""
  found = {}
  for name, _, start in (text.partition(":") for text in ids):
    found.setdefault(name, []).append(int(start))
  return {name: np.array(starts) for name, starts in found.items()}


# --- the prepared file ---------------------------------------------------------------


@pytest.mark.parametrize("split", ["time", "overlap"])
def test_counts_names_and_version(hust_prepared, split):
  dataset = load_npz(hust_prepared / f"{split}.npz")
  assert dataset.version.startswith(f"split={split},dedup=on/")
  assert dataset.modalities == ("vibration", "sound")
  assert dataset.inputs["sound"].shape == (24 * sum(FEW), WINDOW, 1)
  assert dataset.kinds == {"vibration": "sequence", "sound": "sequence"}
  assert dataset.domain_names == ("5HZ", "10HZ", "20HZ", "30HZ")
  assert dataset.class_names[:2] == ("healthy", "bearing fault")
  for d in range(4):
    for k in range(6):
      rows = (dataset.domain == d) & (dataset.label == k)
      assert np.bincount(dataset.split[rows]).tolist() == list(FEW)
      assert len(np.unique(dataset.group[rows])) == 1  # One recording.
  assert len(np.unique(dataset.group)) == 24


def test_no_window_of_one_split_overlaps_one_of_another(hust_prepared):
  with np.load(hust_prepared / "time.npz") as file:
    ids, split = file["id"], file["split"]
  parts = [spans(ids[split == s].tolist()) for s in ("train", "val", "test")]
  for name in parts[0]:
    train, val, test = (part[name] for part in parts)
    # Time order, and a gap of a window between the end of one and the next.
    assert train.max() + 2 * WINDOW <= val.min()
    assert val.max() + 2 * WINDOW <= test.min()
    assert train.min() == 0
    assert test.max() + WINDOW == LENGTH  # Nothing at the end is wasted.
    assert train.max() + WINDOW <= 15_400 <= val.min()  # 70 % and 80 % of 22 000.
    assert val.max() + WINDOW <= 17_600 <= test.min()


def test_values_are_those_of_the_file(hust_prepared):
  for name in ("time", "overlap"):
    with np.load(hust_prepared / f"{name}.npz") as file:
      arrays = dict(file)
    for row in (0, 77, 239):
      d, k = arrays["domain"][row], arrays["label"][row]
      recording, _, start = arrays["id"][row].partition(":")
      assert recording == f"{list(hust.STATES)[k]}_{hust.SPEEDS[d]}"
      assert arrays["group"][row] == recording
      part = signals(d, k)[int(start) : int(start) + WINDOW]
      x, y, z, sound = part.T
      expected = {"vibration": np.sqrt(x * x + y * y + z * z), "sound": sound}
      for m, signal in expected.items():
        scaled = (signal - signal.min()) / (signal.max() - signal.min())
        np.testing.assert_allclose(arrays[m][row, :, 0], scaled, atol=1e-6)
        assert arrays[m].dtype == np.float32


def test_split_is_used_by_the_loader(hust_prepared):
  dataset = load_npz(hust_prepared / "time.npz")
  split = leave_one_domain_out(dataset, "20HZ", split_seed=0, val_fraction=0.5)
  assert split.sources == ("5HZ", "10HZ", "30HZ")
  assert {len(rows) for rows in split.train.values()} == {6 * 6}
  assert {len(rows) for rows in split.val.values()} == {6 * 2}
  assert len(split.test) == 6 * 2  # Test windows only.


# --- windows -------------------------------------------------------------------------


def test_shares_of_overlapping_windows_are_those_known_of_the_reference():
  """Measured on the reference's split of files with 262 144 samples: 99.9 and 98.8 %
  of test and validation windows overlap, 96 and 90 % by more than half. Chance alone
  gives 1 - exp(-800 * 2047 / 261121) and so on, to a few tenths of a percent."""
  found, draw = np.zeros((2, 2)), make_draw("overlap", WINDOWS)
  for _ in range(24):
    starts = draw(262_144)
    assert [len(s) for s in starts] == list(WINDOWS)
    assert len(np.unique(np.concatenate(starts))) == sum(WINDOWS)
    found += overlaps(starts)
  (val, val_half), (test, test_half) = found / (24 * 200)
  np.testing.assert_allclose([test, val], [0.999, 0.988], atol=0.004)
  np.testing.assert_allclose([test_half, val_half], [0.96, 0.90], atol=0.01)


def test_default_windows_of_a_published_length_do_not_overlap():
  for length in (262_144, 163_840):
    starts = time_starts(length)
    assert [len(s) for s in starts] == list(WINDOWS)
    assert all((np.diff(s) > 0).all() for s in starts)
    assert not overlaps(starts).any()


def test_overlaps_against_all_pairs():
  rng = np.random.default_rng(0)
  starts = [rng.integers(0, 40_000, n) for n in (12, 30, 40)]
  found = overlaps(starts)
  for i in (1, 2):
    earlier = np.concatenate(starts[:i])
    nearest = np.abs(starts[i][:, None] - earlier[None, :]).min(axis=1)
    expected = [(nearest < 1024).sum(), (nearest < 512).sum()]
    np.testing.assert_array_equal(found[i - 1], expected)
    assert 0 < expected[1] < expected[0] < len(nearest)


def test_drawn_as_described_for_the_reference():
  """Its description, worked by hand: 1000 different starts from generator 42, shuffled;
  the last 200 test; of the others those on the first 200 places shuffled with the
  legacy generator 8 validate. The generators go on from recording to recording."""
  rng, val_rng = np.random.default_rng(42), np.random.RandomState(8)
  draw = make_draw("overlap", WINDOWS)
  for _ in range(2):
    chosen = rng.choice(262_144 - 1023, size=1000, replace=False)
    rng.shuffle(chosen)
    order = list(range(800))
    val_rng.shuffle(order)
    train, val, test = draw(262_144)
    np.testing.assert_array_equal(test, chosen[800:])
    np.testing.assert_array_equal(val, [chosen[i] for i in order[:200]])
    np.testing.assert_array_equal(train, [chosen[i] for i in order[200:]])


def test_a_constant_window_is_zero():
  windows = cut(np.array([np.full(2000, 3.0), np.arange(2000.0)]), np.array([0, 900]))
  np.testing.assert_array_equal(windows[0], 0.0)
  np.testing.assert_allclose(windows[1, 1], np.arange(1024) / 1023, atol=1e-6)


def test_short_recordings_and_bad_words_are_refused():
  with pytest.raises(DataError, match=r"9000 samples are too few: the val part has"):
    time_starts(9000, FEW)
  rngs = np.random.default_rng(0), np.random.RandomState(0)
  with pytest.raises(DataError, match="room for 6 different windows of 1024, 10 are"):
    overlap_starts(WINDOW + 5, FEW, *rngs)
  for words in (("time", (1, 0, 1)), ("time", (1, 1)), ("random", FEW)):
    with pytest.raises(DataError, match="must be three numbers|is not one of"):
      make_draw(*words)


# --- bad files -----------------------------------------------------------------------


def _line(path, number, text):
  lines = path.read_text().splitlines()
  lines[number - 1] = text
  path.write_text("\n".join(lines) + "\n")


# What is done to a recording, and what is said of it. The header has five lines.
_DAMAGE = {
  "missing": (lambda p: p.unlink(), r"BOW_5HZ.txt: cannot be read \(No such file"),
  "four columns": (
    lambda p: _line(p, 8, "0.1 1.0 2.0 3.0"),
    r"BOW_5HZ.txt: line 8 has 4 columns, expected time, vibration x",
  ),
  "nan": (
    lambda p: _line(p, 30, "0.1 1.0 2.0 nan 3.0"),
    r"BOW_5HZ.txt: line 30: vibration z is 'nan', not a finite number",
  ),
  "word": (
    lambda p: _line(p, 6, "0.1 1.0 2.0 3.0 loud"),
    r"BOW_5HZ.txt: line 6: sound is 'loud', not a finite number",
  ),
  "overflow": (
    lambda p: _line(p, 9, "0.1 1.0 2.0 3.0 1e999"),
    r"BOW_5HZ.txt: line 9: sound is '1e999', not a finite number",
  ),
  "short": (
    lambda p: write_recording(p, signals(0, 2, 9000)),
    r"BOW_5HZ.txt: 9000 samples are too few: the val part",
  ),
  "no numbers": (
    lambda p: p.write_text(HEADER),
    r"BOW_5HZ.txt: no line of numbers among 5 lines",
  ),
}


@pytest.fixture
def linked(hust_root, tmp_path):
  """The folder with one recording of its own, the others shared."""
  root = tmp_path / "hust"
  root.mkdir()
  for path in hust_root.iterdir():
    if path.name == "BOW_5HZ.txt":
      (root / path.name).write_bytes(path.read_bytes())
    else:
      (root / path.name).symlink_to(path)
  return root


@pytest.mark.parametrize("damage", ["missing", "nan"])
def test_bad_recordings_stop_or_are_skipped(linked, damage, tmp_path, capsys):
  spoil, message = _DAMAGE[damage]
  spoil(linked / "BOW_5HZ.txt")
  out = tmp_path / "a.npz"
  with pytest.raises(SystemExit, match="not all is usable"):
    hust_command(linked, f"--out={out}")
  assert not out.exists()
  printed = capsys.readouterr().out
  assert "unusable: 1" in printed
  assert re.search(message, printed)
  hust_command(linked, f"--out={out}", "--on_error=skip")
  dataset = load_npz(out)
  assert len(dataset) == 23 * sum(FEW)
  assert not ((dataset.domain == 0) & (dataset.label == 2)).any()
  with np.load(out) as file:
    assert "BOW_5HZ" in str(file["preparation"])


@pytest.mark.parametrize("damage", _DAMAGE)
def test_the_file_and_its_line_are_named(hust_root, tmp_path, damage):
  path = tmp_path / "BOW_5HZ.txt"
  path.write_bytes((hust_root / path.name).read_bytes())
  spoil, message = _DAMAGE[damage]
  spoil(path)
  with pytest.raises(DataError, match=message):
    hust._read_and_draw(path, make_draw("time", FEW))


def test_nothing_usable_and_no_folder(tmp_path):
  with pytest.raises(SystemExit, match="error: nothing is usable"):
    hust_command(tmp_path, "--on_error=skip")
  with pytest.raises(SystemExit, match="nowhere: no such folder"):
    hust_command(tmp_path / "nowhere")


def test_the_audit_counts_overlaps_oddities_and_copies(linked, tmp_path, capsys):
  """BOW_5HZ becomes a copy of H_5HZ whose clock is ten times too slow and jumps."""
  values = signals(0, 0)
  table = np.column_stack([np.arange(LENGTH) / 2560, values])
  np.savetxt(linked / "BOW_5HZ.txt", table, fmt="%.3f")
  hust_command(linked)
  printed = capsys.readouterr().out
  assert "BOW_5HZ.txt: 2560 samples per second, published: 25600" in printed
  # Ten windows once more, under another label.
  assert "inputs of another row: 10, 10 of them with another label; kept" in printed
  assert "5HZ     train        36      36  6 6 6 6 6 6" in printed
  assert "test windows that share samples with a window of an earlier split: 0.0%" in (
    printed
  )
  table[500, 0] = 0.0
  table[:, 4] = 1.0
  np.savetxt(linked / "BOW_5HZ.txt", table, fmt="%.3f")
  notes = hust.read_recording(linked / "BOW_5HZ.txt").notes
  assert notes == (
    "BOW_5HZ.txt: time goes back after sample 500",
    "BOW_5HZ.txt: sound is constant",
  )
