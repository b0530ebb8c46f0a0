"""The prepared set equals the folders it came from; preparation survives accidents."""

from concurrent.futures import ThreadPoolExecutor
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("PIL")
pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")

import tensorflow_datasets as tfds

from data_prep import audit, video, video_builders
from mer_dg.data.dataset import DataError
from mer_dg.data.video.reader import ClipReader
from mer_dg.data.video.sources import PreparedSource, TreeSource

ALL = ("video", "audio", "flow")


@pytest.fixture(scope="module", params=["epic", "hac"])
def both(request, tmp_path_factory):
  """A tree and the set prepared from it."""
  root = request.getfixturevalue(f"{request.param}_root")
  table, problems, *_ = audit.audit(request.param, root)
  assert not problems
  data_dir = tmp_path_factory.mktemp("prepared")
  folder, left_out = video.prepare(table, root, data_dir, workers=2)
  assert not left_out
  return TreeSource(table, root), PreparedSource(folder)


def _assert_same_rows(a, b):
  for m in a["inputs"]:
    np.testing.assert_array_equal(a["inputs"][m], b["inputs"][m], err_msg=m)
  assert {k: a[k] for k in ("present", "label", "index")} == {
    k: b[k] for k in ("present", "label", "index")
  }


@pytest.mark.parametrize("train", [True, False])
def test_prepared_set_gives_the_rows_of_the_tree(both, train):
  readers = [ClipReader(s, modalities=ALL, train=train, seed=3) for s in both]
  assert len(readers[0]) == len(readers[1]) == 9
  for row in range(9):
    a, b = (reader.read(row, 5) for reader in readers)
    _assert_same_rows(a, b)
    assert a["present"]["video"]
    assert a["inputs"]["video"].std() > 20


def test_prepared_source_opens_from_above_and_in_a_worker(both):
  tree, prepared = both
  above = PreparedSource(prepared.folder.parents[1])
  assert above.table == tree.table
  sampled = np.arange(4)
  frames = prepared.open(8).frames("video", sampled)
  copy = pickle.loads(pickle.dumps(prepared))
  np.testing.assert_array_equal(copy.open(8).frames("video", sampled), frames)
  assert min(frames.shape[1:3]) == 256


def test_threads_may_share_a_source(both):
  _, prepared = both
  fresh = PreparedSource(prepared.folder)  # Opened by whichever thread comes first.
  read = lambda row: fresh.open(row % 9).frames("flow", np.arange(3)).sum()
  with ThreadPoolExecutor(8) as pool:
    sums = list(pool.map(read, range(45)))
  assert sums == sums[:9] * 5


