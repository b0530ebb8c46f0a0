"""TFDS builders of EPIC-Kitchens (MM-SADA) and HAC; no TensorFlow needed.

  import tensorflow_datasets as tfds
  import data_prep.video_builders
  builder = tfds.builder("hac_video", data_dir=DIR, file_format="array_record")
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=HAC))

One split per domain and list, e.g. ``human_train``. ``python -m data_prep.video``
writes the same records in the same place, in parallel, and goes on where it was
interrupted; a builder then finds the set prepared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_prep.video_scan import scan
from data_prep.video_splits import (
  EPIC_CLASSES,
  EPIC_DOMAINS,
  HAC_CLASSES,
  HAC_DOMAINS,
  read_splits,
)
from mer_dg.data.dataset import DataError
from mer_dg.data.video.sources import (
  TABLE_FILE,
  TreeSource,
  record_of,
  split_name,
)

VERSION = "1.0.0"
FRAME_KEYS = ("video", "flow_u", "flow_v")


def features(name: str) -> tfds.features.FeaturesDict:
  """Features of a record of one of the sets; see `sources.record_of`."""
  classes, domains = {
    "epic": (EPIC_CLASSES, EPIC_DOMAINS),
    "hac": (HAC_CLASSES, HAC_DOMAINS),
  }[name]
  offsets = lambda: tfds.features.Tensor(shape=(None,), dtype=np.int64)
  made: dict[str, Any] = {
    "id": tfds.features.Text(),
    "index": np.int32,
    "label": tfds.features.ClassLabel(names=classes),
    "domain": tfds.features.ClassLabel(names=domains),
    "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16),
  }
  for key in FRAME_KEYS:
    made[key] = tfds.features.Text()  # Bytes: JPEGs behind each other.
    made[f"{key}_end"] = offsets()
  return tfds.features.FeaturesDict(made)


class _VideoBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """What the two sets share."""

  VERSION = tfds.core.Version(VERSION)
  SET = ""

  def _info(self) -> tfds.core.DatasetInfo:
    # Not dataset_info_from_configs: that needs files beside an importable package.
    return tfds.core.DatasetInfo(
      builder=self,
      description="See docs/video_data.md of mer-dg.",
      features=features(self.SET),
      disable_shuffling=True,  # Records in the order of the table of clips.
    )

  def _split_generators(self, dl_manager) -> Mapping[str, Any]:
    root = dl_manager.manual_dir
    table = read_splits(self.SET, root)
    table, problems = scan(table, root, workers=os.cpu_count() or 1)
    if problems:
      raise DataError(
        f"{problems[0]} ({len(problems)} clips in all); `python -m data_prep.audit` "
        "lists them, `python -m data_prep.video --on_error=skip` goes on without."
      )
    table.save(os.path.join(self.data_dir, TABLE_FILE))
    source = TreeSource(table, root)
    names = dict.fromkeys(split_name(table, clip) for clip in table.clips)
    return {name: self._generate_examples(source, name) for name in names}

  def _generate_examples(self, source: TreeSource, name: str) -> Iterator[Any]:
    for row, clip in enumerate(source.table.clips):
      if split_name(source.table, clip) == name:
        yield clip.index, record_of(source.table, row, source.open(row))


class EpicMmsada(_VideoBuilder):
  """EPIC-Kitchens, MM-SADA lists D1, D2, D3: eight verbs, three kitchens."""

  SET = "epic"
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "The folder with MM-SADA_Domain_Adaptation_Splits/, rgb/ and flow/ "
    "(docs/video_data.md)."
  )


class HacVideo(_VideoBuilder):
  """Human-Animal-Cartoon: seven actions, three domains."""

  SET = "hac"
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "The folder with HAC_Splits/, human/, animal/ and cartoon/ (docs/video_data.md)."
  )


BUILDERS = {"epic": EpicMmsada, "hac": HacVideo}
