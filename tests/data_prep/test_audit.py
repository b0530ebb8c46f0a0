"""The audit of tiny trees, whole and damaged."""

import dataclasses
import shutil

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("av")

import av

from data_prep import audit
from data_prep.video_scan import LISTED
from data_prep.video_splits import PUBLISHED, PUBLISHED_REPEATS
from mer_dg.data.dataset import DataError
from mer_dg.data.stream import stream_blocks
from mer_dg.data.video.clips import to_short_side
from mer_dg.data.video.dataset import load_video
from mer_dg.data.video.files import read_video
from mer_dg.data.video.reader import ClipReader
from mer_dg.data.video.sources import TreeMedia, TreeSource, record_of
from mer_dg.data.video.table import Sound, load_table
from tests.data_prep import _trees


@pytest.fixture
def as_published(monkeypatch, epic_root, hac_root):
  """Says that the tiny trees are what was published."""
  for name, root in (("epic", epic_root), ("hac", hac_root)):
    listed = audit.read_splits(name, root, dedup=False)
    monkeypatch.setitem(PUBLISHED, name, audit._counts(listed))
  monkeypatch.setitem(PUBLISHED_REPEATS, "hac", 1)


def _copy(root, tmp_path):
  return shutil.copytree(root, tmp_path / "copy")


@pytest.mark.usefixtures("as_published")
def test_whole_trees_pass_and_are_listed(epic_root, hac_root, tmp_path, capsys):
  for name, root, clips in (("epic", epic_root, 9), ("hac", hac_root, 9)):
    out = tmp_path / f"{name}.json"
    audit.main([f"--set={name}", f"--root={root}", f"--out={out}", "--decode"])
    table = load_table(out)
    assert len(table) == clips
    assert table.dedup
    assert not table.skipped
    printed = capsys.readouterr().out
    assert f"{clips} clips, version {table.version}" in printed
    assert "unusable: 0" in printed
  assert "train list of its domain: 1 (published: 1), left out" in printed


@pytest.mark.usefixtures("as_published")
def test_lengths_of_videos(hac_root):
  table, problems, _, good = audit.audit("hac", hac_root)
  assert good
  assert not problems
  clip = table.clips[0]  # 70 frames; the last is never used.
  assert (clip.video.stored, clip.video.count, clip.video.shown) == ((70,), 69, 68)
  assert (clip.flow.stored, clip.flow.count) == ((70, 69), 69)
  kept, *_ = audit.audit("hac", hac_root, dedup=False)
  assert len(kept) == 10


def test_other_counts_fail_and_write_nothing(hac_root, tmp_path, capsys):
  out = tmp_path / "clips.json"
  command = ["--set=hac", f"--root={hac_root}", f"--out={out}"]
  with pytest.raises(SystemExit, match="not as published"):
    audit.main(command)
  assert not out.exists()
  printed = capsys.readouterr().out
  row = next(line for line in printed.splitlines() if line.startswith("animal   train"))
  assert row.split()[:5] == ["animal", "train", "730", "2", "2"]
  assert row.endswith("1 1 0 0 0 0 0   published: 103 117 123 112 109 93 73")
  audit.main([*command, "--on_error=skip", "--no_dedup"])
  assert len(load_table(out)) == 10


# What is done to a file of the copied tree, the clips that it concerns, and what the
# audit says.
_FILES = {
  "epic": {
    "frame": (
      "rgb/train/D1/P08_01/frame_0000000033.jpg",
      ["D1/train/2"],
      r"1 of 64 frames missing, the first is frame_0000000033.jpg \[.*row 2\]",
    ),
    "flow": (
      "flow/test/D2/P01_02/v",
      ["D2/test/6"],
      r"flow/test/D2/P01_02/v: No such file or directory",
    ),
  },
  "hac": {
    "video": (
      "animal/videos/-b c.mp4",
      ["animal/train/-b c.mp4"],
      r"-b c.mp4: .*No such file",
    ),
    "flow": (
      "human/flow/a-002_flow_y.mp4",
      ["human/test/a-002.mp4"],
      r"a-002_flow_y.mp4: .*No such file",
    ),
  },
}


