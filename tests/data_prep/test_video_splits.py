"""The published lists as clips."""

from collections import Counter
import shutil

import pytest

from data_prep.video_splits import (
  PUBLISHED,
  PUBLISHED_REPEATS,
  listed_twice,
  read_splits,
  repeats,
)
from mer_dg.data.dataset import DataError
from mer_dg.data.video.table import Frames, Sound, load_table
from tests.data_prep._trees import write_epic_lists, write_hac_list


@pytest.mark.parametrize(("name", "total"), [("epic", 10_094), ("hac", 3381)])
def test_counts_of_the_real_lists(shared_data, name, total):
  table = read_splits(name, shared_data / f"{name}_splits", dedup=False)
  found = Counter((table.domain_names[c.domain], c.split, c.label) for c in table.clips)
  for (domain, split), counts in PUBLISHED[name].items():
    classes = range(len(table.class_names))
    assert tuple(found[domain, split, k] for k in classes) == counts, (domain, split)
  assert len(table) == total
  assert [clip.index for clip in table.clips] == list(range(total))
  assert len({clip.id for clip in table.clips}) == total


def test_real_duplicates(shared_data):
  hac = read_splits("hac", shared_data / "hac_splits", dedup=False)
  twice = repeats(hac.clips)
  assert len(twice) == PUBLISHED_REPEATS["hac"] == 24
  assert {hac.domain_names[c.domain] for c in twice} == {"human"}
  kept = read_splits("hac", shared_data / "hac_splits")
  assert len(kept) == 3381 - 24
  # The copy in the train list stays, ids do not move.
  assert len(kept.rows(["human"], ["train"])) == 1111
  assert len(kept.rows(["human"], ["test"])) == 252
  assert kept.clips[-1].index == 3380
  epic = read_splits("epic", shared_data / "epic_splits")
  assert not repeats(epic.clips)
  pairs = listed_twice(epic.clips)
  assert [(a.source, a.label, b.label) for a, b in pairs] == [
    ("P22_08", 4, 4),
    ("P22_17", 1, 2),
  ]


def test_real_epic_clip_by_hand(shared_data):
  table = read_splits("epic", shared_data / "epic_splits")
  clip = table.clips[0]
  # D1_train row 1: uid 12915, P08_01, 00:00:04.09 to 00:00:05.84, frames 245 to 350,
  # open. Flow starts at ceil(245 / 2) = 123 and has floor(105 / 2) = 52 frames.
  assert (clip.id, clip.label, clip.source) == ("D1/train/12915", 2, "P08_01")
  assert clip.video == Frames(("rgb/train/D1/P08_01",), count=105, first=245)
  flow = tuple(f"flow/train/D1/P08_01/{way}" for way in "uv")
  assert clip.flow == Frames(flow, count=52, first=123)
  assert clip.audio == Sound("rgb/train/D1/P08_01.wav", 4.09, 5.84)
  assert clip.where in ("D1_train.csv row 1", "D1_train.pkl row 1")


def test_epic_pickle_equals_csv(shared_data, tmp_path):
  """Row by row; the pickle goes first where both are there."""
  source = shared_data / "epic_splits"
  for stem in ("D1_train", "D2_train", "D2_test", "D3_train", "D3_test"):
    shutil.copy(source / f"{stem}.csv", tmp_path)
  shutil.copy(source / "D1_test.pkl", tmp_path)
  mixed = read_splits("epic", tmp_path).clips
  for stem in ("D1_test.csv",):
    shutil.copy(source / stem, tmp_path)
    (tmp_path / "D1_test.pkl").unlink()
  plain = read_splits("epic", tmp_path).clips
  assert [c._replace(where="") for c in mixed] == [c._replace(where="") for c in plain]
  assert mixed[1543].where == "D1_test.pkl row 1"


def test_hac_names(shared_data):
  clips = {c.id: c for c in read_splits("hac", shared_data / "hac_splits").clips}
  clip = clips["animal/test/-Gc65Qj4Gzg-001.mp4"]
  assert clip.video == Frames(
    ("animal/videos/-Gc65Qj4Gzg-001.mp4",), count=0, shift=-1, stored=(0,)
  )
  assert clip.flow is not None
  assert clip.flow.paths == tuple(
    f"animal/flow/-Gc65Qj4Gzg-001_flow_{way}.mp4" for way in "xy"
  )
  assert clip.audio == Sound("animal/audio/-Gc65Qj4Gzg-001.wav")
  assert clip.source == "-Gc65Qj4Gzg"
  assert any(" " in c for c in clips)  # drinking_54 .mp4


