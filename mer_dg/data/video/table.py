"""The list of clips of a video set: what belongs together, where it lies, how long.

`data_prep.audit` makes it from the published split files and writes it as JSON. The
reader of the original folders and the reader of a prepared set both go by it, so rows,
ids and frame counts are the same in either.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from mer_dg.data.archive import reason
from mer_dg.data.dataset import DataError
from mer_dg.files import write_atomic

# The order of modalities in every concatenation.
MODALITIES = ("video", "audio", "flow")
SPLITS = ("train", "test")
FORMAT = 1


class Frames(NamedTuple):
  """Frames that a clip may be sampled from.

  Attributes:
    paths: Relative to the root; one for colour, two (horizontal, vertical) for flow.
      Folders of ``frame_%010d.jpg``, or videos.
    count: Frames that may be sampled. The references never use the last one.
    first: Number of the file of frame 0; videos: 0.
    shift: -1 for videos: the references show frame ``max(i - 1, 0)`` for ``i``.
    stored: Frames in each video; empty for folders.
  """

  paths: tuple[str, ...]
  count: int
  first: int = 0
  shift: int = 0
  stored: tuple[int, ...] = ()

  @property
  def is_video(self) -> bool:
    return bool(self.stored)

  def places(self, sampled: np.ndarray) -> np.ndarray:
    """Which frame of the clip, from 0, is shown for each sampled index."""
    return np.maximum(sampled + self.shift, 0)

  @property
  def shown(self) -> int:
    """Frames that can ever be shown, from 0 on."""
    return max(self.count + self.shift, 1)


class Sound(NamedTuple):
  """A wav file, or a video for its sound; and which seconds belong to the clip.

  ``stop`` None: the sound follows the sampled frames, at `FRAMES_PER_SECOND`.
  """

  path: str
  start: float = 0.0
  stop: float | None = None


class Clip(NamedTuple):
  """One annotated action.

  Attributes:
    id: ``<domain>/<split>/<name>``, unique.
    index: Stable number, whatever was dropped: position in the published lists.
    domain: Position in the table's domain names.
    split: One of `SPLITS`.
    label: Class.
    source: Recording it was cut from.
    where: Split file and row, for messages.
    video: Colour frames, or None.
    audio: Sound, or None.
    flow: Optical flow, or None.
  """

  id: str
  index: int
  domain: int
  split: str
  label: int
  source: str
  where: str
  video: Frames | None = None
  audio: Sound | None = None
  flow: Frames | None = None


@dataclasses.dataclass(frozen=True)
class ClipTable:
  """All clips of a set.

  Attributes:
    name: "epic" or "hac".
    clips: The clips; a row number is a position in here.
    class_names: K names.
    domain_names: Names of the domains.
    dedup: Whether clips that the test list repeats from the train list are left out.
    skipped: Ids of the clips left out because of their files.
  """

  name: str
  clips: tuple[Clip, ...]
  class_names: tuple[str, ...]
  domain_names: tuple[str, ...]
  dedup: bool
  skipped: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.clips)

  @property
  def version(self) -> str:
    """Hash of the content, for records."""
    return hashlib.sha256(self._json().encode()).hexdigest()[:12]

  def rows(self, domains: Sequence[str], splits: Sequence[str] = SPLITS) -> np.ndarray:
    """Rows of some domains and splits, in order.

    Raises:
      DataError: An unknown name.
    """
    for what, names, known in (
      ("domain", domains, self.domain_names),
      ("split", splits, SPLITS),
    ):
      unknown = [n for n in names if n not in known]
      if unknown:
        raise DataError(f"{self.name}: {what} {unknown[0]!r} is not one of {known}.")
    wanted = {self.domain_names.index(d) for d in domains}
    return np.array(
      [
        i
        for i, clip in enumerate(self.clips)
        if clip.domain in wanted and clip.split in splits
      ],
      np.int32,
    )

  def save(self, path: str | os.PathLike) -> None:
    """Writes the table as JSON, atomically."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, self._json())

  def _json(self) -> str:
    content = dataclasses.asdict(self) | {"format": FORMAT}
    content["clips"] = [_plain(clip) for clip in self.clips]
    return json.dumps(content, ensure_ascii=False, indent=0)


def load_table(path: str | os.PathLike) -> ClipTable:
  """Reads a table that `ClipTable.save` wrote.

  Raises:
    DataError: No such file, or not such a table; or it names a path outside its root.
  """
  path = pathlib.Path(path).expanduser()
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.pop("format") != FORMAT:
      raise DataError(f"{path}: written by another version; run data_prep.audit again.")
    clips = tuple(_clip(c) for c in content.pop("clips"))
    names = ("class_names", "domain_names", "skipped")
    content |= {key: tuple(map(str, content[key])) for key in names}
    return ClipTable(clips=clips, **content)
  except OSError as error:
    raise DataError(
      f"{path}: cannot be read ({error.strerror}). `python -m data_prep.audit` writes "
      "it (docs/video_data.md)."
    ) from error
  except DataError:
    raise
  except Exception as error:  # Whatever else stands in it.
    what = f"{type(error).__name__}: {reason(error)}"
    raise DataError(f"{path}: not a table of clips ({what}).") from error


def check_name(name: str, where: str) -> str:
  """A file or folder name from a list that somebody else wrote.

  Args:
    name: The name.
    where: File and row, for the message.

  Returns:
    The name.

  Raises:
    DataError: If it is more than one name: a separator, "..", a control character.

  Example:
    >>> check_name("-a b.mp4", "list.csv row 1")
    '-a b.mp4'
    >>> check_name("../x", "list.csv row 2")
    Traceback (most recent call last):
    mer_dg.data.dataset.DataError: list.csv row 2: '../x' is not a plain file name.
  """
  if name in ("", ".", "..") or re.search(r"[/\\:\x00-\x1f\x7f]", name):
    raise DataError(f"{where}: {name!r} is not a plain file name.")
  return name


def _check_path(path: Any) -> str:
  for name in str(path).split("/"):
    check_name(name, "table of clips")
  return str(path)


def _plain(clip: Clip) -> dict[str, Any]:
  """A clip as dicts of JSON."""
  content = clip._asdict()
  for m in MODALITIES:
    if content[m] is not None:
      content[m] = content[m]._asdict()
  return content


def _clip(content: dict[str, Any]) -> Clip:
  parts: dict[str, Any] = {}
  for m in ("video", "flow"):
    value = content.pop(m)
    if value is not None:
      value["paths"] = tuple(map(_check_path, value["paths"]))
      value["stored"] = tuple(map(int, value["stored"]))
      value = Frames(**value)
    parts[m] = value
  sound = content.pop("audio")
  if sound is not None:
    _check_path(sound["path"])
    sound = Sound(**sound)
  return Clip(**content, **parts, audio=sound)
