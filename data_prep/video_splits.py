"""The published lists of EPIC-Kitchens (MM-SADA) and HAC as one list of clips.

Only the lists are read here, not the media: `data_prep.video_scan` looks at those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
import csv
import functools
import math
import os
import pathlib
import re
from typing import Any

from data_prep._pickles import load_table as load_pickled_table
from mer_dg.data.dataset import DataError
from mer_dg.data.video.table import (
  SPLITS,
  Clip,
  ClipTable,
  Frames,
  Sound,
  check_name,
)

EPIC_CLASSES = ("take", "put", "open", "close", "wash", "cut", "mix", "pour")
EPIC_DOMAINS = ("D1", "D2", "D3")  # Kitchens P08, P01, P22.
EPIC_LISTS = "MM-SADA_Domain_Adaptation_Splits"
EPIC_FILMS = "EPIC-mp4"
HAC_CLASSES = (
  "sleeping",
  "watching tv",
  "eating",
  "drinking",
  "swimming",
  "running",
  "opening door",
)
HAC_DOMAINS = ("human", "animal", "cartoon")
HAC_LISTS = "HAC_Splits"
SETS = ("epic", "hac")
LAST_FRAME = 10**6  # Of a recording: four and a half hours.

# Clips per class in the published lists: {set: {(domain, split): counts}}.
PUBLISHED = {
  "epic": {
    ("D1", "train"): (421, 383, 231, 128, 223, 71, 42, 44),
    ("D1", "test"): (124, 104, 52, 34, 66, 13, 20, 22),
    ("D2", "train"): (715, 692, 245, 214, 298, 89, 113, 129),
    ("D2", "test"): (208, 217, 68, 56, 136, 14, 26, 25),
    ("D3", "train"): (919, 1121, 450, 367, 808, 110, 53, 69),
    ("D3", "test"): (241, 280, 102, 71, 245, 29, 1, 5),
  },
  "hac": {
    ("human", "train"): (159, 158, 160, 158, 158, 158, 160),
    ("human", "test"): (39, 40, 39, 40, 40, 38, 40),
    ("animal", "train"): (103, 117, 123, 112, 109, 93, 73),
    ("animal", "test"): (36, 26, 25, 21, 24, 27, 17),
    ("cartoon", "train"): (83, 93, 135, 104, 121, 163, 171),
    ("cartoon", "test"): (23, 28, 28, 22, 27, 51, 39),
  },
}
# Clips in both the train and the test list, as published.
PUBLISHED_REPEATS = {"epic": 0, "hac": 24}

_EPIC_COLUMNS = (
  "uid",
  "video_id",
  "start_timestamp",
  "stop_timestamp",
  "start_frame",
  "stop_frame",
  "verb_class",
)
_TIMESTAMP = re.compile(r"(\d{1,3}):([0-5]\d):([0-5]\d(?:\.\d+)?)")


def read_splits(
  name: str, root: str | os.PathLike, *, layout: str = "auto", dedup: bool = True
) -> ClipTable:
  """The clips of a set, from its lists.

  Args:
    name: One of `SETS`.
    root: Folder with the lists (EPIC: ``MM-SADA_Domain_Adaptation_Splits/``, HAC:
      ``HAC_Splits/``, or the lists themselves).
    layout: EPIC only: "frames" (JPEG frames per recording), "mp4" (one video per
      clip), or "auto" for the one that is there.
    dedup: Leave out of the test list what the train list of the domain has too.

  Returns:
    The table. Numbers of frames in videos are 0: only the files know them.

  Raises:
    DataError: A list is missing, damaged, or names something it must not; with the
      file and the row.
  """
  if name not in SETS:
    raise DataError(f"set={name!r} is not one of {SETS}.")
  root = pathlib.Path(root).expanduser()
  if not root.is_dir():
    raise DataError(f"root={str(root)!r} is not a folder.")
  if root.name == EPIC_FILMS:
    raise DataError(f"root={str(root)!r}: name the folder that holds it.")
  if name == "hac":
    clips = _hac_clips(root)
    classes, domains = HAC_CLASSES, HAC_DOMAINS
  else:
    clips = _epic_clips(root, _epic_layout(root, layout))
    classes, domains = EPIC_CLASSES, EPIC_DOMAINS
  kept = without_repeats(clips) if dedup else clips
  # Relative, so that the version of the data does not depend on where they lie.
  kept = [c._replace(where=c.where.removeprefix(f"{root}{os.sep}")) for c in kept]
  return ClipTable(name, tuple(kept), classes, domains, dedup)


def repeats(clips: Iterable[Clip]) -> list[Clip]:
  """Clips of test lists whose media and frames a train list of the domain has too."""
  clips = list(clips)
  training = {_content(c) for c in clips if c.split == "train"}
  return [c for c in clips if c.split == "test" and _content(c) in training]


def without_repeats(clips: Iterable[Clip]) -> list[Clip]:
  """The clips without `repeats`: the copy in the train list stays."""
  clips = list(clips)
  gone = {c.id for c in repeats(clips)}
  return [c for c in clips if c.id not in gone]


def listed_twice(clips: Iterable[Clip]) -> list[tuple[Clip, Clip]]:
  """Pairs of clips of one list that show the same frames, whatever their labels."""
  first: dict[Any, Clip] = {}
  pairs = []
  for clip in clips:
    key = (clip.split, *_content(clip))
    if key in first:
      pairs.append((first[key], clip))
    first.setdefault(key, clip)
  return pairs


def _content(clip: Clip):
  """What two entries of one clip have in common, in either list and layout."""
  video = clip.video
  if video is None or video.is_video:
    name = clip.id if video is None else video.paths[0]
    return (clip.domain, name.rpartition("/")[2])
  return (clip.domain, clip.source, video.first, video.count)


# --- EPIC-Kitchens -------------------------------------------------------------------


def _epic_clips(root: pathlib.Path, media) -> list[Clip]:
  folder = _lists_folder(root, EPIC_LISTS, "D1_train.pkl", "D1_train.csv")
  clips: list[Clip] = []
  for d, domain in enumerate(EPIC_DOMAINS):
    for split in SPLITS:
      path, table = _epic_list(folder, f"{domain}_{split}")
      for i, row in enumerate(zip(*(table[c] for c in _EPIC_COLUMNS), strict=True)):
        where = f"{path.name} row {i + 1}"
        clips.append(
          _epic_clip(d, domain, split, len(clips), str(folder / where), row, media)
        )
  return _distinct(clips)


def _epic_list(folder: pathlib.Path, stem: str):
  """The columns of a pickled list, or of the same list as .csv."""
  path = folder / f"{stem}.pkl"
  if path.is_file():
    table = load_pickled_table(path)
  else:
    path = folder / f"{stem}.csv"
    if not path.is_file():
      raise DataError(f"{folder}: neither {stem}.pkl nor {stem}.csv is there.")
    rows = _csv_rows(path)
    width = next((i for i, row in enumerate(rows) if len(row) != len(rows[0])), None)
    if not rows or width is not None:
      raise DataError(f"{path} row {width or 0}: not as wide as the header.")
    columns = zip(*rows[1:], strict=True)
    table = dict(zip(rows[0], map(list, columns), strict=False))
  missing = [c for c in _EPIC_COLUMNS if c not in table]
  if missing:
    raise DataError(f"{path}: columns {missing} missing; it has {list(table)}.")
  return path, table


def _epic_clip(d, domain, split, index, where, row, media) -> Clip:
  uid, source, *times, start, stop, label = row
  uid, source = (check_name(str(value), where) for value in (uid, source))
  start, stop, label = (_whole(value, where) for value in (start, stop, label))
  begin, end = (_seconds(value, where) for value in times)
  if not 0 <= start < stop <= LAST_FRAME or not begin < end:
    raise DataError(
      f"{where}: frames {start} to {stop}, seconds {begin} to {end}: the end has to "
      f"come after the start, and before frame {LAST_FRAME}."
    )
  _check_label(label, EPIC_CLASSES, where)
  video, flow, folder = media(domain, split, source, start, stop, label)
  return Clip(
    id=f"{domain}/{split}/{uid}",
    index=index,
    domain=d,
    split=split,
    label=label,
    source=source,
    where=where,
    video=video,
    audio=Sound(f"{folder}/{source}.wav", begin, end),
    flow=flow,
  )


def _epic_layout(root: pathlib.Path, layout: str) -> Callable[..., Any]:
  """``(domain, split, recording, start, stop, label) -> video, flow, folder of wavs``.

  Frames lie in the root; videos and their sound there or beside the lists, as in the
  benchmark of arXiv 2605.06643: each kind, split and kitchen is looked for. Flow has
  half the frame rate: it starts at ``ceil(start / 2)`` and has
  ``floor((stop - start) / 2)`` frames.
  """
  if layout not in ("auto", "frames", "mp4"):
    raise DataError(f"layout={layout!r} is not one of ('auto', 'frames', 'mp4').")
  bases = [b for b in (".", EPIC_LISTS) if (root / b / EPIC_FILMS).is_dir()]
  if layout == "auto":
    layout = "mp4" if bases else "frames"
  bases = dict.fromkeys([*bases, ".", EPIC_LISTS]) if layout == "mp4" else ["."]

  @functools.cache
  def folder(split: str, domain: str, *names: str) -> pathlib.PurePosixPath:
    kinds = [pathlib.PurePosixPath(base, name) for base in bases for name in names]
    tried = [kind / split / domain for kind in kinds]
    there = [path for path in tried if (root / path).is_dir()]
    # None: then whoever looks for its files will say which folder is missing.
    begun = [kind / split / domain for kind in kinds if (root / kind).is_dir()]
    return [*there, *begun, *tried][0]

  def media(domain, split, source, start, stop, label):
    half, half_count = math.ceil(start / 2), (stop - start) // 2
    wavs = str(folder(split, domain, "rgb"))
    if layout == "frames":
      colour = folder(split, domain, "rgb") / source
      flow = folder(split, domain, "flow") / source
      ways = (f"{flow}/u", f"{flow}/v")
      video = Frames((str(colour),), count=stop - start, first=start)
      return video, Frames(ways, count=half_count, first=half), wavs
    colour = folder(split, domain, f"{EPIC_FILMS}/video", f"{EPIC_FILMS}/rgb")
    flow = folder(split, domain, f"{EPIC_FILMS}/flow")
    clip = f"{domain}_{source}"
    ways = (f"{flow}/{clip}_{half}_{half + half_count}_{label}_{w}.mp4" for w in "uv")
    return _film(f"{colour}/{clip}_{start}_{stop}_{label}.mp4"), _film(*ways), wavs

  return media


# --- HAC -----------------------------------------------------------------------------


def _hac_clips(root: pathlib.Path) -> list[Clip]:
  folder = _lists_folder(root, HAC_LISTS, "HAC_train_only_human.csv")
  clips: list[Clip] = []
  for d, domain in enumerate(HAC_DOMAINS):
    # The benchmark of arXiv 2605.06643 has the media beside the lists.
    inside = not (root / domain).is_dir() and (root / HAC_LISTS / domain).is_dir()
    base = f"{HAC_LISTS}/{domain}" if inside else domain
    for split in SPLITS:
      path = folder / f"HAC_{split}_only_{domain}.csv"
      for i, row in enumerate(_csv_rows(path)):
        where = f"{path} row {i + 1}"
        clips.append(_hac_clip(d, domain, base, split, len(clips), where, row))
  return _distinct(clips)


def _hac_clip(d, domain, base, split, index, where, row) -> Clip:
  if len(row) != 2:
    raise DataError(f"{where}: expected a file name and a class, got {row}.")
  name = check_name(row[0], where)
  stem = name.removesuffix(".mp4")
  if stem == name:
    raise DataError(f"{where}: {name!r} does not end with .mp4.")
  label = _whole(row[1], where)
  _check_label(label, HAC_CLASSES, where)
  flow = (f"{base}/flow/{stem}_flow_{way}.mp4" for way in "xy")
  return Clip(
    id=f"{domain}/{split}/{name}",
    index=index,
    domain=d,
    split=split,
    label=label,
    # Clips of one recording are numbered: <recording>-001, -002, ...
    source=re.sub(r"-\d{3}$", "", stem),
    where=where,
    video=_film(f"{base}/videos/{name}"),
    audio=Sound(f"{base}/audio/{stem}.wav"),
    flow=_film(*flow),
  )


# --- both ----------------------------------------------------------------------------


def _film(*paths: str) -> Frames:
  return Frames(paths, count=0, shift=-1, stored=(0,) * len(paths))


def _lists_folder(root: pathlib.Path, name: str, *examples: str) -> pathlib.Path:
  for folder in (root / name, root):
    if any((folder / example).is_file() for example in examples):
      return folder
  raise DataError(f"{root}: no {' or '.join(examples)}, there or in {name}/.")


def _csv_rows(path: pathlib.Path) -> list[list[str]]:
  try:
    with path.open(newline="", encoding="utf-8") as file:
      return [row for row in csv.reader(file) if row]
  except (OSError, csv.Error, UnicodeDecodeError) as error:
    raise DataError(f"{path}: cannot be read ({error}).") from error


def _whole(value: Any, where: str) -> int:
  try:
    number = int(value)
    if isinstance(value, float) and number != value:
      raise ValueError
  except (TypeError, ValueError) as error:
    raise DataError(f"{where}: {value!r} is not a whole number.") from error
  return number


def _seconds(value: Any, where: str) -> float:
  match = _TIMESTAMP.fullmatch(str(value).strip())
  if match is None:
    raise DataError(f"{where}: {value!r} is not a time h:mm:ss.")
  hours, minutes, seconds = map(float, match.groups())
  return (hours * 60 + minutes) * 60 + seconds


def _check_label(label: int, classes: tuple[str, ...], where: str) -> None:
  if not 0 <= label < len(classes):
    raise DataError(f"{where}: class {label} is not in 0..{len(classes) - 1}.")


def _distinct(clips: list[Clip]) -> list[Clip]:
  seen: dict[str, str] = {}
  for clip in clips:
    if clip.id in seen:
      raise DataError(f"{clip.where}: {clip.id!r} stands in {seen[clip.id]} already.")
    seen[clip.id] = clip.where
  return clips