def test_epic_as_one_video_per_clip(tmp_path):
  write_epic_lists(tmp_path)
  lists = "MM-SADA_Domain_Adaptation_Splits"
  (tmp_path / lists / "EPIC-mp4" / "rgb").mkdir(parents=True)
  clip = read_splits("epic", tmp_path).clips[1]  # D1 train, frames 30 to 94, class 1.
  films = f"{lists}/EPIC-mp4"
  name = f"{films}/rgb/train/D1/D1_P08_01_30_94_1.mp4"
  assert clip.video == Frames((name,), count=0, shift=-1, stored=(0,))
  # 15 to 15 + 32.
  flow = tuple(f"{films}/flow/train/D1/D1_P08_01_15_47_1_{way}.mp4" for way in "uv")
  assert clip.flow == Frames(flow, count=0, shift=-1, stored=(0, 0))
  assert clip.audio == Sound(f"{lists}/rgb/train/D1/P08_01.wav", 0.5, 1.57)
  assert read_splits("epic", tmp_path, layout="frames").clips[1].video == Frames(
    ("rgb/train/D1/P08_01",), count=64, first=30
  )
  with pytest.raises(DataError, match=r"EPIC-mp4': name the folder that holds it"):
    read_splits("epic", tmp_path / films)
  with pytest.raises(DataError, match=r"layout='mp5' is not one of"):
    read_splits("epic", tmp_path, layout="mp5")


# --- lists that must be refused ------------------------------------------------------


def _hac(root, rows):
  for domain in ("human", "animal", "cartoon"):
    for split in ("train", "test"):
      write_hac_list(root, split, domain, [(f"{domain}{split}.mp4", 0)])
  write_hac_list(root, "train", "animal", rows)
  return read_splits("hac", root)


@pytest.mark.parametrize(
  "name",
  ["../../etc/passwd.mp4", "/etc/x.mp4", "a/b.mp4", "..\\x.mp4", "C:x.mp4", "a\0.mp4"],
)
def test_hac_path_traversal(tmp_path, name):
  with pytest.raises(DataError, match=r"HAC_train_only_animal.csv row 2: .*file name"):
    _hac(tmp_path, [("fine.mp4", 1), (name, 1)])


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (("a.avi", 1), "'a.avi' does not end with .mp4"),
    (("a.mp4", 7), r"class 7 is not in 0\.\.6"),
    (("a.mp4", -1), "class -1"),
    (("a.mp4", "x"), "'x' is not a whole number"),
    (("a.mp4",), "expected a file name and a class"),
    (("fine.mp4", 1), "'animal/train/fine.mp4' stands in .* row 1 already"),
  ],
)
def test_hac_bad_rows(tmp_path, row, message):
  with pytest.raises(DataError, match=f"HAC_train_only_animal.csv row 2: {message}"):
    _hac(tmp_path, [("fine.mp4", 1), row])


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("P08_01", "../../P08_01", "is not a plain file name"),
    ("P08_01", "/etc", "is not a plain file name"),
    (",open,0", ",open,8", r"class 8 is not in 0\.\.7"),
    ("0,20", "20,20", "has to come after"),
    ("0,20", "x,20", "'x' is not a whole number"),
    ("0,20", "0,1000000000000", "before frame 1000000"),
    ("00:00:00.00", "4.09 s", "is not a time"),
    ("00:00:00.00", "00:00:09.00", "has to come after"),
  ],
)
def test_epic_bad_rows(tmp_path, old, new, message):
  write_epic_lists(tmp_path)
  path = tmp_path / "MM-SADA_Domain_Adaptation_Splits" / "D1_train.csv"
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))
  with pytest.raises(DataError, match=f"D1_train.csv row 1: .*{message}"):
    read_splits("epic", tmp_path)


def test_missing_lists_and_columns(tmp_path):
  with pytest.raises(DataError, match=r"no D1_train.pkl or D1_train.csv, there or in"):
    read_splits("epic", tmp_path)
  with pytest.raises(DataError, match=r"set='ucf' is not one of"):
    read_splits("ucf", tmp_path)
  with pytest.raises(DataError, match=r"root='.*nowhere' is not a folder"):
    read_splits("hac", tmp_path / "nowhere")
  write_epic_lists(tmp_path)
  folder = tmp_path / "MM-SADA_Domain_Adaptation_Splits"
  (folder / "D2_test.csv").unlink()
  with pytest.raises(DataError, match="neither D2_test.pkl nor D2_test.csv"):
    read_splits("epic", tmp_path)
  text = (folder / "D1_test.csv").read_text()
  (folder / "D1_test.csv").write_text(text.replace("video_id", "video"))
  with pytest.raises(DataError, match=r"D1_test.csv: columns \['video_id'\] missing"):
    read_splits("epic", tmp_path)


