r"""Builds the HUST motor set from its published text files, as one ``.npz``.

  python -m data_prep.hust --root=HUST                       # Check only.
  python -m data_prep.hust --root=HUST --out=hust.npz
  python main.py --config=configs/features.py --config.data.path=hust.npz

Six states of a motor (healthy, bearing fault, bowed rotor, broken rotor bars,
misalignment, voltage unbalance) at four speeds, which are the domains. The folder holds
the 24 files ``{H,BF,BOW,BROKEN,MISAL,UNBAL}_{5,10,20,30}HZ.txt`` with the columns time,
vibration x, y, z and sound, 25.6 kHz, after any number of lines of text.

``--split=time``, the default: windows come from the first 70 % of a recording
(train), the next 10 % (val) and the last 20 % (test), with a gap of one window between
them, at even distances. ``--split=overlap`` is what published numbers stand on: random
windows of the whole recording, so that nearly every test window shares samples with a
training window; source validation then selects nothing. docs/sensor_and_text_data.md
has more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import os
import pathlib
from typing import NamedTuple

import numpy as np

from data_prep._prepared import add_arguments, finish
from data_prep.hust_windows import SPLIT_NAMES, WINDOWS, cut, make_draw, overlaps
from data_prep.video_scan import Meter, Problem
from mer_dg.data.dataset import SPLITS, DataError

STATES = {
  "H": "healthy",
  "BF": "bearing fault",
  "BOW": "bowed rotor",
  "BROKEN": "broken rotor bars",
  "MISAL": "misalignment",
  "UNBAL": "voltage unbalance",
}
SPEEDS = ("5HZ", "10HZ", "20HZ", "30HZ")
COLUMNS = ("time", "vibration x", "vibration y", "vibration z", "sound")
RATE_HZ = 25_600
MODALITIES = ("vibration", "sound")


class Recording(NamedTuple):
  """One file.

  Attributes:
    name: ``H_5HZ``.
    signals: float64 ``[2, n]``: norm of the three vibrations, sound.
    notes: What is odd about it, and no reason to refuse it.
  """

  name: str
  signals: np.ndarray
  notes: tuple[str, ...]


# --- files ---------------------------------------------------------------------------


def read_recording(path: str | os.PathLike) -> Recording:
  """Reads one text file.

  Args:
    path: ``H_5HZ.txt``.

  Returns:
    The recording.

  Raises:
    DataError: No such file, no numbers in it, a line that is not five finite numbers;
      the message names file and line.
  """
  path = pathlib.Path(path)
  try:
    lines = path.read_text("latin-1").splitlines()
  except OSError as error:
    raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
  first = next((i for i, line in enumerate(lines) if _begins_data(line)), len(lines))
  if first == len(lines):
    raise DataError(f"{path}: no line of numbers among {len(lines)} lines.")
  try:
    table = np.loadtxt(lines[first:], ndmin=2, comments=None)
    whole = table.shape[1] == len(COLUMNS) and bool(np.isfinite(table).all())
  except ValueError:
    whole = False
  if not whole:
    raise DataError(f"{path}: {_bad_line(lines, first)}")
  time, *vibration, sound = table.T
  signals = np.stack([np.linalg.norm(vibration, axis=0), sound])
  return Recording(path.stem, signals, tuple(_oddities(path, time, signals)))


def _begins_data(line: str) -> bool:
  """A line of the header begins with a word, or is not all numbers."""
  cells = line.split()
  if not cells or _number(cells[0]) is None:
    return False
  return len(cells) == len(COLUMNS) or all(_number(c) is not None for c in cells)


def _number(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None


def _bad_line(lines: Sequence[str], first: int) -> str:
  """What is wrong with the first line that is not a row of the table."""
  for row, line in enumerate(lines[first:], start=first + 1):
    cells = line.split()
    if cells and len(cells) != len(COLUMNS):
      return f"line {row} has {len(cells)} columns, expected {', '.join(COLUMNS)}."
    for name, cell in zip(COLUMNS, cells, strict=False):
      value = _number(cell)
      if value is None or not np.isfinite(value):
        return f"line {row}: {name} is {cell!r}, not a finite number."
  return "not a table of numbers."


def _oddities(path: pathlib.Path, time: np.ndarray, signals: np.ndarray):
  back = np.flatnonzero(np.diff(time) < 0)
  if back.size:
    yield f"{path.name}: time goes back after sample {back[0] + 1}"
  elif time[-1] > time[0]:
    rate = (len(time) - 1) / (time[-1] - time[0])
    if abs(rate / RATE_HZ - 1) > 0.01:
      yield f"{path.name}: {rate:.0f} samples per second, published: {RATE_HZ}"
  for name, signal in zip(MODALITIES, signals, strict=True):
    if np.ptp(signal) == 0:
      yield f"{path.name}: {name} is constant"


# --- the set -------------------------------------------------------------------------


def prepare(
  root: str | os.PathLike,
  *,
  split: str = "time",
  windows: Sequence[int] = WINDOWS,
  progress: bool = False,
) -> tuple[dict[str, np.ndarray] | None, list[Problem], list[str]]:
  """Windows of all recordings of a folder.

  Args:
    root: Folder of the 24 files.
    split: "time" or "overlap".
    windows: Windows per recording in train, val and test.
    progress: Write progress to stderr.

  Returns:
    Arrays of the bring-your-own format (None without a usable recording), the
    recordings that cannot be used, and lines for the audit.

  Raises:
    DataError: No such folder; a split or windows that `make_draw` refuses.
  """
  root = pathlib.Path(root).expanduser()
  if not root.is_dir():
    raise DataError(f"{root}: no such folder.")
  draw = make_draw(split, windows)
  parts, problems, notes = [], [], []
  shared = np.zeros((2, 2), int)
  meter = Meter("recordings", len(SPEEDS) * len(STATES)) if progress else None
  for domain, speed in enumerate(SPEEDS):
    for label, state in enumerate(STATES):
      path = root / f"{state}_{speed}.txt"
      try:
        recording, starts = _read_and_draw(path, draw)
        notes.extend(recording.notes)
        parts.append(_part(recording, starts, domain, label))
        shared += overlaps(starts)
      except DataError as error:
        what = str(error).removesuffix(".")
        problems.append(Problem(path.stem, "the whole recording", what))
      if meter is not None:
        meter.show(len(parts) + len(problems))
  if not parts:
    return None, problems, notes
  arrays = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
  arrays |= {
    "modalities": np.array(MODALITIES),
    "class_names": np.array(list(STATES.values())),
    "domain_names": np.array(SPEEDS),
  }
  return arrays, problems, notes + _overlap_lines(shared, windows, len(parts))


def _read_and_draw(path: pathlib.Path, draw) -> tuple[Recording, list[np.ndarray]]:
  recording = read_recording(path)
  try:
    return recording, draw(recording.signals.shape[1])
  except DataError as error:
    raise DataError(f"{path}: {error}") from error


def _part(
  recording: Recording, starts: list[np.ndarray], domain: int, label: int
) -> dict[str, np.ndarray]:
  """The rows of one recording."""
  every = np.concatenate(starts)
  vibration, sound = cut(recording.signals, every)
  n = len(every)
  return {
    "vibration": vibration[..., None],
    "sound": sound[..., None],
    "label": np.full(n, label, np.int16),
    "domain": np.full(n, domain, np.int16),
    "group": np.full(n, recording.name),
    "split": np.repeat(SPLITS, [len(s) for s in starts]),
    "id": np.array([f"{recording.name}:{s}" for s in every.tolist()]),
  }


def _overlap_lines(shared: np.ndarray, windows: Sequence[int], count: int):
  return [
    f"{split} windows that share samples with a window of an earlier split: "
    f"{some / (n * count):.1%}, by more than half: {half / (n * count):.1%}"
    for split, n, (some, half) in zip(
      SPLITS[1:], windows[1:], shared.tolist(), strict=True
    )
  ]


def _three(text: str) -> tuple[int, ...]:
  return tuple(int(word) for word in text.split(","))


def main(argv: Sequence[str] | None = None) -> None:
  """Command line; see the top of this file."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
  parser.add_argument("--root", required=True, help="folder of the 24 text files")
  parser.add_argument("--split", default="time", choices=SPLIT_NAMES)
  parser.add_argument(
    "--windows",
    type=_three,
    default=WINDOWS,
    metavar="TRAIN,VAL,TEST",
    help="windows per recording; default: 600,200,200",
  )
  add_arguments(parser)
  args = parser.parse_args(argv)
  try:
    arrays, problems, notes = prepare(
      args.root, split=args.split, windows=args.windows, progress=True
    )
    expected = {
      (speed, split): n * len(STATES)
      for speed in SPEEDS
      for split, n in zip(SPLITS, args.windows, strict=True)
    }
    finish(
      arrays,
      problems,
      f"HUST motor in {args.root}: split {args.split}",
      notes,
      args=args,
      variant=f"split={args.split}",
      expected=expected,
    )
  except DataError as error:
    raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
  main()
