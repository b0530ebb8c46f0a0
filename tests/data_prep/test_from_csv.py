"""Tables and folders of anybody become a set that loads, without a word lost."""

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import scipy.io.wavfile

from data_prep import from_csv, from_folder
from mer_dg.data import load_npz


def _rows(n=24):
  rng = np.random.default_rng(0)
  return pd.DataFrame({
    "acc_x": rng.normal(size=n), "acc_y": rng.normal(size=n),
    "temp": rng.normal(size=n), "weather": np.tile(["sun", "rain"], n // 2),
    "activity": np.tile(["walk", "sit", "lie"], n // 3),
    "subject": np.repeat([7, 8], n // 2), "session": np.repeat(range(n // 4), 4),
    "t": rng.permutation(n),
  })  # fmt: skip


def _run(tmp_path, table, *flags, sep=","):
  path, out = tmp_path / "in.csv", tmp_path / "out.npz"
  table.to_csv(path, index=False, sep=sep)
  from_csv.main([f"--file={path}", f"--out={out}", *flags])
  return load_npz(out)


ROLES = ("--label=activity", "--domain=subject")


@pytest.mark.parametrize("sep", [",", ";", "\t"])
def test_columns_by_prefix(tmp_path, sep):
  table = _rows()
  flags = (
    *ROLES,
    "--group=session",
    "--modality=acc=acc_*",
    "--modality=air=temp,wea*",
  )
  loaded = _run(tmp_path, table, *flags, sep=sep)
  assert loaded.modalities == ("acc", "air")
  assert loaded.inputs["air"].shape == (24, 3)  # temp, rain, sun
  np.testing.assert_allclose(loaded.inputs["acc"][:, 1], table["acc_y"], rtol=1e-6)
  np.testing.assert_array_equal(loaded.inputs["air"][:, 2], table["weather"] == "sun")
  names = np.array(loaded.class_names)[loaded.label]
  assert names.tolist() == table["activity"].tolist()
  assert loaded.domain_names == ("7", "8")
  assert len(np.unique(loaded.group)) == 6
  by_prefix = _run(tmp_path, table.drop(columns=["t"]), *ROLES, "--group=session")
  assert by_prefix.modalities == ("acc", "temp", "weather")


def test_windows_in_the_order_of_time_that_cross_no_border(tmp_path, capsys):
  table = _rows(60)
  table["acc_x"] = table["t"]
  flags = ("--time=t", "--window=5", "--step=3", "--modality=acc=acc_x")
  loaded = _run(tmp_path, table, *ROLES, *flags)
  x = loaded.inputs["acc"].reshape(len(loaded), -1)
  assert x.shape[1] == 5
  assert (np.diff(x, axis=1) > 0).all()
  who = dict(zip(table["t"], table["subject"].astype(str), strict=True))
  for row, d in zip(x, loaded.domain, strict=True):
    assert {who[int(t)] for t in row} == {loaded.domain_names[d]}
  assert len(loaded) == 2 * (1 + (30 - 5) // 3)
  out = capsys.readouterr().out
  assert "columns of no modality, left out: ['acc_y', 'temp', 'weather'" in out
  assert "no --group" in out


def test_samples_of_different_length_with_gaps(tmp_path):
  table = _rows()
  table["walk"] = np.repeat([0, 1, 2, 3, 4], [3, 9, 5, 6, 1])
  table["activity"] = np.where(table["walk"] % 2, "up", "down")
  table["subject"] = np.where(table["walk"] < 2, "ann", "bob")
  table["acc_x"] = np.arange(24.0)
  table.loc[5, "acc_x"] = np.nan
  table.loc[12:16, "temp"] = np.nan
  flags = ("--sample=walk", "--modality=acc=acc_?", "--modality=temp=temp")
  loaded = _run(tmp_path, table, *ROLES, *flags)
  assert loaded.lengths["acc"].tolist() == [3, 9, 5, 6, 1]
  assert loaded.inputs["acc"][1, :9, 0].tolist() == list(range(3, 12))  # Bridged.
  assert loaded.present["temp"].tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("how", from_csv.ON_MISSING)
def test_numbers_that_are_missing_in_part(tmp_path, how):
  table = _rows()
  table.loc[3, "acc_x"] = np.nan
  flags = (*ROLES, "--modality=acc=acc_*", f"--on_missing={how}")
  if how == "stop":
    with pytest.raises(SystemExit, match="1 samples lack some numbers of 'acc', .* 3"):
      _run(tmp_path, table, *flags)
    return
  loaded = _run(tmp_path, table, *flags)
  assert len(loaded) == (24 if how == "absent" else 23)
  assert loaded.present["acc"].sum() == 23


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("--label=no", "--domain=subject"), "--label='no' is no column"),
    ((*ROLES, "--modality=a=zzz*"), "'zzz\\*' fits none of"),
    ((*ROLES, "--modality=a=acc_*", "--modality=b=acc_x"), "belongs to 'a' and 'b'"),
    ((*ROLES, "--modality=acc"), "must be NAME=PATTERN"),
    ((*ROLES, "--window=99"), "make no window of 99"),
    ((*ROLES, "--window=2", "--sample=session"), "give one"),
    ((*ROLES, "--modality=label=temp"), "cannot name modalities"),
  ],
)
def test_what_is_wrong_is_a_sentence(tmp_path, flags, message):
  with pytest.raises(SystemExit, match=f"^error: .*{message}"):
    _run(tmp_path, _rows(), *flags)
  assert not (tmp_path / "out.npz").exists()


# --- folders -------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
  """Two domains, two classes, three samples each; one without a picture."""
  rng = np.random.default_rng(0)
  for d, domain in enumerate(("lab", "field")):
    for k, name in enumerate(("dog", "cat")):
      folder = tmp_path / "tree" / domain / name
      folder.mkdir(parents=True)
      for i in range(3):
        t = np.arange(4000 + 400 * i) / 8000
        tone = 0.5 * np.sin(2 * np.pi * (500 if k else 2000) * t)
        wave = (tone * 32767).astype(np.int16)
        wave = np.stack([wave, wave], axis=1) if d else wave
        scipy.io.wavfile.write(folder / f"take_{i}.wav", 8000, wave)
        if (d, k, i) != (1, 1, 2):
          pixels = np.full((20, 30, 3), 40 * (1 + k), np.uint8)
          PIL.Image.fromarray(pixels).save(folder / f"take_{i}.png")
        steps = pd.DataFrame(rng.normal(size=(5 + i, 2)), columns=["x", "y"])
        steps.to_csv(folder / f"take_{i}.imu.csv", index=False)
  return tmp_path / "tree"


def test_a_folder_becomes_a_set(tree, tmp_path, capsys):
  out = tmp_path / "set.npz"
  from_folder.main([f"--root={tree}", f"--out={out}", "--side=8", r"--group=(.*)_\d+"])
  loaded = load_npz(out)
  assert loaded.kinds == {"imu": "sequence", "image": "image", "audio": "sequence"}
  assert loaded.domain_names == ("field", "lab")
  assert loaded.class_names == ("cat", "dog")
  assert (loaded.inputs["image"][:, 0, 0, 0] == 80 - 40 * loaded.label).sum() == 11
  assert loaded.present["image"].sum() == 11
  assert loaded.why["audio"].endswith("log power in bands at 8000 Hz")
  # 500 Hz is in another band than 2000 Hz, in all domains, mono as stereo.
  loudest = [
    int(x[:length].mean(axis=0).argmax())
    for x, length in zip(loaded.inputs["audio"], loaded.lengths["audio"], strict=True)
  ]
  for k in range(2):
    assert len(np.unique(np.array(loudest)[loaded.label == k])) == 1
  assert len(set(loudest)) == 2
  assert loaded.lengths["imu"].tolist() == [5, 6, 7] * 4
  assert "image: 11 of 12 samples" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (
      lambda t: (t / "lab/dog/take_0.wav").write_bytes(b"RIFF"),
      "take_0.wav: no readable",
    ),
    (lambda t: (t / "lab/dog/take_0.png").write_bytes(b"x"), "no readable picture"),
    (lambda t: (t / "lab/dog/take_0.imu.csv").write_text("a,b\n1,2"), "columns"),
    (lambda t: (t / "lab/dog/take_0.imu.csv").write_text("x,y\n1,b"), "no table"),
    (
      lambda t: (t / "lab/dog/take_0.jpg").write_bytes(
        (t / "lab/dog/take_0.png").read_bytes()
      ),
      "are both 'image'",
    ),
  ],
)
def test_a_damaged_folder_is_a_sentence(tree, tmp_path, damage, message):
  damage(tree)
  with pytest.raises(SystemExit, match=f"^error: .*{message}"):
    from_folder.main([f"--root={tree}", f"--out={tmp_path / 'set.npz'}"])