def test_records_need_no_tensorflow(both):
  """A process that reads the prepared set never imports TensorFlow."""
  code = (
    "import sys; from mer_dg.data.video.sources import PreparedSource; "
    f"print(PreparedSource({str(both[1].folder)!r}).open(0).audio().shape); "
    "assert 'tensorflow' not in sys.modules"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("(")


def test_record_holds_what_training_needs_and_no_more(both):
  tree, prepared = both
  clip = tree.table.clips[0]
  record = prepared._records or (prepared.open(0) and prepared._records)
  record = record[0]
  assert len(record["video_end"]) == clip.video.shown
  assert len(record["flow_u_end"]) == len(record["flow_v_end"]) == clip.flow.shown
  assert len(record["video"]) == record["video_end"][-1]
  assert record["audio"].dtype == np.int16
  if tree.table.name == "epic":  # Frames 0 to 20 at 60 per second: 0.33 s.
    assert len(record["audio"]) == round(0.33 * 16_000)
    stored = record["video"][: record["video_end"][0]]
    first = tree.root / "rgb" / "train" / "D1" / "P08_01" / "frame_0000000000.jpg"
    assert stored == first.read_bytes()  # 256 high: not encoded anew.


# --- accidents -----------------------------------------------------------------------


@pytest.fixture
def hac_copy(hac_root, tmp_path):
  root = shutil.copytree(hac_root, tmp_path / "hac")
  table, *_ = audit.audit("hac", root)
  return root, table


def test_killed_preparation_goes_on(hac_copy, tmp_path, monkeypatch):
  root, table = hac_copy
  straight, _ = video.prepare(table, root, tmp_path / "straight")
  calls = []

  def failing(table, row, media):
    calls.append(row)
    if len(calls) == 5:
      raise KeyboardInterrupt
    return record_of(table, row, media)

  record_of = video.record_of
  monkeypatch.setattr(video, "record_of", failing)
  with pytest.raises(KeyboardInterrupt):
    video.prepare(table, root, tmp_path / "killed")
  begun = tmp_path / "killed" / "hac_video" / "incomplete.1.0.0"
  assert not begun.with_name("1.0.0").exists()
  done = sorted(p.name for p in begun.glob("*.json") if p.name != "plan.json")
  assert 0 < len(done) < 6
  assert not list(begun.glob(".*"))  # Nothing half-written.
  (begun / ".hac_video-human_test.array_record-00000-of-00001.99.tmp").touch()
  calls = [None] * 5
  folder, _ = video.prepare(table, root, tmp_path / "killed")
  written = sum(table.clips[r].id.startswith("human") for r in calls[5:])
  assert written == 0  # Finished shards were not written again.
  names = sorted(p.name for p in straight.iterdir())
  assert names == sorted(p.name for p in folder.iterdir())
  for name in names:
    if ".array_record" in name or name == "clips.json":
      assert (folder / name).read_bytes() == (straight / name).read_bytes(), name
  # Once more: nothing is left to do.
  monkeypatch.setattr(video, "record_of", None)
  assert video.prepare(table, root, tmp_path / "killed") == (folder, [])


def test_a_set_begun_with_another_list_is_not_mixed(hac_copy, tmp_path):
  root, table = hac_copy
  folder, _ = video.prepare(table, root, tmp_path / "out")
  other = audit.audit("hac", root, dedup=False)[0]
  with pytest.raises(DataError, match="another set is there"):
    video.prepare(other, root, tmp_path / "out")
  folder.rename(folder.with_name("incomplete.1.0.0"))
  with pytest.raises(DataError, match="begun with another list"):
    video.prepare(other, root, tmp_path / "out")


def test_damage_stops_or_is_skipped(epic_root, tmp_path):
  root = shutil.copytree(epic_root, tmp_path / "epic")
  frame = root / "rgb" / "train" / "D2" / "P01_01" / "frame_0000000007.jpg"
  frame.write_bytes(frame.read_bytes()[:-500])
  table, problems, *_ = audit.audit("epic", root)
  assert not problems
  message = r"frame_0000000007.jpg: not a whole image .*\[D2/train/4, .*row 1\]"
  with pytest.raises(DataError, match=message):
    video.prepare(table, root, tmp_path / "out")
  folder, left_out = video.prepare(table, root, tmp_path / "out", on_error="skip")
  assert [p.clip for p in left_out] == ["D2/train/4"]
  prepared = PreparedSource(folder)
  assert prepared.table.skipped == ("D2/train/4",)
  assert len(prepared.table) == 8
  # Rows after the gap still are what the table says.
  reader = ClipReader(prepared, modalities=ALL, train=False)
  assert [reader[r]["index"] for r in range(8)] == [0, 1, 2, 4, 5, 6, 7, 8]


def test_damaged_video_is_never_silent(hac_copy, tmp_path):
  root, table = hac_copy
  path = root / "animal" / "videos" / "a-002.mp4"
  data = path.read_bytes()
  third = len(data) // 3
  path.write_bytes(data[:third] + bytes(third) + data[2 * third :])
  with pytest.raises(
    DataError, match=r"a-002.mp4: .*\[animal/test/a-002.mp4, .*row 1\]"
  ):
    video.prepare(table, root, tmp_path / "out")
  folder, left_out = video.prepare(table, root, tmp_path / "out", on_error="skip")
  assert [p.clip for p in left_out] == ["animal/test/a-002.mp4"]
  # The only clip of its split.
  assert len(PreparedSource(folder).table) == 8
  assert PreparedSource(folder).open(7).audio() is not None


def test_command(hac_root, tmp_path, capsys):
  command = ["--set=hac", f"--root={hac_root}", f"--data_dir={tmp_path}/new/place"]
  with pytest.raises(SystemExit, match="not as published"):
    video.main(command)
  command += ["--on_error=skip", "--modalities=video,audio", "--workers=2"]
  video.main([*command, "--estimate"])
  assert not (tmp_path / "new").exists()
  video.main(command)
  printed = capsys.readouterr()
  assert "9 clips: " in printed.out
  assert "shards: 6/6" in printed.err
  source = PreparedSource(tmp_path / "new" / "place")
  reader = ClipReader(source, modalities=("audio", "video"), train=False)
  assert list(reader[0]["inputs"]) == ["video", "audio"]
  with pytest.raises(DataError, match="modalities=\\('flow',\\) must be"):
    ClipReader(source, modalities=("flow",), train=False)


def test_estimate_and_space(both, tmp_path, monkeypatch, capsys):
  tree, prepared = both
  written = sum(p.stat().st_size for p in prepared.folder.glob("*.array_record*"))
  # Every clip is a probe here. What is left: a shard, of which there are six, begins
  # with a block and ends with its index in another.
  shards = 6 * 2 * video.BLOCK
  assert 0 < written - video.estimate_bytes(tree) < shards + 9 * video.BLOCK / 2
  monkeypatch.setattr(video, "_free_bytes", lambda *_: 1000)
  command = [f"--set={tree.table.name}", f"--root={tree.root}", "--on_error=skip"]
  with pytest.raises(SystemExit, match="not enough space"):
    video.main([*command, f"--data_dir={tmp_path}"])
  assert not list(tmp_path.iterdir())


# --- TFDS ----------------------------------------------------------------------------


def test_builder_prepares_the_same_set(both, tmp_path):
  tree, prepared = both
  name = video_builders.BUILDERS[tree.table.name].name
  builder = tfds.builder(name, data_dir=tmp_path, file_format="array_record")
  config = tfds.download.DownloadConfig(manual_dir=tree.root)
  builder.download_and_prepare(download_config=config)
  made = PreparedSource(tmp_path)
  assert made.table == tree.table
  readers = [ClipReader(s, modalities=ALL, train=True) for s in (made, prepared)]
  for row in (0, 3, 8):
    _assert_same_rows(*(reader.read(row, 1) for reader in readers))


def test_builder_finds_the_prepared_set(both):
  tree, prepared = both
  name = video_builders.BUILDERS[tree.table.name].name
  data_dir = prepared.folder.parents[1]
  builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
  domain = tree.table.domain_names[1]
  source = builder.as_data_source(f"{domain}_test")
  assert len(source) == 1
  assert source[0]["id"].decode() == tree.table.clips[5].id
  info = json.loads((prepared.folder / "dataset_info.json").read_text())
  assert info["fileFormat"] == "array_record"
