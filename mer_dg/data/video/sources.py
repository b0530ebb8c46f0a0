"""Frames and sound of clips from the original folders or from a prepared set.

Both give the same arrays: a prepared set stores frames whose shorter side is 256 as
they are and others scaled and encoded anew, and the reader of the original folders
sends the latter through the same encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import os
import pathlib
from typing import Any, Protocol

import numpy as np

from mer_dg.data.dataset import DataError
from mer_dg.data.video.clips import stack_flow, to_short_side
from mer_dg.data.video.files import (
  JPEG_QUALITY,
  decode_jpeg,
  jpeg_size,
  read_bytes,
  read_sound,
  read_video,
  stored_frame,
  stored_jpeg,
  video_size,
  wav_range,
)
from mer_dg.data.video.spectrogram import SAMPLES
from mer_dg.data.video.table import MODALITIES, Clip, ClipTable, Frames, load_table

TABLE_FILE = "clips.json"
# Frames by which the two videos of a flow may differ, and the same as a share.
FEW_FRAMES, SHARE_OF_FRAMES = 2, 0.05


class Media(Protocol):
  """What belongs to one clip."""

  def frames(self, modality: str, sampled: np.ndarray) -> np.ndarray | None:
    """uint8 ``[T, H, W, C]``, shorter side 256, C = 3 for video and 2 for flow.

    None where the clip has no such modality.
    """
    ...

  def audio(self, start: float = 0.0, stop: float | None = None) -> np.ndarray | None:
    """int16 samples from ``start`` to ``stop`` seconds of the clip's sound; or None."""
    ...


class VideoSource(Protocol):
  """Random access to the media of the clips of a table."""

  table: ClipTable

  def open(self, row: int) -> Media: ...


# --- the original folders ------------------------------------------------------------


class TreeSource:
  """Reads from the folders as they were published.

  Args:
    table: From `data_prep.audit`; or the path of the file that it wrote.
    root: Folder that the paths of the table start from.
    jpeg_quality: Of the frames that a prepared set would encode anew (see the module).
      None shows them as they are, which saves the encoder's time.
  """

  def __init__(
    self,
    table: ClipTable | str | os.PathLike,
    root: str | os.PathLike,
    *,
    jpeg_quality: int | None = JPEG_QUALITY,
  ):
    self.table = table if isinstance(table, ClipTable) else load_table(table)
    self.root = pathlib.Path(root).expanduser()
    if not self.root.is_dir():
      raise DataError(f"root={str(root)!r} is not a folder.")
    self._quality = jpeg_quality

  def open(self, row: int) -> TreeMedia:
    return TreeMedia(self.table.clips[row], self.root, self._quality)


class TreeMedia:
  """Media of one clip in the original folders."""

  def __init__(self, clip: Clip, root: pathlib.Path, jpeg_quality: int | None):
    self._clip, self._root, self._quality = clip, root, jpeg_quality

  def frames(self, modality: str, sampled: np.ndarray) -> np.ndarray | None:
    frames: Frames | None = getattr(self._clip, modality)
    if frames is None:
      return None
    check_pair(frames, self._root)
    places, back = np.unique(frames.places(sampled), return_inverse=True)
    ways = range(len(frames.paths))
    name = f"{self._clip.id} {modality}"
    return _stack([self._images(frames, way, places) for way in ways], back, name)

  def audio(self, start: float = 0.0, stop: float | None = None) -> np.ndarray | None:
    sound = self._clip.audio
    if sound is None:
      return None
    path = self._root / sound.path
    if sound.stop is None:
      return read_sound(path, start, stop)
    begin = sound.start + start
    return read_sound(path, begin, sound.stop if stop is None else sound.start + stop)

  def jpegs(self, frames: Frames, way: int, places: np.ndarray) -> list[bytes]:
    """Frames as a prepared set stores them."""
    quality = JPEG_QUALITY if self._quality is None else self._quality
    if frames.is_video:
      return [stored_frame(f, quality) for f in self.decoded(frames, way, places)]
    channels = _channels(frames)
    names = self.names(frames, way, places)
    return [stored_jpeg(read_bytes(n), channels, n, quality) for n in names]

  def names(self, frames: Frames, way: int, places: np.ndarray) -> list[str]:
    """The file of each frame."""
    return _names(frames, self._root, way, places)

  def _images(self, frames: Frames, way: int, places: np.ndarray) -> list[np.ndarray]:
    if self._quality is None:
      images = self.decoded(frames, way, places)
      return [to_short_side(image[None])[0] for image in images]
    pairs = zip(
      self.jpegs(frames, way, places), self.names(frames, way, places), strict=True
    )
    return [decode_jpeg(data, _channels(frames), name) for data, name in pairs]

  def decoded(
    self, frames: Frames, way: int, places: np.ndarray
  ) -> Iterator[np.ndarray]:
    """Frames in the size they have, one after the other; ``places`` increase."""
    channels = _channels(frames)
    if not frames.is_video:
      for name in self.names(frames, way, places):
        yield decode_jpeg(read_bytes(name), channels, name)
      return
    # The second way of a flow may be a little shorter than the first.
    shown = np.minimum(places, frames.stored[way] - 1)
    unique, times = np.unique(shown, return_counts=True)
    images = read_video(self._root / frames.paths[way], unique, channels)
    for image, count in zip(images, times, strict=True):
      for _ in range(count):
        yield image


