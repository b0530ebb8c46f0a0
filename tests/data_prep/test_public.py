"""Public sets from files in their published layout.

Files are written back from the sets that our tables stand on, where these hold all that
the published ones do; what comes out then has to have the same hash.
"""

import subprocess
import wave

import numpy as np
import pandas as pd
import pytest

from data_prep import public
from mer_dg.data import DataError, load_npz


def _arrays(path):
  with np.load(path) as file:
    return dict(file)


def _prepared(name, root, tmp_path, capsys):
  out = tmp_path / "out.npz"
  public.main([f"--set={name}", f"--root={root}", f"--out={out}"])
  assert "the content differs" not in capsys.readouterr().out
  return load_npz(out)


def test_gesture_phase_comes_out_as_it_was(shared_data, tmp_path, capsys):
  frames = _arrays(shared_data / "gesture_phase_frames.npz")
  root = tmp_path / "clone" / "dataset"
  root.mkdir(parents=True)
  for v, name in enumerate(public.VIDEOS):
    rows = frames["video"] == v
    letters = np.array(list("DPSHR"))[frames["label"][rows]]
    raw = pd.DataFrame(frames["position"][rows].reshape(-1, 18).astype(float))
    raw["timestamp"], raw["phase"] = frames["time_ms"][rows], letters
    raw["phase"] = raw["phase"].replace("R", "Retraction")
    raw.to_csv(root / f"{name}_raw.csv", index=False)
    moving = pd.DataFrame(frames["velacc"][rows][4:].astype(float))
    moving["phase"] = letters[4:]
    moving.to_csv(root / f"{name}_va3.csv", index=False)
  loaded = _prepared("gesture_phase", tmp_path / "clone", tmp_path, capsys)
  assert loaded.version == load_npz(shared_data / "gesture_phase.npz").version


def test_hydraulic_comes_out_as_it_was(shared_data, tmp_path, capsys):
  made = _arrays(shared_data / "hydraulic.npz")
  for m, names in public._HYDRAULIC.items():
    for c, name in enumerate(names):
      np.savetxt(tmp_path / f"{name}.txt", made[m][:, :, c], fmt="%.9g", delimiter="\t")
  profile = np.stack(
    [made["cooler_percent"], made["valve_percent"], made["group"] % 7,
     made["group"] % 11, made["not_stable"]], axis=1,
  )  # fmt: skip
  np.savetxt(tmp_path / "profile .txt", profile, fmt="%d", delimiter="\t")
  loaded = _prepared("hydraulic", tmp_path, tmp_path, capsys)
  assert loaded.version == load_npz(shared_data / "hydraulic.npz").version


@pytest.mark.parametrize(
  ("name", "column"),
  [
    ("cars", "traffic"),
    pytest.param("cars_road", "roadSurface", marks=pytest.mark.slow),
    pytest.param("cars_style", "drivingStyle", marks=pytest.mark.slow),
  ],
)
def test_cars_come_out_as_they_were(shared_data, tmp_path, capsys, name, column):
  made = _arrays(shared_data / f"{name}.npz")
  words = np.array(list(public._CARS_CLASSES[column]))
  for d, file in enumerate(public._TRIPS.values()):
    rows = np.flatnonzero(made["domain"] == d)
    seconds = (made["start_s"][rows][:, None] + np.arange(10)).ravel()
    table = pd.DataFrame(index=seconds)
    for m, channels in public._CARS.items():
      for c, channel in enumerate(channels):
        table[channel] = made[m][rows][:, :, c].astype(float).ravel()
    table[column] = np.repeat(words[made["label"][rows]], 10)
    table.to_csv(tmp_path / f"{file}.csv", sep=";", decimal=",")
  loaded = _prepared(name, tmp_path, tmp_path, capsys)
  assert loaded.version == load_npz(shared_data / f"{name}.npz").version


def test_a_seam_of_a_trip_is_a_jump_of_speed_or_a_gap():
  index = np.array([0, 1, 2, 5, 6, 7])
  speed = np.array([10.0, 12, 12, 12, 40, 41])
  variation = np.array([0.0, 2, 0, 0, 1, 1])
  values = np.stack([speed, speed, speed, variation], axis=1)
  assert public.cut_pieces(index, values) == [(0, 3), (3, 4), (4, 6)]


def test_the_class_of_a_window_is_the_commonest_and_of_two_the_last():
  assert public._last_commonest(np.array([0, 0, 1, 1])) == 1
  assert public._last_commonest(np.array([1, 1, 1, 0, 2])) == 1


