"""Tiny sets in the published layouts."""

import pathlib

import pytest

from tests.data_prep import _sensors, _trees


@pytest.fixture(scope="session")
def epic_root(tmp_path_factory) -> pathlib.Path:
  """EPIC-Kitchens as JPEG frames; those of D3 are not 256 high."""
  root = tmp_path_factory.mktemp("epic")
  _trees.write_epic_lists(root)
  for d, kitchen in enumerate(("P08", "P01", "P22")):
    size = (192, 240) if d == 2 else (256, 300)
    for split, clips in _trees.EPIC_CLIPS.items():
      name, last = _trees.recording(kitchen, split), max(stop for _, stop in clips)
      colour = root / "rgb" / split / f"D{d + 1}"
      flow = root / "flow" / split / f"D{d + 1}" / name
      _trees.write_jpegs(colour / name, range(last), size, 3, seed=d)
      for i, way in enumerate("uv"):
        _trees.write_jpegs(flow / way, range(last // 2 + 1), size, 1, seed=10 * d + i)
      _trees.write_wav(colour / f"{name}.wav", _trees.sound(d, 3))
  return root


@pytest.fixture(scope="session")
def hac_root(tmp_path_factory) -> pathlib.Path:
  """HAC; the test list of "human" repeats a clip of its train list."""
  root = tmp_path_factory.mktemp("hac")
  for d, domain in enumerate(("human", "animal", "cartoon")):
    for split, clips in _trees.HAC_CLIPS.items():
      names = list(clips)
      if (domain, split) == ("human", "test"):
        names += ["a-001.mp4"]
      _trees.write_hac_list(
        root, split, domain, [(n, i % 7) for i, n in enumerate(names)]
      )
      for i, (name, count) in enumerate(clips.items()):
        _trees.write_hac_clip(
          root / domain, name.removesuffix(".mp4"), count, seed=10 * d + i
        )
  return root


@pytest.fixture(scope="session")
def hust_root(tmp_path_factory) -> pathlib.Path:
  """The 24 recordings of the HUST motor set, shorter than the published ones."""
  root = tmp_path_factory.mktemp("hust")
  _sensors.write_hust(root)
  return root


@pytest.fixture(scope="session")
def hust_prepared(hust_root, tmp_path_factory) -> pathlib.Path:
  """Folder with time.npz and overlap.npz."""
  folder = tmp_path_factory.mktemp("prepared")
  for split in ("time", "overlap"):
    _sensors.hust_command(hust_root, f"--split={split}", f"--out={folder / split}.npz")
  return folder