def _names(frames: Frames, root: pathlib.Path, way: int, places) -> list[str]:
  path = root / frames.paths[way]
  if frames.is_video:
    return [str(path)] * len(places)
  return [str(path / f"frame_{frames.first + int(p):010d}.jpg") for p in places]


def check_pair(frames: Frames, root: pathlib.Path) -> None:
  """Whether the two ways of a flow can belong together.

  Raises:
    DataError: They differ in size, or in length by more than a few frames: scaled and
      repeated they would fit, and show different things.
  """
  if len(frames.paths) < 2:
    return
  least, most = min(frames.stored, default=0), max(frames.stored, default=0)
  if most - least > max(FEW_FRAMES, SHARE_OF_FRAMES * most):
    counts = " and ".join(map(str, frames.stored))
    raise DataError(
      f"{root / frames.paths[0]}: the two directions of the flow have {counts} frames."
    )
  files = [_names(frames, root, way, [0])[0] for way in range(len(frames.paths))]
  if frames.is_video:
    sizes = [video_size(file) for file in files]
  else:
    sizes = [jpeg_size(read_bytes(file), file) for file in files]
  if len(set(sizes)) > 1:
    shapes = " and ".join(f"{h}x{w}" for h, w in sizes)
    raise DataError(f"{files[0]}: the two directions of the flow are {shapes}.")


def _channels(frames: Frames) -> int:
  """Channels of the files: colour, or one per way of the flow."""
  return 3 if len(frames.paths) == 1 else 1


def _stack(ways: list[list[np.ndarray]], back: np.ndarray, name: str) -> np.ndarray:
  """``[T, H, W, C]`` from the different frames of one way (colour) or two (flow)."""
  shapes = {image.shape for images in ways for image in images}
  if len(shapes) > 1:
    raise DataError(f"{name}: frames differ in size: {sorted(shapes)}.")
  stacks = [np.stack(images) for images in ways]
  frames = stacks[0] if len(stacks) == 1 else stack_flow(*stacks)
  return frames[back]


# --- a prepared set ------------------------------------------------------------------