def test_dsads_by_sensor(tmp_path, monkeypatch):
  monkeypatch.setattr(public, "ACTIVITIES", public.ACTIVITIES[:1])
  rng = np.random.default_rng(0)
  for p in range(8):
    folder = tmp_path / "data" / "a01" / f"p{p + 1}"
    folder.mkdir(parents=True)
    for s in range(0, 60, 2):
      x = np.arange(45) + 100 * p + 0 * rng.normal(size=(125, 45))
      x[1::2] += 0.5  # A pair of samples averages to a quarter more.
      text = "\n".join(",".join(f"{v:g}" for v in row) for row in x)
      (folder / f"s{s + 1:02d}.txt").write_text(text)
  arrays = public.prepare_dsads(tmp_path)
  assert arrays["gyro"].shape == (240, 62, 15)
  # Columns are by unit, then acc, gyro, mag, then axis.
  gyro = 0.25 + np.array(
    [9 * unit + 3 + axis for unit in range(5) for axis in range(3)]
  )
  np.testing.assert_array_equal(arrays["gyro"][0, 0], gyro.astype(np.float16))
  np.testing.assert_array_equal(arrays["domain"], np.repeat(range(8), 30))
  assert len(np.unique(arrays["group"])) == 8 * 6
  by_unit = public.dsads_by_unit(arrays)
  assert list(by_unit["modalities"]) == list(public.UNITS)
  arm = (0.25 + np.arange(9, 18) + 300).astype(np.float16)  # Of subject 4.
  np.testing.assert_array_equal(by_unit["right_arm"][90, 5], arm)
  assert set(by_unit).isdisjoint({"acc", "gyro", "mag"})
  np.savez(tmp_path / "made.npz", **arrays)
  made = public.SETS["dsads_position"].prepare(tmp_path / "made.npz")
  row = 1 * 240 + 90  # The right arm of the same segment.
  for s, m in enumerate(("acc", "gyro", "mag")):
    np.testing.assert_array_equal(made[m][row, 5], arm[3 * s : 3 * s + 3])
  assert made["domain_names"][made["domain"][row]] == "arms"
  np.testing.assert_array_equal(np.bincount(made["domain"]), [240, 480, 480])
  # Both arms wore the same minutes: no split may part them.
  assert made["group"][row] == made["group"][row + 240] == arrays["group"][90]
  (tmp_path / "data/a01/p3/s07.txt").write_text("1,2\n3,4\n")
  with pytest.raises(DataError, match="s07.txt: .* expected"):
    public.prepare_dsads(tmp_path)


def test_fsdd_is_a_waveform(tmp_path):
  folder = tmp_path / "recordings"
  folder.mkdir()
  rng = np.random.default_rng(0)
  for speaker in ("george", "theo"):
    for digit in range(2):
      for take, samples in enumerate((2000, 12_000)):
        path = folder / f"{digit}_{speaker}_{take}.wav"
        with wave.open(str(path), "wb") as file:
          file.setparams((1, 2, 8000, 0, "NONE", ""))
          file.writeframes(rng.integers(-99, 99, samples).astype("<i2").tobytes())
  arrays = public.prepare_fsdd(tmp_path)
  assert arrays["audio_len"].tolist() == [2000, 10_240] * 4
  assert arrays["domain"].tolist() == [0, 0, 4, 4, 0, 0, 4, 4]


def test_fetching_checks_the_commit(tmp_path):
  there = tmp_path / "there"
  git = lambda *words: subprocess.run(
    ["git", "-C", str(there), "-c", "user.name=a", "-c", "user.email=a@b", *words],
    check=True, capture_output=True, text=True,
  ).stdout.strip()  # fmt: skip
  there.mkdir()
  git("init", "--quiet")
  (there / "x.txt").write_text("1")
  git("add", "x.txt")
  git("commit", "--quiet", "-m", "x")
  source = public.SETS["dsads"]._replace(
    url=str(there), commit=git("rev-parse", "HEAD")
  )
  public.fetch(source, tmp_path / "clone")
  assert (tmp_path / "clone" / "x.txt").read_text() == "1"
  with pytest.raises(DataError, match="not empty"):
    public.fetch(source, tmp_path / "clone")
  with pytest.raises(DataError, match="git checkout failed|git -C failed"):
    public.fetch(source._replace(commit="0" * 40), tmp_path / "other")


def test_what_is_not_there_is_a_sentence(tmp_path):
  with pytest.raises(SystemExit, match="no TS1.txt in it or below it"):
    public.main(["--set=hydraulic", f"--root={tmp_path}", "--out=x.npz"])