@pytest.mark.usefixtures("as_published")
@pytest.mark.parametrize(("name", "what"), [(n, w) for n in _FILES for w in _FILES[n]])
def test_missing_files(request, tmp_path, capsys, name, what):
  root = _copy(request.getfixturevalue(f"{name}_root"), tmp_path)
  file, ids, message = _FILES[name][what]
  (root / file).rename(root / "gone")
  command = [f"--set={name}", f"--root={root}"]
  with pytest.raises(SystemExit, match="not as published"):
    audit.main(command)
  assert not (root / "clips.json").exists()
  audit.main([*command, "--on_error=skip"])
  table = load_table(root / "clips.json")
  assert list(table.skipped) == ids
  assert len(table) == 9 - len(ids)
  assert not set(ids) & {clip.id for clip in table.clips}
  printed = capsys.readouterr().out
  assert f"unusable: {len(ids)}" in printed
  table, problems, _, good = audit.audit(name, root)
  assert not good
  with pytest.raises(DataError, match=message):
    raise DataError(str(problems[0]))


@pytest.mark.usefixtures("as_published")
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_clip_without_its_sound_file_is_kept(epic_root, tmp_path, capsys, damage):
  root = _copy(epic_root, tmp_path)
  wav = root / "rgb" / "train" / "D3" / "P22_01.wav"
  if damage == "missing":
    wav.unlink()
  else:
    wav.write_bytes(wav.read_bytes()[:-1000])
  with pytest.raises(SystemExit, match="not as published"):
    audit.main(["--set=epic", f"--root={root}"])
  audit.main(["--set=epic", f"--root={root}", "--on_error=skip"])
  printed = capsys.readouterr().out
  assert "unusable: 0\nkept, but the sound: 2\n" in printed
  assert "P22_01.wav: c" in printed
  assert "; kept without sound [D3/train/7, " in printed
  table = load_table(root / "clips.json")
  assert len(table) == 9
  assert not table.skipped
  without = [clip for clip in table.clips if clip.audio is None]
  assert [clip.id for clip in without] == ["D3/train/7", "D3/train/8"]
  row = ClipReader(TreeSource(table, root), modalities=("video", "audio"), train=False)[
    table.clips.index(without[0])
  ]
  assert row["present"] == {"video": True, "audio": False}
  # With nothing else in use nothing is left of the clip.
  table, problems, *_ = audit.audit("epic", root, modalities=("audio",))
  assert len(table) == 7
  assert not any(p.kept for p in problems)


@pytest.mark.usefixtures("as_published")
def test_the_sound_track_of_a_video_stands_in(hac_root, tmp_path):
  root = _copy(hac_root, tmp_path)
  film = root / "human" / "videos" / "a-001.mp4"
  frames = np.stack(list(read_video(film, np.arange(70), 3)))
  hertz = 440 * np.arange(44_100 * 3) / 44_100
  _trees.write_mp4(film, frames, sound=8000 * np.sin(2 * np.pi * hertz))
  (root / "human" / "audio" / "a-001.wav").unlink()
  table, problems, report, good = audit.audit("hac", root, decode=True)
  assert not good
  assert "kept, but the sound: 1" in report
  assert "the sound track of its video is used" in str(problems[0])
  clip = next(c for c in table.clips if c.id == "human/train/a-001.mp4")
  assert clip.audio == Sound("human/videos/a-001.mp4")
  row = ClipReader(TreeSource(table, root), modalities=("video", "audio"), train=False)[
    table.clips.index(clip)
  ]
  assert row["present"]["audio"]
  heard = row["inputs"]["audio"][:32_000].astype(float)
  assert np.abs(np.fft.rfft(heard)).argmax() / 2 == pytest.approx(440, abs=1)
  # A prepared set keeps it.
  record = record_of(table, table.clips.index(clip), TreeSource(table, root).open(0))
  assert len(record["audio"]) > 40_000