class PreparedSource:
  """Reads what ``python -m data_prep.video`` wrote; no TensorFlow needed.

  Args:
    folder: ``<data_dir>/<set>/<version>``, or any parent that holds one such folder.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = _prepared_folder(pathlib.Path(folder).expanduser())
    self.table = load_table(self.folder / TABLE_FILE)
    self._records: Any = None

  def __getstate__(self):  # Worker processes open the files for themselves.
    return self.__dict__ | {"_records": None}

  def open(self, row: int) -> PreparedMedia:
    if self._records is None:
      self._records = _data_source(self.folder, self.table)
    return PreparedMedia(self.table.clips[row], self._records[row], str(self.folder))


def _prepared_folder(folder: pathlib.Path) -> pathlib.Path:
  if not folder.is_dir():
    raise DataError(f"{str(folder)!r} is not a folder.")
  for pattern in ("", "*/", "*/*/"):
    found = sorted(p.parent for p in folder.glob(pattern + TABLE_FILE))
    if len(found) == 1:
      return found[0]
    if found:
      raise DataError(f"{folder}: more than one prepared set, {list(map(str, found))}.")
  raise DataError(f"{folder}: no prepared set ({TABLE_FILE} is missing).")


def _data_source(folder: pathlib.Path, table: ClipTable):
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise DataError(
      "A prepared set needs tensorflow-datasets (not TensorFlow): "
      "pip install 'mer-dg[data]'."
    ) from error
  builder: Any = tfds.builder_from_directory(str(folder))
  names = list(dict.fromkeys(split_name(table, clip) for clip in table.clips))
  source = builder.as_data_source(split="+".join(names))
  if len(source) != len(table):
    raise DataError(f"{folder}: {len(source)} records, but the table has {len(table)}.")
  return source


def split_name(table: ClipTable, clip: Clip) -> str:
  """TFDS split of a clip: ``<domain>_<train or test>``."""
  return f"{table.domain_names[clip.domain]}_{clip.split}"


class PreparedMedia:
  """Media of one clip of a prepared set."""

  def __init__(self, clip: Clip, record: Mapping[str, Any], where: str):
    self._clip, self._record, self._where = clip, record, f"{where}: {clip.id}"
    if record["id"].decode() != clip.id:
      raise DataError(f"{self._where}: the record is of {record['id'].decode()!r}.")

  def frames(self, modality: str, sampled: np.ndarray) -> np.ndarray | None:
    frames: Frames | None = getattr(self._clip, modality)
    keys = stored_keys(modality)
    if frames is None or not len(self._record[f"{keys[0]}_end"]):
      return None
    places, back = np.unique(frames.places(sampled), return_inverse=True)
    ways = [self._images(key, places) for key in keys]
    return _stack(ways, back, f"{self._where} {modality}")

  def audio(self, start: float = 0.0, stop: float | None = None) -> np.ndarray | None:
    sound = self._clip.audio
    if sound is None:
      return None
    # A sound of its own clip begins in the record where the clip begins.
    base = 0.0 if sound.stop is None else sound.start
    first, end = wav_range(base + start, None if stop is None else base + stop)
    zero, _ = wav_range(base, None)
    last = None if end is None else end - zero
    return np.asarray(self._record["audio"], np.int16)[first - zero : last]

  def _images(self, key: str, places: np.ndarray) -> list[np.ndarray]:
    data, end = self._record[key], self._record[f"{key}_end"]
    channels = 3 if key == "video" else 1
    images = []
    for place in places:
      begin = int(end[place - 1]) if place else 0
      piece = data[begin : int(end[place])]
      images.append(decode_jpeg(piece, channels, f"{self._where} {key} {place}"))
    return images


def stored_keys(modality: str) -> tuple[str, ...]:
  """Features of a record that hold the frames of a modality."""
  return ("flow_u", "flow_v") if modality == "flow" else (modality,)


def record_of(table: ClipTable, row: int, media: TreeMedia) -> dict[str, Any]:
  """The record of a clip of the original folders, for the features of `features`.

  Frames lie behind each other in one string of bytes; ``<key>_end`` says where each
  ends. Of a sound that belongs to the clip as a whole the first ten seconds are kept,
  which is all that is ever used.
  """
  clip = table.clips[row]
  record: dict[str, Any] = {
    "id": clip.id,
    "index": clip.index,
    "label": clip.label,
    "domain": clip.domain,
  }
  for m in ("video", "flow"):
    frames: Frames | None = getattr(clip, m)
    for way, key in enumerate(stored_keys(m)):
      places = np.arange(0 if frames is None else frames.shown)
      jpegs = []
      if frames is not None:
        jpegs = media.jpegs(frames, way, places)
        names = [] if frames.is_video else media.names(frames, way, places)
        for data, name in zip(jpegs, names, strict=False):
          decode_jpeg(data, _channels(frames), name)  # Is the file whole?
      record[key] = b"".join(jpegs)
      record[f"{key}_end"] = np.cumsum([len(j) for j in jpegs], dtype=np.int64)
  samples = media.audio()
  whole = clip.audio is not None and clip.audio.stop is None
  if samples is None:
    samples = np.zeros(0, np.int16)
  record["audio"] = samples if whole else samples[:SAMPLES]
  return record


def available(table: ClipTable) -> tuple[str, ...]:
  """Modalities that at least one clip has, in canonical order."""
  has = lambda m: any(getattr(clip, m) is not None for clip in table.clips)
  return tuple(m for m in MODALITIES if has(m))
