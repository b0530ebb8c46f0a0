"""Video sets as datasets: rows, splits, folders, evaluation streams."""

import dataclasses
import shutil

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("PIL")

from data_prep import audit
from mer_dg.data.arrays import eval_blocks
from mer_dg.data.dataset import DataError
from mer_dg.data.splits import leave_one_domain_out, target_alone
from mer_dg.data.stream import stream_blocks
from mer_dg.data.video.clips import VIDEO
from mer_dg.data.video.dataset import load_video
from mer_dg.data.video.reader import ClipReader
from mer_dg.data.video.sources import TreeSource
from mer_dg.data.video.table import Clip, ClipTable, Frames

ALL = ("video", "audio", "flow")


@pytest.fixture(scope="module")
def listed(epic_root, tmp_path_factory):
  """A copy of the tree that has its list of clips."""
  root = shutil.copytree(epic_root, tmp_path_factory.mktemp("listed") / "epic")
  audit.audit("epic", root)[0].save(root / "clips.json")
  return root


@pytest.fixture(scope="module")
def epic(listed):
  return load_video("epic", listed)


def _ids(dataset, rows):
  return [dataset.source.table.clips[row].id for row in rows]


def test_rows_of_a_task_are_those_of_the_published_lists(epic):
  """Source train and test lists; of the target the test list alone."""
  split = leave_one_domain_out(epic, "D3", split_seed=0, val_fraction=0.2)
  assert split.sources == ("D1", "D2")
  assert _ids(epic, split.train["D1"]) == ["D1/train/1", "D1/train/2"]
  assert _ids(epic, split.val["D2"]) == ["D2/test/6"]
  assert _ids(epic, split.test) == ["D3/test/9"]
  # HAC is tested on both lists of the target.
  whole = dataclasses.replace(epic, target_rows="all")
  split = leave_one_domain_out(
    whole, "D3", split_seed=0, val_fraction=0.2, drop_unseen_classes=True
  )
  assert _ids(epic, split.train["D1"]) == ["D1/train/1", "D1/train/2"]
  assert _ids(epic, split.test) == ["D3/train/7", "D3/test/9"]  # Class 3 is unseen.


def test_the_upper_bound_trains_on_the_targets_train_list(epic):
  apart = dataclasses.replace(epic, group=np.arange(9))  # Not one recording.
  split = target_alone(apart, "D3", split_seed=0, val_fraction=0.5)
  rows = [*split.train["D3"], *split.val["D3"]]
  assert sorted(_ids(epic, rows)) == ["D3/train/7", "D3/train/8"]
  assert _ids(epic, split.test) == ["D3/test/9"]


def test_facts_come_from_the_list_of_clips(epic):
  table = epic.source.table
  assert epic.modalities == ALL
  assert (epic.version, epic.tags) == (table.version, {"data.dedup": "True"})
  assert epic.index.tolist() == [clip.index for clip in table.clips]
  assert epic.label.tolist() == [0, 1, 0, 1, 2, 1, 2, 3, 2]
  # Rows of one recording stay together: train and test are two in each kitchen.
  assert len(np.unique(epic.group)) == 6
  assert epic.num_classes == 8
  with pytest.raises(DataError, match="videos do not fit in memory"):
    epic.in_memory()


def test_modalities_keep_their_order_and_must_be_there(epic):
  assert epic.select_modalities(["flow", "video"]).modalities == ("video", "flow")
  with pytest.raises(DataError, match=r"modalities=\('text',\) must be one or more of"):
    epic.select_modalities(["text"])
  silent = dataclasses.replace(
    epic.source.table,
    clips=tuple(clip._replace(audio=None) for clip in epic.source.table.clips),
  )
  source = TreeSource(silent, epic.source.root)
  mute = dataclasses.replace(epic, source=source, chosen=("video", "flow"))
  with pytest.raises(DataError, match=r"'audio'.*one or more of \('video', 'flow'\)"):
    mute.select_modalities(["video", "audio"])


def test_folders(epic, listed, tmp_path, monkeypatch):
  monkeypatch.delenv("MER_DG_DATA", raising=False)
  with pytest.raises(DataError, match=r"config.data.path.*EPIC-KITCHENS"):
    load_video("epic")
  monkeypatch.setenv("MER_DG_DATA", str(tmp_path))
  with pytest.raises(DataError, match=r"epic_mmsada, .*EPIC-KITCHENS are not there"):
    load_video("epic")
  (tmp_path / "EPIC-KITCHENS").symlink_to(listed)
  assert load_video("epic").version == epic.version
  with pytest.raises(DataError, match=r"config.data.path='.*gone' is not a folder"):
    load_video("epic", tmp_path / "gone")
  with pytest.raises(DataError, match=r"data_prep.audit --set=hac --root="):
    load_video("hac", tmp_path / "EPIC-KITCHENS" / "rgb")
  with pytest.raises(DataError, match=r"holds the set 'epic', not 'hac'"):
    load_video("hac", listed)
  empty = dataclasses.replace(epic.source.table, clips=())
  (tmp_path / "none").mkdir()
  empty.save(tmp_path / "none" / "clips.json")
  with pytest.raises(DataError, match="the list of clips is empty"):
    load_video("epic", tmp_path / "none")


@pytest.mark.parametrize(("threads", "workers"), [(0, 0), (2, 0)])
def test_evaluation_blocks_come_once_and_in_order(epic, threads, workers):
  reader = epic.select_modalities(["audio"]).reader(train=False)
  rows, mask = eval_blocks(np.array([8, 0, 3, 4, 1]), 2)
  domain = np.array([[-1, 0], [1, 1], [0, -1]], np.int32)
  stream = stream_blocks(
    reader, rows, domain, mask, num_threads=threads, num_workers=workers
  )
  batches = list(stream)
  stream.close()
  assert [b["index"].tolist() for b in batches] == [[8, 0], [3, 4], [1, 0]]
  assert [b["domain"].tolist() for b in batches] == domain.tolist()
  assert [b["mask"].tolist() for b in batches] == mask.tolist()
  assert batches[2]["present"]["audio"].tolist() == [True, False]  # Padding.
  expected = reader.read(3, 0)["inputs"]["audio"]
  np.testing.assert_array_equal(batches[1]["inputs"]["audio"][0], expected)


def test_windows_of_evaluation_elsewhere_than_in_the_middle():
  """Of 84 frames a window of 64 fits in 21 places, 0 to 20."""
  asked = []

  class Source:
    table = ClipTable(
      "epic",
      (Clip("c", 0, 0, "train", 0, "r", "w", video=Frames(("p",), 84)),),
      ("x", "y"),
      ("d",),
      True,
    )

    def open(self, row):
      return self

    def frames(self, modality, sampled):
      asked.append(int(sampled[0]))
      return np.zeros((VIDEO.length, 256, 256, 3), np.uint8)

  for at in (None, 0.5, 0.0, 0.25, 0.999):
    ClipReader(Source(), modalities=["video"], train=False, at=at).read(0, 0)
  assert asked == [10, 10, 0, 5, 20]
