"""Looks at the media of a list of clips: are they there, are they whole, how long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import time
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mer_dg.data.dataset import DataError
from mer_dg.data.video.files import count_frames, read_sound, wav_samples
from mer_dg.data.video.sources import TreeMedia, check_pair
from mer_dg.data.video.table import MODALITIES, Clip, ClipTable, Frames, Sound

T = TypeVar("T")
R = TypeVar("R")

ON_ERROR = ("stop", "skip")
# Problems that are printed one by one.
LISTED = 50


class Problem(NamedTuple):
  """What is wrong with one clip: its id, where it is listed, and a sentence.

  ``kept`` says that the clip can be used nevertheless, without its sound or with the
  sound track of its video.
  """

  clip: str
  where: str
  what: str
  kept: bool = False

  def __str__(self) -> str:
    return f"{self.what} [{self.clip}, {self.where}]"


def problem_lines(title: str, problems: Sequence[Problem]) -> list[str]:
  """``title: 2`` and what is wrong with each."""
  more = len(problems) - LISTED
  return [
    f"{title}: {len(problems)}",
    *(f"  {p}" for p in problems[:LISTED]),
    *([f"  and {more} more"] if more > 0 else []),
  ]


def with_modalities(table: ClipTable, modalities: Sequence[str]) -> ClipTable:
  """The table without the media of other modalities.

  Raises:
    DataError: An unknown modality, or none.
  """
  unknown = [m for m in modalities if m not in MODALITIES]
  if unknown or not modalities:
    raise DataError(
      f"modalities={tuple(modalities)!r} must be one or more of {MODALITIES}."
    )
  gone: dict[str, Any] = {m: None for m in MODALITIES if m not in modalities}
  clips = tuple(clip._replace(**gone) for clip in table.clips)
  return dataclasses.replace(table, clips=clips)


def scan(
  table: ClipTable,
  root: str | os.PathLike,
  *,
  workers: int,
  decode: bool = False,
  progress: bool = False,
) -> tuple[ClipTable, list[Problem]]:
  """Checks the files of every clip.

  Args:
    table: From `data_prep.video_splits.read_splits`.
    root: Folder that its paths start from.
    workers: Threads.
    decode: Also decode every frame that could ever be shown: hours for EPIC.
    progress: Write a line to stderr now and then.

  Returns:
    The table of the usable clips, with the lengths of videos filled in, and the
    problems: of the clips left out, and of those that are kept with less.
  """
  root = pathlib.Path(root).expanduser()
  folders = functools.lru_cache(maxsize=None)(_numbers)  # Per scan: files may change.
  work = lambda clip: _scan_clip(clip, root, folders, decode)
  found = run_parallel(
    work, table.clips, workers=workers, title="scan" if progress else None
  )
  good = tuple(clip for clip, _ in found if clip is not None)
  problems = [p for _, p in found if p is not None]
  skipped = (*table.skipped, *(p.clip for p in problems if not p.kept))
  return dataclasses.replace(table, clips=good, skipped=skipped), problems


def _scan_clip(clip: Clip, root: pathlib.Path, folders, decode: bool):
  """The clip with its lengths, or None; and what is wrong, or None."""
  problem = None
  try:
    parts: dict[str, Any] = {}
    for m in ("video", "flow"):
      frames: Frames | None = getattr(clip, m)
      if frames is not None:
        parts[m] = _scan_frames(frames, root, folders)
    if clip.audio is not None:
      sound, what = _scan_sound(clip, root)
      if sound is None and not parts:
        raise DataError(what)
      clip = clip._replace(audio=sound)
      problem = Problem(clip.id, clip.where, what, kept=True) if what else None
    clip = clip._replace(**parts)
    if decode:
      media = TreeMedia(clip, root, None)
      for frames in parts.values():
        for way in range(len(frames.paths)):
          for _ in media.decoded(frames, way, np.arange(frames.shown)):
            pass
      media.audio()
  except DataError as error:
    return None, Problem(clip.id, clip.where, str(error).removesuffix("."))
  return clip, problem


def _scan_frames(frames: Frames, root: pathlib.Path, folders) -> Frames:
  paths = [root / p for p in frames.paths]
  if frames.is_video:
    stored = tuple(count_frames(path) for path in paths)
    # The references leave out the last frame; a video of one frame keeps it.
    frames = frames._replace(stored=stored, count=max(stored[0] - 1, 1))
    check_pair(frames, root)
    return frames
  if frames.count < 1:
    raise DataError(f"{paths[0]}: the clip is too short for a single frame.")
  wanted = range(frames.first, frames.first + frames.count)
  for path in paths:
    there = folders(path)
    missing = [n for n in wanted if n not in there]
    if missing:
      raise DataError(
        f"{path}: {len(missing)} of {frames.count} frames missing, the first is "
        f"frame_{missing[0]:010d}.jpg"
      )
  check_pair(frames, root)
  return frames


def _scan_sound(clip: Clip, root: pathlib.Path) -> tuple[Sound | None, str]:
  """The sound of a clip that has one, and what is wrong with it.

  Where its own file is missing or damaged the sound track of the clip's video stands
  in; where there is none either, the clip has no sound.
  """
  sound: Any = clip.audio
  try:
    wav_samples(root / sound.path)
    return sound, ""
  except DataError as error:
    what = str(error).removesuffix(".")
  if clip.video is not None and clip.video.is_video:
    (film,) = clip.video.paths
    with contextlib.suppress(DataError):
      if len(read_sound(root / film)):
        stop = None if sound.stop is None else sound.stop - sound.start
        return Sound(film, 0.0, stop), f"{what}; the sound track of its video is used"
  return None, f"{what}; kept without sound"


def _numbers(folder: pathlib.Path) -> frozenset[int]:
  """Numbers of the files ``frame_<number>.jpg`` of a folder."""
  try:
    names = os.listdir(folder)
  except OSError as error:
    raise DataError(f"{folder}: {error.strerror}.") from error
  numbers = (n[6:-4] for n in names if n.startswith("frame_") and n.endswith(".jpg"))
  return frozenset(int(n) for n in numbers if n.isdigit() and len(n) == 10)


def run_parallel(
  work: Callable[[T], R], items: Iterable[T], *, workers: int, title: str | None
) -> list[R]:
  """``[work(item) ...]`` in threads, with progress on stderr if there is a title.

  Decoding and encoding release Python's lock. The first exception ends it; what has
  not begun by then never does.
  """
  items = list(items)
  meter = Meter(title, len(items)) if title else None
  with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
    futures: list[Future[R]] = [pool.submit(work, item) for item in items]
    results = []
    try:
      for done, future in enumerate(futures, start=1):
        results.append(future.result())
        if meter is not None:
          meter.show(done)
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise
  return results


class Meter:
  """Lines ``title: 120/435, 12.0/s, 26 s left`` on stderr, every few seconds."""

  def __init__(self, title: str, total: int, *, every_s: float = 5.0):
    self._title, self._total, self._every = title, total, every_s
    self._start = self._shown = time.monotonic()

  def show(self, done: int) -> None:
    now = time.monotonic()
    if now - self._shown < self._every and done < self._total:
      return
    self._shown = now
    rate = done / max(now - self._start, 1e-6)
    left = (self._total - done) / rate
    line = f"{self._title}: {done}/{self._total}, {rate:.1f}/s, {left:.0f} s left"
    print(line, file=sys.stderr, flush=True)