def _short_flow(path):
  frames = np.stack(list(read_video(path, np.arange(30), 3)))
  _trees.write_mp4(path, frames)


def _small_flow(path):
  frames = np.stack(list(read_video(path, np.arange(69), 3)))
  _trees.write_mp4(path, frames[:, ::2, ::2])


@pytest.mark.usefixtures("as_published")
@pytest.mark.parametrize(
  ("change", "message"),
  [
    (_short_flow, "the two directions of the flow have 70 and 30 frames"),
    (_small_flow, "the two directions of the flow are 64x72 and 32x36"),
  ],
)
def test_two_ways_of_a_flow_that_do_not_belong_together(
  hac_root, tmp_path, change, message
):
  root = _copy(hac_root, tmp_path)
  whole, *_ = audit.audit("hac", root)
  change(root / "human" / "flow" / "a-001_flow_y.mp4")
  _, problems, *_ = audit.audit("hac", root)
  assert [p.clip for p in problems] == ["human/train/a-001.mp4"]
  assert message in problems[0].what
  # Nor does a reader scale and repeat them, if its list is older than the damage.
  clip = whole.clips[0]
  stored = (70, 30) if "frames" in message else clip.flow.stored
  clip = clip._replace(flow=clip.flow._replace(stored=stored))
  with pytest.raises(DataError, match=message):
    TreeMedia(clip, root, None).frames("flow", np.arange(4))


@pytest.mark.usefixtures("as_published")
def test_frames_of_a_flow_that_differ_in_size(epic_root, tmp_path):
  root = _copy(epic_root, tmp_path)
  folder = root / "flow" / "test" / "D2" / "P01_02" / "v"
  count = len(list(folder.iterdir()))
  shutil.rmtree(folder)
  _trees.write_jpegs(folder, range(count), (300, 256), 1, seed=0)
  _, problems, *_ = audit.audit("epic", root)
  assert "directions of the flow are 256x300 and 300x256" in problems[0].what


@pytest.mark.usefixtures("as_published")
def test_decoding_finds_a_video_that_breaks_in_the_middle(hac_root, tmp_path, capsys):
  root = _copy(hac_root, tmp_path)
  _break(root / "animal" / "videos" / "a-001.mp4", 35)
  audit.main(["--set=hac", f"--root={root}"])  # All its packets are there.
  assert "frames were not decoded (--decode)" in capsys.readouterr().out
  _, problems, report, good = audit.audit("hac", root, decode=True)
  assert not good
  assert [p.clip for p in problems] == ["animal/train/a-001.mp4"]
  assert "not decoded" not in report


def _break(path, frame):
  """Zeros instead of what belongs to one frame."""
  with av.open(str(path)) as container:
    packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
  place, size = packets[frame]
  data = bytearray(path.read_bytes())
  data[place + 5 : place + size] = bytes(size - 5)
  path.write_bytes(data)


