"""Where the windows of a recording of the HUST motor set begin, and what is in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mer_dg.data.dataset import SPLITS, DataError

WINDOW = 1024  # Samples; 40 ms at 25.6 kHz.
# Windows per recording in train, val, test: the reference draws 800 + 200 and takes
# 200 of the 800 for validation.
WINDOWS = (600, 200, 200)
# Where val and test begin, in percent of a recording.
EDGES = (70, 80)
SPLIT_NAMES = ("time", "overlap")
# Seeds of the reference: of the windows, and of the validation windows among them.
WINDOW_SEED, VAL_SEED = 42, 8


def time_starts(length: int, windows: Sequence[int] = WINDOWS) -> list[np.ndarray]:
  """First samples of the windows of each split, in order of time.

  Between the last sample of one split and the first of the next lie at least `WINDOW`
  samples.

  Args:
    length: Samples of the recording.
    windows: Number of windows of each split.

  Returns:
    One array per split, evenly spaced, without repeats.

  Raises:
    DataError: The recording is too short.

  Example:
    >>> [s.tolist() for s in time_starts(40_000, (3, 2, 2))]
    [[0, 13488, 26976], [29024, 30976], [33024, 38976]]
  """
  begins = [0, *(length * percent // 100 for percent in EDGES), length]
  starts = []
  for i, count in enumerate(windows):
    low = begins[i] + (WINDOW if i else 0)
    room = begins[i + 1] - WINDOW - low + 1  # Possible starts.
    if room < count:
      raise DataError(
        f"{length} samples are too few: the {SPLITS[i]} part has room for "
        f"{max(room, 0)} different windows of {WINDOW}, {count} are asked for "
        "(--windows)."
      )
    step = np.arange(count) * (room - 1) // max(count - 1, 1)
    starts.append(low + step)
  return starts


def overlap_starts(
  length: int,
  windows: Sequence[int],
  rng: np.random.Generator,
  val_rng: np.random.RandomState,
) -> list[np.ndarray]:
  """First samples of the windows of each split, random and without repeats.

  Drawn as in the reference: one generator for all recordings, by speed, then state;
  validation windows are drawn from the training windows with another one.

  Args:
    length: Samples of the recording.
    windows: Number of windows of each split.
    rng: Generator of the windows; advanced.
    val_rng: Generator of the validation windows among them; advanced.

  Returns:
    One array per split.

  Raises:
    DataError: The recording is too short.
  """
  train, val, test = windows
  room = length - WINDOW + 1
  if room < train + val + test:
    raise DataError(
      f"{length} samples are too few: room for {max(room, 0)} different windows of "
      f"{WINDOW}, {train + val + test} are asked for (--windows)."
    )
  starts = rng.choice(room, size=train + val + test, replace=False)
  rng.shuffle(starts)
  places = np.arange(train + val)
  val_rng.shuffle(places)
  return [starts[places[val:]], starts[places[:val]], starts[train + val :]]


def make_draw(split: str, windows: Sequence[int]) -> Callable[[int], list[np.ndarray]]:
  """Returns ``length -> starts``, to be called once per recording, in their order.

  Args:
    split: "time" or "overlap".
    windows: Number of windows of each split.

  Raises:
    DataError: An unknown split; windows that are not three numbers of at least 1.
  """
  if split not in SPLIT_NAMES:
    raise DataError(f"split={split!r} is not one of {SPLIT_NAMES}.")
  if len(windows) != len(SPLITS) or min(windows) < 1:
    raise DataError(f"windows={tuple(windows)} must be three numbers >= 1.")
  if split == "time":
    return lambda length: time_starts(length, windows)
  rng = np.random.default_rng(WINDOW_SEED)
  val_rng = np.random.RandomState(VAL_SEED)  # As in the reference.
  return lambda length: overlap_starts(length, windows, rng, val_rng)


def cut(signals: np.ndarray, starts: np.ndarray) -> np.ndarray:
  """Windows of all signals, each scaled to 0..1 by its own minimum and maximum.

  Args:
    signals: ``[M, n]``.
    starts: First samples ``[W]``.

  Returns:
    float32 ``[M, W, WINDOW]``.
  """
  windows = signals[:, starts[:, None] + np.arange(WINDOW)[None, :]]
  low = windows.min(axis=-1, keepdims=True)
  span = windows.max(axis=-1, keepdims=True) - low
  return ((windows - low) / (span + 1e-8)).astype(np.float32)


def overlaps(starts: Sequence[np.ndarray]) -> np.ndarray:
  """How many windows share samples with a window of an earlier split.

  Args:
    starts: One array per split.

  Returns:
    int ``[2, 2]``: of val and of test windows, those that overlap at all and those
    that overlap by more than half.

  Example:
    >>> overlaps([np.array([0]), np.array([1023, 9000]), np.array([9400, 10024])])
    array([[1, 0],
           [1, 1]])
  """
  found = np.zeros((2, 2), int)
  for i in (1, 2):
    earlier = np.sort(np.concatenate([np.full(1, -(10**9)), *starts[:i]]))
    earlier = np.append(earlier, 10**9)
    after = np.searchsorted(earlier, starts[i])
    distance = np.minimum(starts[i] - earlier[after - 1], earlier[after] - starts[i])
    found[i - 1] = np.sum(distance < WINDOW), np.sum(distance < WINDOW / 2)
  return found
