r"""The public sets of our tables, from their repositories to one ``.npz`` each.

  python -m data_prep.public --set=dsads --root=downloads --out=dsads.npz [--fetch]
  python main.py --config=configs/features.py --config.data.path=dsads.npz

``--fetch`` clones the repository of the set into ``--root`` at the commit named here (a
commit is a checksum of every file in it) and needs git and internet; without it the
files have to lie there. What was made is compared with the file that our tables stand
on, by the hash of its content: a difference is said, and nothing else is.

These recordings were made by others; licences and what to cite stand in `SETS`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import itertools
import pathlib
import subprocess
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mer_dg.data.dataset import DataError
from mer_dg.data.npz import from_arrays, save_npz

Arrays = dict[str, Any]


class PublicSet(NamedTuple):
  """Where a set comes from and what must come out.

  Attributes:
    url: Repository.
    commit: Its state, or the beginning of its name.
    licence: In words.
    cite: Whom to cite.
    prepare: ``folder of the clone -> arrays of the bring-your-own format``.
    version: Hash of the content (`Dataset.version`) of the file behind our tables; ""
      where there is none.
    megabytes: Of the ``.npz``.
  """

  url: str
  commit: str
  licence: str
  cite: str
  prepare: Callable[[pathlib.Path], Arrays]
  version: str
  megabytes: float


# --- DSADS: Daily and Sports Activities ----------------------------------------------

ACTIVITIES = (
  "sitting", "standing", "lying_on_back", "lying_on_right_side", "ascending_stairs",
  "descending_stairs", "standing_in_elevator", "moving_in_elevator",
  "walking_parking_lot", "walking_treadmill_flat", "walking_treadmill_inclined",
  "running_treadmill", "stepper", "cross_trainer", "cycling_horizontal",
  "cycling_vertical", "rowing", "jumping", "basketball",
)  # fmt: skip
_DSADS_SHAPE = (125, 45)  # 5 s at 25 Hz; five units of nine channels each.


def prepare_dsads(root: pathlib.Path) -> Arrays:
  """Every second segment, neighbouring samples averaged, by kind of sensor.

  Args:
    root: Anything that holds ``a01/p1/s01.txt`` to ``a19/p8/s60.txt``.

  Returns:
    acc, gyro and mag ``[N, 62, 15]`` float16.
  """
  top = _above(root, "a01/p1/s01.txt")
  rows: list[np.ndarray] = []
  keys = []
  for a in range(len(ACTIVITIES)):
    for p in range(8):
      for segment in range(0, 60, 2):
        path = top / f"a{a + 1:02d}" / f"p{p + 1}" / f"s{segment + 1:02d}.txt"
        x = _table(path, separator=",")
        if x.shape != _DSADS_SHAPE:
          raise DataError(f"{path}: {x.shape} numbers, expected {_DSADS_SHAPE}.")
        rows.append(x[:124].reshape(62, 2, 5, 3, 3).mean(axis=1))
        keys.append((a, p, segment))
  x = np.stack(rows)  # [N, step, unit, sensor, axis]
  label, domain, segment = np.array(keys, np.int16).T
  arrays: Arrays = {"modalities": np.array(["acc", "gyro", "mag"])}
  for sensor, m in enumerate(arrays["modalities"].tolist()):
    arrays[m] = x[:, :, :, sensor].reshape(len(x), 62, 15).astype(np.float16)
  stretch = (label.astype(np.int32) * 8 + domain) * 6 + segment // 10
  return arrays | {
    "label": label,
    "class_names": np.array(ACTIVITIES),
    "domain": domain,
    "domain_names": np.array([f"subject{p + 1}" for p in range(8)]),
    "group": stretch,
  }


UNITS = ("torso", "right_arm", "left_arm", "right_leg", "left_leg")
# Where a unit sits: sides of the body are no new place.
_POSITIONS = {"torso": (0,), "arms": (1, 2), "legs": (3, 4)}


def dsads_by_unit(arrays: Arrays) -> Arrays:
  """The five units as modalities, each with its three sensors: ``[N, 62, 9]``.

  Args:
    arrays: Of `prepare_dsads`.
  """
  kept = ("label", "class_names", "domain", "domain_names", "group")
  return {
    "modalities": np.array(UNITS),
    **{unit: x.reshape(*x.shape[:2], 9) for unit, x in _units(arrays).items()},
    **{key: arrays[key] for key in kept},
  }


def dsads_by_position(arrays: Arrays) -> Arrays:
  """A row per unit; where on the body it sits is the domain.

  The people, activities and minutes of a held-out position are those of the others:
  what is new is the place alone. Units worn at the same time share a group.

  Args:
    arrays: Of `prepare_dsads`.

  Returns:
    acc, gyro and mag ``[5 N, 62, 3]``, unit after unit.
  """
  units, n = _units(arrays), len(arrays["label"])
  x = np.concatenate(list(units.values()))
  place = {u: d for d, own in enumerate(_POSITIONS.values()) for u in own}
  again = lambda key: np.tile(arrays[key], len(UNITS))
  return {
    "modalities": np.array(["acc", "gyro", "mag"]),
    **{m: x[:, :, s] for s, m in enumerate(("acc", "gyro", "mag"))},
    "label": again("label"),
    "class_names": arrays["class_names"],
    "domain": np.repeat([place[u] for u in range(len(UNITS))], n).astype(np.int16),
    "domain_names": np.array(list(_POSITIONS)),
    "group": again("group"),
  }


def _units(arrays: Arrays) -> dict[str, np.ndarray]:
  """``{unit: [N, step, sensor, axis]}``."""
  split = lambda x: x.reshape(*x.shape[:2], len(UNITS), 3)
  x = np.stack([split(arrays[m]) for m in ("acc", "gyro", "mag")], axis=3)
  return {unit: x[:, :, u] for u, unit in enumerate(UNITS)}


def _dsads(root: pathlib.Path) -> Arrays:
  """From the published files, or from ``dsads.npz`` that was made of them."""
  if not root.is_file():
    return prepare_dsads(root)
  with np.load(root, allow_pickle=False) as file:
    if absent := {"acc", "gyro", "mag", "label", "group"} - {*file}:
      raise DataError(f"{root}: no {sorted(absent)} in it; is it the set dsads?")
    return dict(file)


# --- Gesture Phase Segmentation ------------------------------------------------------

VIDEOS = ("a1", "a2", "a3", "b1", "b3", "c1", "c3")
PHASES = ("rest", "preparation", "stroke", "hold", "retraction")
# One label of b1 was released in Portuguese.
_PHASE = {"D": 0, "P": 1, "S": 2, "H": 3, "R": 4} | {
  name: k for k, name in enumerate(PHASES)
}
_PHASE |= {"preparacao": 1, "preparação": 1}


def prepare_gesture(root: pathlib.Path) -> Arrays:
  """Windows around every third frame of the seven videos.

  Args:
    root: Anything that holds ``a1_raw.csv``, ``a1_va3.csv`` and so on.
  """
  top = _above(root, "a1_raw.csv")
  parts = []
  for v, name in enumerate(VIDEOS):
    raw = _frame(top / f"{name}_raw.csv")
    moving = _frame(top / f"{name}_va3.csv")
    position = raw.iloc[:, :18].to_numpy(np.float32).reshape(-1, 6, 3)
    label = _phases(raw, top / f"{name}_raw.csv")
    # The processed file starts four frames later.
    lost = len(raw) - len(moving)
    if lost < 0 or (label[lost:] != _phases(moving, top / f"{name}_va3.csv")).any():
      raise DataError(
        f"{top}/{name}_va3.csv: its phases are not those of the raw file."
      )
    velacc = np.full((len(raw), 32), np.nan, np.float32)
    velacc[lost:] = moving.iloc[:, :32].to_numpy(np.float32)
    parts.append(gesture_windows(position, velacc, label, v))
  merged = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
  return {
    "modalities": np.array(["hands", "wrists", "head", "velacc"]),
    **merged,
    "class_names": np.array(PHASES),
    "domain_names": np.array(["user_a", "user_b", "user_c"]),
  }


def gesture_windows(
  position: np.ndarray, velacc: np.ndarray, label: np.ndarray, video: int
) -> Arrays:
  """Windows of one video.

  Positions of frames c - 16 to c + 14 in steps of 2, minus that of the spine at frame
  c; velocities of frames c - 8 to c + 6 in steps of 2.

  Args:
    position: ``[frames, 6, 3]`` left and right hand, head, spine, left and right wrist.
    velacc: ``[frames, 32]``.
    label: Of each frame.
    video: Position in `VIDEOS`.
  """
  centres = np.arange(20, len(position) - 16, 3)
  wide, near = np.arange(-16, 16, 2), np.arange(-8, 8, 2)
  x = position[centres[:, None] + wide] - position[centres, 3][:, None, None]
  pair = lambda first, second: x[:, :, [first, second]].reshape(len(x), 16, 6)
  user = "abc".index(VIDEOS[video][0])
  return {
    "hands": pair(0, 1),
    "wrists": pair(4, 5),
    "head": pair(2, 3),
    "velacc": velacc[centres[:, None] + near],
    "label": label[centres].astype(np.int16),
    "domain": np.full(len(centres), user, np.int16),
    "group": (1000 * video + centres // 100).astype(np.int32),
  }


def _phases(table: pd.DataFrame, path: pathlib.Path) -> np.ndarray:
  words = table.iloc[:, -1].astype(str).str.strip()
  found = words.map(lambda w: _PHASE.get(w, _PHASE.get(w.lower(), -1))).to_numpy()
  if (found < 0).any():
    raise DataError(f"{path}: phase {words[found < 0].iloc[0]!r} is none of {PHASES}.")
  return found


# --- Hydraulic system ----------------------------------------------------------------

_HYDRAULIC = {
  "temperature": ("TS1", "TS2", "TS3", "TS4"), "vibration": ("VS1",),
  "efficiency": ("SE",), "cooling": ("CE", "CP"),
}  # fmt: skip
_COOLER, _VALVE = (100, 20, 3), (100, 90, 80, 73)


def prepare_hydraulic(root: pathlib.Path) -> Arrays:
  """One row per load cycle; the valve is the class, the cooler the domain.

  Args:
    root: Anything that holds ``TS1.txt`` and ``profile.txt`` (or ``profile .txt``).
  """
  top = _above(root, "TS1.txt")
  arrays: Arrays = {"modalities": np.array(list(_HYDRAULIC))}
  for m, names in _HYDRAULIC.items():
    signals = [_table(top / f"{name}.txt") for name in names]
    arrays[m] = np.stack(signals, axis=-1).astype(np.float32)
    arrays[f"{m}_kind"] = np.array("sequence")
  named = [top / "profile.txt", top / "profile .txt"]
  profile = _table(next((p for p in named if p.is_file()), named[0])).astype(int)
  settings = profile[:, :4]
  new = np.r_[False, (settings[1:] != settings[:-1]).any(axis=1)]
  return arrays | {
    "label": _place(profile[:, 1], _VALVE, "valve"),
    "class_names": np.array(["optimal", "small_lag", "severe_lag", "failing"]),
    "domain": _place(profile[:, 0], _COOLER, "cooler"),
    "domain_names": np.array(["cooler_full", "cooler_reduced", "cooler_failing"]),
    "group": np.cumsum(new).astype(np.int32),
  }


def _place(values: np.ndarray, known: tuple[int, ...], what: str) -> np.ndarray:
  if not np.isin(values, known).all():
    raise DataError(
      f"profile: {what} {sorted(set(values.tolist()))}, expected {known}."
    )
  return np.array([known.index(v) for v in values.tolist()], np.int16)


# --- Cars: traffic, road surface, driving style --------------------------------------

_TRIPS = {
  "opel_1": "opel_corsa_01", "opel_2": "opel_corsa_02",
  "peugeot_1": "peugeot_207_01", "peugeot_2": "peugeot_207_02",
}  # fmt: skip
_CARS = {
  "motion": (
    "VehicleSpeedInstantaneous", "VehicleSpeedAverage", "VehicleSpeedVariance",
    "VehicleSpeedVariation", "LongitudinalAcceleration", "AltitudeVariation",
  ),
  "engine": ("EngineLoad", "EngineCoolantTemperature", "EngineRPM"),
  "air_fuel": (
    "ManifoldAbsolutePressure", "MassAirFlow", "IntakeAirTemperature",
    "FuelConsumptionAverage",
  ),
  "vertical_acceleration": ("VerticalAcceleration",),
}  # fmt: skip
# Column of the class, and its values in their order.
_CARS_CLASSES = {
  "traffic": {"LowCongestionCondition": "low", "NormalCongestionCondition": "normal",
              "HighCongestionCondition": "high"},
  "roadSurface": {"SmoothCondition": "smooth", "UnevenCondition": "uneven",
                  "FullOfHolesCondition": "holes"},
  "drivingStyle": {"EvenPaceStyle": "even_pace", "AggressiveStyle": "aggressive"},
}  # fmt: skip
_WINDOW, _STRETCH = 10, 180  # Seconds of a window; of a group at most.


def prepare_cars(root: pathlib.Path, column: str) -> Arrays:
  """Windows of 10 s that cross no seam of the stitched trips.

  Args:
    root: Anything that holds ``opel_corsa_01.csv`` and so on.
    column: What is predicted: traffic, roadSurface or drivingStyle.
  """
  top = _above(root, "opel_corsa_01.csv")
  classes = _CARS_CLASSES[column]
  channels = [c for names in _CARS.values() for c in names]
  rows, labels, domains, stretches = [], [], [], []
  for d, name in enumerate(_TRIPS.values()):
    path = top / f"{name}.csv"
    table = pd.read_csv(path, sep=";", decimal=",", index_col=0)
    absent = [c for c in (*channels, column) if c not in table.columns]
    if absent:
      raise DataError(f"{path}: no column {absent}; there are {[*table.columns]}.")
    table[channels] = table[channels].apply(pd.to_numeric, errors="coerce").ffill()
    table = table[table[channels].notna().all(axis=1)]
    words = table[column].astype(str).str.strip()
    if not words.isin(classes).all():
      raise DataError(f"{path}: {column} {sorted(set(words) - set(classes))}.")
    position = words.map(list(classes).index).to_numpy()
    values = table[channels].to_numpy(np.float64)
    for piece, (start, end) in enumerate(cut_pieces(table.index.to_numpy(), values)):
      for first in range(start, end - _WINDOW + 1, _WINDOW):
        window = slice(first, first + _WINDOW)
        rows.append(values[window].astype(np.float32))
        labels.append(_last_commonest(position[window]))
        domains.append(d)
        stretches.append((d, piece, (first - start) // _STRETCH))
  x = np.stack(rows)
  arrays: Arrays = {"modalities": np.array(list(_CARS))}
  for m, names in _CARS.items():
    at = [channels.index(c) for c in names]
    arrays |= {m: x[:, :, at], f"{m}_kind": np.array("sequence")}
  group = np.unique(np.array(stretches), axis=0, return_inverse=True)[1]
  return arrays | {
    "label": np.array(labels, np.int16),
    "class_names": np.array(list(classes.values())),
    "domain": np.array(domains, np.int16),
    "domain_names": np.array(list(_TRIPS)),
    "group": group.reshape(-1).astype(np.int32),
  }


def cut_pieces(index: np.ndarray, values: np.ndarray) -> list[tuple[int, int]]:
  """Stretches without a seam, ``[(first row, end), ...]``.

  A seam is a gap in the index, or a change of speed that is not the released one.

  Args:
    index: Seconds, of each row.
    values: ``[rows, channels]``, speed first and its variation fourth.
  """
  change = np.diff(values[:, 0])
  seam = (np.diff(index) != 1) | (np.abs(change - values[1:, 3]) > 1e-3)
  edges = [0, *(np.flatnonzero(seam) + 1).tolist(), len(index)]
  return list(itertools.pairwise(edges))


def _last_commonest(labels: np.ndarray) -> int:
  """The commonest of some labels; of several, that of the last of the rows."""
  counts = np.bincount(labels)
  best = np.flatnonzero(counts == counts.max())
  return int(labels[np.isin(labels, best)][-1])


# --- Free Spoken Digit Dataset -------------------------------------------------------


def prepare_fsdd(root: pathlib.Path) -> Arrays:
  """Recordings as waveforms, speakers as domains; 1.28 s of each are kept.

  Args:
    root: Anything that holds ``recordings/0_george_0.wav``.
  """
  # TFDS, which that module imports, takes seconds.
  from data_prep.av_digits import SAMPLE_RATE, SPEAKERS, speech_from_wavs

  top = _above(root, "recordings/0_george_0.wav") / "recordings"
  speech = speech_from_wavs(top)
  most = round(1.28 * SAMPLE_RATE)
  audio = np.zeros((len(speech.clips), most), np.int16)
  for row, clip in enumerate(speech.clips):
    audio[row, : len(clip)] = clip[:most]
  return {
    "modalities": np.array(["audio"]),
    "audio": audio,
    "audio_kind": np.array("waveform"),
    "audio_rate": np.array(SAMPLE_RATE),
    "audio_len": np.array([min(len(clip), most) for clip in speech.clips]),
    "label": np.asarray(speech.label, np.int16),
    "class_names": np.array([str(k) for k in range(10)]),
    "domain": np.array([SPEAKERS.index(s) for s in speech.speaker.tolist()]),
    "domain_names": np.array(SPEAKERS),
    "id": np.asarray(speech.name),
  }


# --- all of them ---------------------------------------------------------------------

_UCI = "CC BY 4.0 (UCI donation terms)"
_NO_LICENCE = "none stated: use it for tests, do not pass it on"
_DSADS_URL = "https://github.com/faris0007/Daily-and-Sports-Activity-Detection"
_DSADS_CITE = "Altun, Barshan, Tuncel, Pattern Recognition 43(10), 2010"
_CARS_URL = "https://github.com/decodemarines/cars-ds"
_CARS_CITE = "Traffic, Driving Style and Road Surface Condition (Kaggle)"
SETS = {
  "dsads": PublicSet(
    _DSADS_URL, "a224f05", _UCI, _DSADS_CITE, prepare_dsads, "e84134c93eeb", 22.0,
  ),
  "dsads_position": PublicSet(
    _DSADS_URL, "a224f05", _UCI, _DSADS_CITE,
    lambda root: dsads_by_position(_dsads(root)), "82cca3e22f1c", 21.4,
  ),
  "dsads_units": PublicSet(
    _DSADS_URL, "a224f05", _UCI, _DSADS_CITE,
    lambda root: dsads_by_unit(_dsads(root)), "743b5d0ca2c6", 22.5,
  ),
  "gesture_phase": PublicSet(
    "https://github.com/Fmelle/Gesture-Phase-Segmentation", "78dd0d6",
    _UCI, "Madeo, Wagner, Peres, UCI Gesture Phase Segmentation, 2014",
    prepare_gesture, "aa3ec9dbd93e", 4.3,
  ),
  "hydraulic": PublicSet(
    "https://github.com/liyiling/Valve-Condition-Monitoring-in-Hydraulic-Systems",
    "44da0f2", _UCI, "Helwig, Pignanelli, Schuetze, I2MTC 2015",
    prepare_hydraulic, "ac0c65a01c86", 1.5,
  ),
  "cars": PublicSet(
    _CARS_URL, "dc58c6b", _NO_LICENCE, _CARS_CITE,
    lambda root: prepare_cars(root, "traffic"), "20368b4a1947", 0.7,
  ),
  "cars_road": PublicSet(
    _CARS_URL, "dc58c6b", _NO_LICENCE, _CARS_CITE,
    lambda root: prepare_cars(root, "roadSurface"), "6c031e2a4257", 0.7,
  ),
  "cars_style": PublicSet(
    _CARS_URL, "dc58c6b", _NO_LICENCE, _CARS_CITE,
    lambda root: prepare_cars(root, "drivingStyle"), "54e2064794b4", 0.7,
  ),
  "fsdd": PublicSet(
    "https://github.com/Jakobovski/free-spoken-digit-dataset", "26eb9aa",
    "CC BY-SA 4.0", "Jackson, Free Spoken Digit Dataset, 2016",
    prepare_fsdd, "", 15.0,
  ),
}  # fmt: skip


def fetch(source: PublicSet, root: pathlib.Path) -> None:
  """Clones a repository at its commit into a folder that does not exist yet.

  Raises:
    DataError: git fails, or the commit is another one.
  """
  if root.exists() and any(root.iterdir()):
    raise DataError(f"{root} is not empty; leave --fetch out to use what is there.")
  _git("clone", source.url, str(root))
  _git("-C", str(root), "checkout", "--quiet", source.commit)
  found = _git("-C", str(root), "rev-parse", "HEAD")
  if not found.startswith(source.commit):
    raise DataError(f"{root}: commit {found}, expected {source.commit}.")


def _git(*words: str) -> str:
  try:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=True)
  except FileNotFoundError as error:
    raise DataError("git is needed to fetch a set.") from error
  except subprocess.CalledProcessError as error:
    raise DataError(f"git {words[0]} failed: {error.stderr.strip()}") from error
  return done.stdout.strip()


def _above(root: pathlib.Path, inside: str) -> pathlib.Path:
  """The folder under ``root`` in which a file lies."""
  depth = inside.count("/") + 1
  for path in sorted(root.rglob(pathlib.PurePath(inside).name)):
    if path.as_posix().endswith("/" + inside):
      return path.parents[depth - 1]
  raise DataError(f"{root}: no {inside} in it or below it.")


def _table(path: pathlib.Path, *, separator: str | None = None) -> np.ndarray:
  """Numbers of a text file."""
  try:
    return np.loadtxt(path, delimiter=separator, ndmin=2)
  except (OSError, ValueError) as error:
    raise DataError(f"{path}: no table of numbers ({error}).") from error


def _frame(path: pathlib.Path) -> pd.DataFrame:
  try:
    return pd.read_csv(path)
  except (OSError, ValueError) as error:
    raise DataError(f"{path}: no table ({error}).") from error


def main(argv: Sequence[str] | None = None) -> None:
  """Command line; see the top of this file."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
  parser.add_argument("--set", required=True, choices=list(SETS))
  parser.add_argument("--root", required=True, help="folder of the download")
  parser.add_argument("--out", required=True, help=".npz to write")
  parser.add_argument("--fetch", action="store_true", help="clone the repository first")
  args = parser.parse_args(argv)
  source, root = SETS[args.set], pathlib.Path(args.root).expanduser()
  print(f"{args.set}: {source.url} at {source.commit}; licence: {source.licence}; cite "
        f"{source.cite}. About {source.megabytes} MB.")  # fmt: skip
  try:
    if args.fetch:
      fetch(source, root)
    arrays = source.prepare(root)
    version = from_arrays(arrays, name=args.set).version
    save_npz(arrays, args.out)
  except DataError as error:
    raise SystemExit(f"error: {error}") from None
  print(f"{len(arrays['label'])} rows: {args.out}, version {version}")
  if source.version and version != source.version:
    print(f"Our tables stand on version {source.version}: the content differs.")


if __name__ == "__main__":
  main()