@pytest.mark.usefixtures("as_published")
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_goes_on_without_a_damaged_clip(hac_root, tmp_path, workers):
  root = _copy(hac_root, tmp_path)
  dataset_of = lambda: load_video("hac", root)
  audit.main(["--set=hac", f"--root={root}", "--on_error=skip"])
  whole = dataset_of().select_modalities(["video"])
  bad = [c.id for c in whole.source.table.clips].index("animal/train/a-001.mp4")
  _break(root / "animal" / "videos" / "a-001.mp4", 4)
  dataset = dataset_of().select_modalities(["video"])
  rows = np.arange(4, dtype=np.int32).reshape(1, 4) + bad - 1
  blocks = lambda d, share: next(
    stream_blocks(
      dataclasses.replace(d, max_damaged=share).reader(train=False),
      rows,
      np.zeros_like(rows),
      np.ones_like(rows, bool),
      num_workers=workers,
    )
  )
  # Of the worker processes each meets some: counted and told here, once.
  with pytest.warns(RuntimeWarning, match=r"a-001.mp4: cannot be .*animal.*left out"):
    batch = blocks(dataset, 0.2)
  assert list(dataset.damaged) == ["animal/train/a-001.mp4"]
  assert dataset.num_damaged == 1
  assert batch["mask"].tolist() == [True, False, True, True]
  assert batch["present"]["video"].tolist() == [True, False, True, True]
  assert not batch["inputs"]["video"][1].any()
  # One of nine is more than one in a hundred.
  with pytest.raises(DataError, match="1 damaged clips of 9, 0 are let pass.*--decode"):
    blocks(dataset_of().select_modalities(["video"]), 0.01)


@pytest.mark.usefixtures("as_published")
def test_frames_as_they_are_decoded(hac_root, tmp_path):
  """The references train on frames that no JPEG encoder has seen."""
  root = _copy(hac_root, tmp_path)
  audit.main(["--set=hac", f"--root={root}"])
  usual, exact = load_video("hac", root), load_video("hac", root, reencode=False)
  assert exact.version == f"as_decoded/{usual.version}"
  a, b = (
    d.select_modalities(["video"]).reader(train=False)[0]["inputs"]["video"]
    for d in (usual, exact)
  )
  assert 0 < np.abs(a.astype(int) - b).mean() < 2
  film = root / usual.source.table.clips[0].video.paths[0]
  shown = to_short_side(np.stack(list(read_video(film, np.array([2]), 3))))
  np.testing.assert_array_equal(b[0], shown[0, 16:240, 32:256])


@pytest.mark.usefixtures("as_published")
def test_only_the_modalities_in_use_are_looked_at(epic_root, tmp_path):
  root = _copy(epic_root, tmp_path)
  shutil.rmtree(root / "flow")
  assert not audit.audit("epic", root)[3]
  table, _, _, good = audit.audit("epic", root, modalities=("video", "audio"))
  assert good
  assert all(clip.flow is None and clip.video is not None for clip in table.clips)
  with pytest.raises(DataError, match="modalities=\\('smell',\\) must be"):
    audit.audit("epic", root, modalities=("smell",))


@pytest.mark.usefixtures("as_published")
def test_decoding_finds_damaged_frames(epic_root, tmp_path):
  root = _copy(epic_root, tmp_path)
  frame = root / "rgb" / "train" / "D2" / "P01_01" / "frame_0000000007.jpg"
  frame.write_bytes(frame.read_bytes()[:-500])
  assert audit.audit("epic", root)[3]  # Its header and its name are all right.
  _, problems, _, good = audit.audit("epic", root, decode=True)
  assert not good
  assert "frame_0000000007.jpg: not a whole image" in str(problems[0])
  assert str(problems[0]).endswith("D2_train.csv row 1]")


@pytest.mark.parametrize(
  ("name", "clips", "row"),
  [
    ("epic", 10_094, "D3 test 974 974 0 241 280 102 71 245 29 1 5"),
    ("hac", 3357, "animal train 730 730 0 103 117 123 112 109 93 73"),
  ],
)
def test_real_lists_without_media(shared_data, name, clips, row):
  table, problems, report, good = audit.audit(name, shared_data / f"{name}_splits")
  assert not good
  assert (len(table), len(problems)) == (0, clips)
  # All counts are as published: no row ends with what it should be.
  assert row.split() in [line.split() for line in report.splitlines()]
  assert not [x for x in report.splitlines() if "   published: " in x]
  if name == "hac":  # The 24, and ten animal clips of four recordings.
    assert "train list has too: 34" in report
    assert "train list of its domain: 24 (published: 24), left out" in report
  else:
    assert "listed twice in one list, kept: 2" in report
  assert f"and {clips - LISTED} more" in report