# --- the table -----------------------------------------------------------------------


def test_table_survives_json(tmp_path):
  write_epic_lists(tmp_path)
  table = read_splits("epic", tmp_path)
  table.save(tmp_path / "clips.json")
  assert load_table(tmp_path / "clips.json") == table
  assert load_table(tmp_path / "clips.json").version == table.version
  assert [p.name for p in tmp_path.glob(".*")] == []
  rows = table.rows(["D3", "D1"], ["test"])
  assert [table.clips[r].id for r in rows] == ["D1/test/3", "D3/test/9"]
  with pytest.raises(DataError, match="domain 'D4' is not one of"):
    table.rows(["D4"])


def test_version_depends_on_content_not_on_place(tmp_path):
  for name in ("one", "two"):
    write_epic_lists(tmp_path / name)
  one, two = (read_splits("epic", tmp_path / n) for n in ("one", "two"))
  assert one.version == two.version
  path = tmp_path / "two" / "MM-SADA_Domain_Adaptation_Splits" / "D2_test.csv"
  path.write_text(path.read_text().replace(",76,", ",75,"))
  assert read_splits("epic", tmp_path / "two").version != one.version


def test_bad_tables_are_refused(tmp_path):
  write_epic_lists(tmp_path)
  path = tmp_path / "clips.json"
  read_splits("epic", tmp_path).save(path)
  good = path.read_text()
  path.write_text(good.replace("rgb/train/D1/P08_01", "rgb/../../etc", 1))
  with pytest.raises(DataError, match="'..' is not a plain file name"):
    load_table(path)
  path.write_text(good.replace("rgb/train/D1/P08_01", "/etc/passwd", 1))
  with pytest.raises(DataError, match="'' is not a plain file name"):
    load_table(path)
  path.write_text(good.replace('"format": 1', '"format": 0'))
  with pytest.raises(DataError, match="another version"):
    load_table(path)
  path.write_text(good[:100])
  with pytest.raises(DataError, match="not a table of clips"):
    load_table(path)
  with pytest.raises(DataError, match=r"cannot be read .*data_prep.audit"):
    load_table(tmp_path / "none.json")


@pytest.mark.parametrize("sound", ["", "MM-SADA_Domain_Adaptation_Splits"])
@pytest.mark.parametrize("root", ["", "MM-SADA_Domain_Adaptation_Splits"])
def test_epic_as_the_benchmark_has_it(tmp_path, root, sound):
  """All of it beside the lists; either folder may be named, colour is video or rgb."""
  lists = tmp_path / "MM-SADA_Domain_Adaptation_Splits"
  write_epic_lists(tmp_path)
  folders = {}
  for i, (domain, split) in enumerate(
    (d, s) for d in ("D1", "D2", "D3") for s in ("train", "test")
  ):
    colour = ("video", "rgb")[i % 2]
    for name in (f"EPIC-mp4/{colour}", "EPIC-mp4/flow"):
      (lists / name / split / domain).mkdir(parents=True)
    if root and not sound:
      continue  # Sound above the root cannot be reached.
    (tmp_path / sound / "rgb" / split / domain).mkdir(parents=True)
    folders[domain, split] = colour
  top = tmp_path / root
  for clip in read_splits("epic", top).clips:
    domain, split, _ = clip.id.split("/")
    film, audio = top / clip.video.paths[0], top / clip.audio.path
    assert film.parent.is_dir()
    assert all((top / p).parent.is_dir() for p in clip.flow.paths)
    if folders:
      assert audio.parent == tmp_path / sound / "rgb" / split / domain
      assert film.parent.parent.parent.name == folders[domain, split]


@pytest.mark.parametrize("root", ["", "HAC_Splits"])
def test_hac_as_the_benchmark_has_it(tmp_path, root):
  """Media beside the lists."""
  for domain in ("human", "animal", "cartoon"):
    for split in ("train", "test"):
      write_hac_list(tmp_path, split, domain, [(f"{split}.mp4", 0)])
    for kind in ("videos", "flow", "audio"):
      (tmp_path / "HAC_Splits" / domain / kind).mkdir(parents=True)
  for clip in read_splits("hac", tmp_path / root).clips:
    paths = (*clip.video.paths, *clip.flow.paths, clip.audio.path)
    assert all((tmp_path / root / p).parent.is_dir() for p in paths)
