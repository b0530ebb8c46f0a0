"""EPIC-Kitchens and HAC: a dataset whose inputs stay on disk."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np

from mer_dg.contracts import Batch, InputSpec
from mer_dg.data.av_digits import ENVIRONMENT
from mer_dg.data.dataset import SPLITS, ArrayDataset, DataError, Dataset
from mer_dg.data.video.files import JPEG_QUALITY
from mer_dg.data.video.reader import (
  MAX_DAMAGED,
  ClipReader,
  device_inputs,
  input_specs,
)
from mer_dg.data.video.sources import (
  TABLE_FILE,
  PreparedSource,
  TreeSource,
  VideoSource,
  available,
)
from mer_dg.data.video.table import MODALITIES

# Where a set lies in the data folder: prepared, or as it was published.
FOLDERS = {"epic": ("epic_mmsada", "EPIC-KITCHENS"), "hac": ("hac_video", "HAC")}
VIDEO_SETS = tuple(FOLDERS)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class VideoDataset(Dataset):
  """Labels, domains and splits of clips; what they show is read when it is needed.

  Attributes:
    source: Where the media are; row i is clip i of its table.
    chosen: Modalities in use, in the order video, audio, flow.
    sync_augment: As for `ClipReader`.
    max_damaged: As for `ClipReader`.
    damaged: ``{id: what is wrong}`` of the clips that readers of this process met and
      left out, for records.
  """

  source: VideoSource
  chosen: tuple[str, ...]
  sync_augment: bool = False
  max_damaged: float = MAX_DAMAGED
  damaged: dict[str, str] = dataclasses.field(default_factory=dict)

  on_disk = True

  @property
  def specs(self) -> dict[str, InputSpec]:
    return input_specs(self.chosen)

  @property
  def tags(self) -> dict[str, str]:
    """Whether test clips that a train list has too are left out."""
    return {"data.dedup": str(self.source.table.dedup)}

  @property
  def num_damaged(self) -> int:
    return len(self.damaged)

  def select_modalities(self, modalities: Sequence[str]) -> VideoDataset:
    """The set with some modalities; their order stays video, audio, flow."""
    ClipReader(self.source, modalities=modalities, train=False)  # Checks the names.
    chosen = tuple(m for m in MODALITIES if m in modalities)
    return dataclasses.replace(self, chosen=chosen)

  def reader(
    self, *, train: bool, seed: int = 0, at: float | None = None
  ) -> ClipReader:
    """Rows of the modalities in use; see `ClipReader`."""
    return ClipReader(
      self.source,
      modalities=self.chosen,
      train=train,
      seed=seed,
      sync_augment=self.sync_augment,
      at=at,
      damaged=self.damaged,
      max_damaged=self.max_damaged,
    )

  def in_memory(self) -> ArrayDataset:
    raise DataError(
      f"config.data.name={self.name!r}: videos do not fit in memory; only a single run "
      "trains on them. For a table or a diagnosis, `python -m "
      "data_prep.extract_features` makes a file for configs/features.py."
    )

  def scaling(self, rows: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """None: `device_inputs` scales as the published networks expect it."""
    del rows
    return {}

  def device_inputs(
    self, batch: Batch, *, key: jax.Array | None = None, epoch: Any = 0
  ) -> dict[str, Any]:
    return device_inputs(batch, key=key, epoch=epoch)


def load_video(
  name: str,
  path: str | os.PathLike = "",
  *,
  reencode: bool = True,
  sync_augment: bool = False,
  max_damaged: float = MAX_DAMAGED,
) -> VideoDataset:
  """EPIC-Kitchens or HAC, as `data_prep.audit` or `data_prep.video` left it.

  Args:
    name: One of `VIDEO_SETS`.
    path: A prepared set, or the published folder with its ``clips.json``. Without one
      the folders of `FOLDERS` in ``MER_DG_DATA`` are looked for, the prepared one
      first.
    reencode: Show frames of another size than 256 after JPEG, as a prepared set stores
      them. False shows them as they are decoded, which is what the references train
      on, and is another version of the data.
    sync_augment: As for `ClipReader`.
    max_damaged: As for `ClipReader`.

  Returns:
    The set with all modalities that its clips have.

  Raises:
    DataError: No such folder, no list of clips in it, or one of another set; or a
      prepared set of videos with ``reencode=False``.
  """
  source = _source(name, _folder(name, path), reencode)
  table = source.table
  if table.name != name:
    raise DataError(f"{path or name}: holds the set {table.name!r}, not {name!r}.")
  if not table.clips:
    raise DataError(f"{path or name}: the list of clips is empty.")
  recordings = [f"{clip.domain}/{clip.source}" for clip in table.clips]
  column = lambda field: np.array([getattr(c, field) for c in table.clips], np.int32)
  return VideoDataset(
    name=name,
    label=column("label"),
    domain=column("domain"),
    index=column("index"),
    split=np.array([SPLITS.index(c.split) for c in table.clips], np.int8),
    group=np.unique(recordings, return_inverse=True)[1].astype(np.int64),
    class_names=table.class_names,
    domain_names=table.domain_names,
    version=table.version if reencode else f"as_decoded/{table.version}",
    source=source,
    chosen=available(table),
    sync_augment=sync_augment,
    max_damaged=max_damaged,
  )


def _folder(name: str, path: str | os.PathLike) -> pathlib.Path:
  if path:
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
      raise DataError(f"config.data.path={str(path)!r} is not a folder.")
    return folder
  root = os.environ.get(ENVIRONMENT, "")
  tried = [pathlib.Path(root).expanduser() / f for f in FOLDERS[name]] if root else []
  for folder in tried:
    if folder.is_dir():
      return folder
  looked = f"; {', '.join(map(str, tried))} are not there" if tried else ""
  raise DataError(
    f"{name}: no data folder. Give it (config.data.path), or set {ENVIRONMENT} to the "
    f"folder that holds {' or '.join(FOLDERS[name])}{looked}."
  )


def _source(name: str, folder: pathlib.Path, reencode: bool) -> VideoSource:
  """The published folder if its list of clips is there alone, else a prepared set."""
  table = folder / TABLE_FILE
  if table.is_file() and not (folder / "features.json").is_file():
    return TreeSource(table, folder, jpeg_quality=JPEG_QUALITY if reencode else None)
  try:
    source = PreparedSource(folder)
  except DataError as error:
    raise DataError(
      f"{error} A published folder needs its list of clips first: `python -m "
      f"data_prep.audit --set={name} --root={folder}` (docs/video_data.md)."
    ) from error
  films = (f for c in source.table.clips for f in (c.video, c.flow) if f is not None)
  if not reencode and any(f.is_video for f in films):
    raise DataError(
      f"{folder}: holds the frames of videos as JPEG; config.data.reencode=False reads "
      "them from the published folder only."
    )
  return source
