"""The audit of tiny trees, whole and damaged."""

import shutil

import pytest

pytest.importorskip("PIL")
pytest.importorskip("av")

from data_prep import audit
from data_prep.video_splits import PUBLISHED, PUBLISHED_REPEATS
from mer_dg.data.dataset import DataError
from mer_dg.data.video_table import load_table


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
    "sound": (
      "rgb/train/D3/P22_01.wav",
      ["D3/train/7", "D3/train/8"],
      r"P22_01.wav: cannot be read \(No such file",
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
  assert f"and {clips - audit.LISTED} more" in report
