"""The sentiment sets from pickles in the published layout."""

import os
import pickle

import numpy as np
import pytest

from data_prep import sentiment
from mer_dg.data.dataset import DataError
from mer_dg.data.npz import load_npz
from mer_dg.data.splits import leave_one_domain_out
from tests.data_prep._sensors import (
  CLIPS,
  WIDTHS,
  block,
  content,
  sentiment_command,
  write,
  write_pickles,
)


@pytest.fixture(scope="session")
def pickles(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pickles")
  write_pickles(folder)
  return folder


@pytest.fixture(scope="session")
def prepared(pickles, tmp_path_factory):
  out = tmp_path_factory.mktemp("prepared") / "sentiment.npz"
  sentiment_command(pickles, f"--out={out}")
  return out


# --- the prepared file ---------------------------------------------------------------


def test_sets_are_domains_with_common_classes(prepared):
  dataset = load_npz(prepared)
  assert dataset.version.startswith("classes=acc2,dtype=float32,dedup=on/")
  assert dataset.modalities == ("text", "audio", "vision")
  assert dataset.domain_names == ("mosei", "mosi", "ch_sims")  # The reference's order.
  assert dataset.class_names == ("not positive", "positive")
  assert dataset.inputs["audio"].shape == (48, 12, 4)
  assert dataset.inputs["vision"].shape == (48, 11, 3)
  for d, name in enumerate(dataset.domain_names):
    rows = dataset.domain == d
    assert np.bincount(dataset.split[rows]).tolist() == list(CLIPS[name])


@pytest.mark.parametrize("name", sentiment.CORPORA)
def test_values_lengths_and_labels_are_those_of_the_pickle(prepared, name):
  with np.load(prepared) as file:
    arrays = dict(file)
  rows = np.flatnonzero(arrays["domain_names"][arrays["domain"]] == name)
  offset = 0
  for split, part in content(name).items():
    n = len(part["id"])
    mine = rows[offset : offset + n]
    offset += n
    for m in WIDTHS:
      steps = part[m].shape[1]
      np.testing.assert_array_equal(arrays[m][mine, :steps], part[m])
      assert not arrays[m][mine, steps:].any()
    for m in ("audio", "vision"):
      np.testing.assert_array_equal(arrays[f"{m}_len"][mine], part[f"{m}_lengths"])
    tokens = part["text_bert"][:, 1].sum(axis=1)
    np.testing.assert_array_equal(arrays["text_len"][mine], tokens)
    # Acc2: above 0 is positive, 0 is not.
    labels = part["regression_labels"]
    np.testing.assert_array_equal(arrays["label"][mine], labels > 0)
    assert (labels == 0).any()
    scale = 3 if name == "ch_sims" else 1
    np.testing.assert_allclose(arrays["value"][mine], scale * labels, rtol=1e-6)
    assert arrays["id"][mine].tolist() == [f"{name}/{split}/{i}" for i in range(n)]
    videos = [f"{name}/{split}video{i // 2}" for i in range(n)]
    assert arrays["group"][mine].tolist() == videos
  assert offset == len(rows)


def test_the_protocol_uses_train_valid_and_test(prepared):
  dataset = load_npz(prepared)
  split = leave_one_domain_out(dataset, "ch_sims", split_seed=0, val_fraction=0.5)
  assert {k: len(v) for k, v in split.train.items()} == {"mosei": 12, "mosi": 8}
  assert {k: len(v) for k, v in split.val.items()} == {"mosei": 4, "mosi": 3}
  assert len(split.test) == 3


def test_half_precision_and_fewer_modalities(pickles, prepared, tmp_path):
  out = tmp_path / "half.npz"
  sentiment_command(
    pickles, f"--out={out}", "--dtype=float16", "--modalities=vision,text"
  )
  half, full = load_npz(out), load_npz(prepared)
  assert half.modalities == ("vision", "text")
  assert half.version.startswith("classes=acc2,dtype=float16,dedup=on/")
  assert half.inputs["text"].dtype == np.float16
  np.testing.assert_allclose(half.inputs["text"], full.inputs["text"], rtol=1e-3)


def test_widths_must_agree_unless_left_out(pickles, tmp_path):
  other = content("mosi", widths={**WIDTHS, "audio": 5})
  write(tmp_path / "mosi.pkl", other)
  write(tmp_path / "mosei.pkl", content("mosei"))
  two = ("mosi", "mosei")
  with pytest.raises(SystemExit, match="audio has different widths: 4 in mosei, 5 in"):
    sentiment_command(tmp_path, f"--out={tmp_path / 'a.npz'}", names=two)
  out = tmp_path / "b.npz"
  sentiment_command(tmp_path, f"--out={out}", "--modalities=text,vision", names=two)
  assert len(load_npz(out)) == 36


def test_ids_of_older_collections(tmp_path):
  """Recording, start and end in an array; the recording groups."""
  data = content("mosi")
  for part in data.values():
    n = len(part["id"])
    part["id"] = np.array([[f"v{i // 3}", str(i), str(i + 1)] for i in range(n)])
  parts, *_ = sentiment.read_corpus("mosi", write(tmp_path / "m.pkl", data))
  assert parts[1]["group"].tolist() == ["mosi/v0"] * 3


def test_widths_must_agree_between_splits(tmp_path):
  data = content("mosi")
  data["test"]["text"] = np.zeros((4, 5, 7), np.float32)
  parts, *_ = sentiment.read_corpus("mosi", write(tmp_path / "m.pkl", data))
  with pytest.raises(
    DataError, match="text has different widths: 6 in mosi, 7 in mosi"
  ):
    sentiment.combine({"mosi": parts}, sentiment.MODALITIES)


def test_sequences_as_lists_and_without_lengths(tmp_path):
  """Ragged lists are padded; lengths then end with the last step that is not zero."""
  data = content("mosi")
  rng = np.random.default_rng(0)
  for part in data.values():
    n = len(part["id"])
    part["text"] = [rng.normal(size=(1 + i % 4, 6)) for i in range(n)]
    part["audio"][:, 3:] = 0
    for key in ("id", "text_bert", "audio_lengths"):
      del part[key]
  parts, problems, _ = sentiment.read_corpus("mosi", write(tmp_path / "m.pkl", data))
  assert not problems
  train = parts[0]
  assert train["text"].shape == (8, 4, 6)
  assert train["text_len"].tolist() == [1, 2, 3, 4] * 2
  last = [np.flatnonzero(x.any(axis=1)).max() + 1 for x in data["train"]["audio"]]
  assert train["audio_len"].tolist() == last
  assert train["group"].tolist() == [f"mosi/train/{i}" for i in range(8)]


# --- the audit -----------------------------------------------------------------------


def test_the_audit_of_one_set(pickles, capsys):
  sentiment_command(pickles, names=("mosi",))
  lines = capsys.readouterr().out.splitlines()
  label = block("mosi", "test", 4)["regression_labels"]
  positive = int((label > 0).sum())
  assert f"mosi    test        686       4  {4 - positive} {positive}" in lines
  assert "val and test rows that an earlier split has too: 0, left out" in lines
  assert "unusable: 0" in lines


def test_published_totals():
  """2199 clips of MOSI, 22 856 of MOSEI in the collection, 2281 of CH-SIMS."""
  totals = {name: sum(corpus.rows) for name, corpus in sentiment.CORPORA.items()}
  assert totals == {"mosei": 22_856, "mosi": 2_199, "ch_sims": 2_281}


def test_repeats_and_shared_recordings(pickles, tmp_path, capsys):
  data = content("mosi")
  for m in WIDTHS:  # The same clip in train and test, and twice in train.
    data["test"][m][1] = data["train"][m][5]
    data["train"][m][7] = data["train"][m][6]
  data["test"]["id"][0] = "trainvideo0$_$9"
  write(tmp_path / "mosi.pkl", data)
  (tmp_path / "mosei.pkl").symlink_to(pickles / "mosei.pkl")
  two, rows = ("mosi", "mosei"), {}
  for word, count in (("", 35), ("--no_dedup", 36)):
    out = tmp_path / f"out{word}.npz"
    sentiment_command(tmp_path, f"--out={out}", *([word] if word else []), names=two)
    rows[word] = load_npz(out)
    assert len(rows[word]) == count
  printed = capsys.readouterr().out
  assert "an earlier split has too: 1, left out" in printed
  assert "an earlier split has too: 1, kept" in printed
  assert "mosi test clips of a recording that train has too: 1" in printed
  assert "other rows with the inputs of another row: 1," in printed
  assert ",dedup=on/" in rows[""].version
  assert ",dedup=off/" in rows["--no_dedup"].version
  with np.load(tmp_path / "out.npz") as file:
    assert "mosi/test/1" not in file["id"].tolist()
    assert "mosi/train/5" in file["id"].tolist()
    assert "left out" in str(file["preparation"])


# --- bad files -----------------------------------------------------------------------


def _set(key, row, value):
  def spoil(part):
    part[key][row] = value

  return spoil


_DAMAGE = {
  "nan": (_set("text", (2, 1, 3), np.nan), "row 2: text holds NaN or infinity"),
  "infinity": (_set("audio", (3, 0, 0), np.inf), "row 3: audio holds NaN or infinity"),
  "label": (_set("regression_labels", 1, 3.5), "row 1: label is 3.5, expected -3..3"),
  "no label": (_set("regression_labels", 4, np.nan), "row 4: label is nan, expected"),
  "silence": (
    lambda part: [part[m].__setitem__(6, 0) for m in WIDTHS],
    "row 6: all modalities are zero throughout",
  ),
}


@pytest.mark.parametrize("damage", _DAMAGE)
def test_bad_rows_stop_or_are_skipped(pickles, tmp_path, capsys, damage):
  spoil, message = _DAMAGE[damage]
  data = content("mosi")
  spoil(data["train"])
  write(tmp_path / "mosi.pkl", data)
  (tmp_path / "mosei.pkl").symlink_to(pickles / "mosei.pkl")
  words, out = ("--modalities=text,audio,vision",), tmp_path / "a.npz"
  with pytest.raises(SystemExit, match="error: not all is usable"):
    sentiment_command(tmp_path, f"--out={out}", *words, names=("mosi", "mosei"))
  assert not out.exists()
  printed = capsys.readouterr().out
  row = next(line for line in printed.splitlines() if line.startswith("  row"))
  assert row.strip().startswith(message)
  assert "mosi.pkl: train" in row
  sentiment_command(
    tmp_path, f"--out={out}", "--on_error=skip", names=("mosi", "mosei")
  )
  assert len(load_npz(out)) == 35


def test_minus_infinity_in_audio_and_missing_modalities(tmp_path):
  data = content("mosi")
  data["train"]["audio"][2, 0, 1] = -np.inf
  data["train"]["vision"][3] = 0
  data["train"]["vision_lengths"][3] = 0
  data["train"]["audio_lengths"][4] = 99
  path = write(tmp_path / "mosi.pkl", data)
  parts, problems, notes = sentiment.read_corpus("mosi", path)
  assert not problems
  assert parts[0]["audio"][2, 0, 1] == 0
  assert parts[0]["vision_present"].tolist() == [True] * 3 + [False] + [True] * 4
  assert parts[0]["vision_len"][3] == 1
  assert parts[0]["audio_len"][4] == 9
  assert notes == [
    "mosi train: vision zero throughout, missing: 1",
    "mosi train: audio_lengths beyond the array, cut: 1",
    "mosi train: audio has -inf, set to 0: 1",
  ]


def test_too_large_for_half_precision(tmp_path):
  data = content("mosi")
  data["test"]["audio"][1, 0, 0] = 1e6
  path = write(tmp_path / "mosi.pkl", data)
  assert not sentiment.read_corpus("mosi", path)[1]
  _, problems, _ = sentiment.read_corpus("mosi", path, dtype="float16")
  assert [str(p) for p in problems] == [
    f"row 1: audio is too large for float16 [mosi/test/1, {path}: test]"
  ]


class _Payload:
  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return os.system, (f"touch {self.path}",)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
  made = tmp_path / "made"
  data = content("mosi")
  data["valid"]["raw_text"] = _Payload(made)
  path = write(tmp_path / "mosi.pkl", data)
  with pytest.raises(SystemExit) as stopped:
    sentiment_command(tmp_path, names=("mosi",))
  message = str(stopped.value)
  assert message.startswith(f"error: {path}: refused, it asks for posix.system")
  assert "Nothing in the file was executed" in message
  assert not made.exists()
  pickle.loads(path.read_bytes())  # The payload is live: without us it runs.
  assert made.exists()


_LAYOUTS = {
  "list": ([1, 2], r"expected the splits .*, found list"),
  "splits": (
    {"train": {}, "val": {}},
    r"expected the splits .*found \['train', 'val'\]",
  ),
  "keys": (
    {"train": {"text": 1}, "valid": {}, "test": {}},
    r"mosi.pkl: train: expected \['text', .*\], found \['text'\]",
  ),
}


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_other_layouts_are_explained(tmp_path, layout):
  data, message = _LAYOUTS[layout]
  with pytest.raises(DataError, match=message):
    sentiment.read_corpus("mosi", write(tmp_path / "mosi.pkl", data))


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("text", np.zeros((8, 6)), r"train: text must be numbers \[N = 8, T, C\], found"),
    ("text", [np.zeros((2, 6)), np.zeros((2, 5))], "found rows of shape"),
    ("audio", np.zeros((7, 2, 4)), r"audio must be numbers \[N = 8"),
    ("audio_lengths", [1, 2], "audio_lengths must be 8 numbers"),
    ("regression_labels", ["a"] * 8, "regression_labels must hold numbers"),
    ("id", ["a"], "id has 1 entries, regression_labels 8"),
    ("id", None, "id must be a list, found NoneType"),
    ("id", [[]] * 8, r"train: id 0 is \[\], not a name"),
    ("text", {"a": 1}, "text must hold numbers"),
    ("text", [None] * 8, "found rows of shape"),
    ("text", np.zeros((8, 0, 6)), r"text must be numbers \[N = 8"),
    ("vision", 3, "vision must be numbers"),
    ("text_bert", [[1, 2], [3]], "text_bert must hold numbers"),
  ],
)
def test_arrays_of_another_shape_are_explained(tmp_path, key, value, message):
  data = content("mosi")
  data["train"][key] = value
  with pytest.raises(DataError, match=message):
    sentiment.read_corpus("mosi", write(tmp_path / "mosi.pkl", data))


def test_words_that_cannot_work_are_refused_before_reading(tmp_path):
  one = ["--set=mosi", f"--file={tmp_path / 'absent.pkl'}"]
  for words, message in (
    ([*one, f"--out={tmp_path / 'a.npz'}"], "one set is one domain"),
    ([*one, *one], "name every --set once"),
    ([*one, "--set=mosei"], "name every --set once, each with its --file"),
    ([*one, "--modalities=text,smell"], "--modalities=text,smell must be out of"),
    (one, r"absent.pkl: cannot be read \(No such file"),
  ):
    with pytest.raises(SystemExit, match=message):
      sentiment.main(words)
