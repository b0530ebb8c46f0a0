"""From files to rows and to network inputs, against what the recipes say by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("PIL")

from PIL import Image

from data_prep import audit
from mer_dg.data.dataset import DataError
from mer_dg.data.sampling import make_pool
from mer_dg.data.stream import stream_batches
from mer_dg.data.video.clips import RECIPES, clip_offset, cut, draw, frame_indices
from mer_dg.data.video.files import read_video, read_wav
from mer_dg.data.video.reader import ClipReader, device_inputs
from mer_dg.data.video.sources import TreeSource
from mer_dg.data.video.spectrogram import (
  SAMPLES,
  augment_spectrogram,
  clip_key,
  log_spectrogram,
)
from mer_dg.data.video.table import Clip, ClipTable, Frames, Sound

ALL = ("video", "audio", "flow")


@pytest.fixture(scope="module")
def epic(epic_root):
  return TreeSource(audit.audit("epic", epic_root)[0], epic_root)


@pytest.fixture(scope="module")
def hac(hac_root):
  return TreeSource(audit.audit("hac", hac_root)[0], hac_root)


def _row(source, clip_id):
  return [clip.id for clip in source.table.clips].index(clip_id)


def _pixels(path, mode):
  return np.asarray(Image.open(path).convert(mode))


# --- real files ----------------------------------------------------------------------


def test_epic_evaluation_by_hand(epic):
  """Frames 30 to 94 of the recording, 64 of them: every second from the first on."""
  row = ClipReader(epic, modalities=ALL, train=False)[_row(epic, "D1/train/2")]
  folder = epic.root / "rgb" / "train" / "D1" / "P08_01"
  names = [f"frame_{30 + 2 * i:010d}.jpg" for i in range(32)]
  expected = np.stack([_pixels(folder / n, "RGB") for n in names])
  # Frames are 256 x 300: the centre of 224 begins at 16, 38; that of 256 at 0, 22.
  np.testing.assert_array_equal(
    row["inputs"]["video"], expected[:, 16:240, 38:262], strict=True
  )
  # Flow: 15 to 47, 32 frames, every fourth.
  folder = epic.root / "flow" / "train" / "D1" / "P08_01"
  for channel, way in enumerate("uv"):
    names = [f"frame_{15 + 4 * i:010d}.jpg" for i in range(8)]
    expected = np.stack([_pixels(folder / way / n, "L") for n in names])
    actual = row["inputs"]["flow"][..., channel]
    np.testing.assert_array_equal(actual, expected[:, :, 22:278])
  # Sound: 0.50 s to 1.57 s of the recording, again and again for ten seconds.
  samples = read_wav(epic.root / "rgb" / "train" / "D1" / "P08_01.wav")
  piece = samples[8000:25_120]
  audio = row["inputs"]["audio"]
  assert audio.dtype == np.int16
  np.testing.assert_array_equal(audio[: len(piece)], piece)
  np.testing.assert_array_equal(audio, np.tile(piece, 10)[:SAMPLES])
  assert row["label"] == 1
  assert row["index"] == 1
  assert row["present"] == dict.fromkeys(ALL, True)


def test_hac_evaluation_by_hand(hac):
  """70 frames, of which 69 count: offset 3, then frame i shows number i - 1."""
  row = ClipReader(hac, modalities=ALL, train=False)[_row(hac, "human/train/a-001.mp4")]
  shown = np.arange(2, 66, 2)
  frames = list(read_video(hac.root / "human" / "videos" / "a-001.mp4", shown, 3))
  # Scaled by Pillow instead of by us; it filters only when shrinking: the same formula.
  expected = np.stack(
    [np.asarray(Image.fromarray(f).resize((288, 256), 2)) for f in frames]
  )
  actual, expected = row["inputs"]["video"].astype(int), expected[:, 16:240, 32:256]
  # Mean difference of every frame that is shown from every one that should be: JPEG of
  # quality 95 costs less than a level, another frame of the moving pattern far more.
  apart = np.abs(actual[:, None, ::8, ::8] - expected[None, :, ::8, ::8])
  apart = apart.mean(axis=(2, 3, 4))
  assert apart.argmin(axis=1).tolist() == list(range(32))
  assert np.diag(apart).max() < 1
  # Sound between the sampled frames 3 and 65, at 24 frames per second.
  samples = read_wav(hac.root / "human" / "audio" / "a-001.wav")
  piece = samples[2000 : round(65 / 24 * 16_000)]
  np.testing.assert_array_equal(row["inputs"]["audio"], np.resize(piece, SAMPLES))


def test_frames_without_the_encoder_are_nearly_the_same(hac):
  row = _row(hac, "animal/test/a-002.mp4")
  plain = TreeSource(hac.table, hac.root, jpeg_quality=None)
  a, b = (
    ClipReader(s, modalities=("video",), train=False)[row]["inputs"]["video"]
    for s in (hac, plain)
  )
  difference = np.abs(a.astype(int) - b)
  assert 0 < difference.mean() < 2


def test_hac_sound_of_looped_clips(hac):
  """12 frames, 11 count: the 32nd sampled is 62 % 11 = 7, after the first, 0."""
  row = _row(hac, "cartoon/train/-b c.mp4")
  reader = ClipReader(hac, modalities=("video", "audio"), train=False)
  samples = read_wav(hac.root / "cartoon" / "audio" / "-b c.wav")
  piece = samples[: round(7 / 24 * 16_000)]
  np.testing.assert_array_equal(
    reader[row]["inputs"]["audio"], np.resize(piece, SAMPLES)
  )


# --- made media ----------------------------------------------------------------------


class _Media:
  """Frames and samples that are their own numbers."""

  asked: list

  def __init__(self, clip):
    self.clip, self.asked = clip, []

  def frames(self, modality, sampled):
    self.asked.append((modality, sampled.tolist()))
    if getattr(self.clip, modality) is None:
      return None
    channels = 3 if modality == "video" else 2
    shape = (len(sampled), 256, 300, channels)
    return np.broadcast_to(sampled[:, None, None, None] % 256, shape).astype(np.uint8)

  def audio(self, start=0.0, stop=None):
    self.asked.append(("audio", start, stop))
    return np.arange(round(start * 100), 300 if stop is None else round(stop * 100))


class _Source:
  def __init__(self, *clips):
    self.table = ClipTable("made", clips, ("a", "b"), ("x", "y"), True)
    self.media = [_Media(clip) for clip in clips]

  def open(self, row):
    return self.media[row]


def _clip(index=7, **given):
  parts = {
    "video": Frames(("v",), count=200, first=1),
    "flow": Frames(("u", "v"), count=100, first=1),
    "audio": Sound("a.wav"),
  }
  return Clip(
    f"x/train/{index}", index, 0, "train", 1, "s", "l row 1", **(parts | given)
  )


def test_training_frames_follow_the_draws():
  source = _Source(_clip())
  reader = ClipReader(source, modalities=ALL, train=True, seed=5)
  row = reader.read(0, epoch=9)
  asked = {a[0]: a[1:] for a in source.media[0].asked}
  for m, stream in (("video", 0), ("flow", 2)):
    numbers = draw(5, 9, 7, stream)
    count = getattr(source.table.clips[0], m).count
    indices = frame_indices(
      count, clip_offset(count, RECIPES[m], numbers.offset), RECIPES[m]
    )
    assert asked[m] == (indices.tolist(),)
    frames = _Media(source.table.clips[0]).frames(m, indices)
    np.testing.assert_array_equal(row["inputs"][m], cut(frames, m, numbers))
    if m == "video":  # The sound follows it.
      assert asked["audio"] == (indices[0] / 24, indices[-1] / 24)
  assert row["inputs"]["video"].shape == (32, 224, 224, 3)
  assert row["inputs"]["flow"].shape == (8, 224, 224, 2)


def test_rows_depend_on_seed_epoch_and_clip():
  source = _Source(_clip(7), _clip(8))
  offset = lambda seed, row, epoch: (
    ClipReader(source, modalities=("video",), train=True, seed=seed).read(row, epoch),
    source.media[row].asked[-1][1][0],
  )[1]
  base = [offset(0, 0, e) for e in range(6)]
  assert base == [offset(0, 0, e) for e in range(6)]
  assert len(set(base)) > 3
  assert base != [offset(1, 0, e) for e in range(6)]
  assert base != [offset(0, 1, e) for e in range(6)]
  with pytest.raises(TypeError, match="read\\(row, epoch\\)"):
    ClipReader(source, modalities=("video",), train=True)[0]


def test_video_and_flow_are_cut_alike_on_demand():
  # 64 of 127 and 32 of 95 frames: 64 places each.
  clip = _clip(video=Frames(("v",), 127), flow=Frames(("u", "v"), 95))
  starts = {}
  for sync in (False, True):
    source = _Source(clip)
    reader = ClipReader(source, modalities=ALL, train=True, sync_augment=sync)
    for epoch in range(8):
      reader.read(0, epoch)
    asked = source.media[0].asked
    starts[sync] = [[a[1][0] for a in asked if a[0] == m] for m in ("video", "flow")]
  assert starts[True][0] == starts[True][1]
  assert starts[False][0] == starts[True][0]
  assert starts[False][0] != starts[False][1]


def test_sound_of_a_clip_of_its_own_and_of_flow_alone():
  source = _Source(_clip(audio=Sound("a.wav", 4.0, 6.0)))
  ClipReader(source, modalities=("audio",), train=True).read(0, 1)
  assert source.media[0].asked == [("audio", 0.0, None)]
  source = _Source(_clip())
  ClipReader(source, modalities=("audio", "flow"), train=False)[0]
  # Flow: 100 frames, offset (100 - 32 + 1) // 2 = 34, last 34 + 28.
  assert source.media[0].asked[0] == ("audio", 34 / 24, 62 / 24)
  source = _Source(_clip())
  ClipReader(source, modalities=("audio",), train=False)[0]
  # Video: offset (200 - 64 + 1) // 2 = 68, last 68 + 62.
  assert source.media[0].asked == [("audio", 68 / 24, 130 / 24)]


def test_missing_modalities_are_zero_and_marked():
  source = _Source(
    _clip(1, video=None, audio=None),
    # 31 frames: the last sampled is 62 % 31 = 0, as the first; no sound between them.
    _clip(2, video=Frames(("v",), 31), flow=None),
  )
  reader = ClipReader(source, modalities=ALL, train=False)
  first, second = reader[0], reader[1]
  assert first["present"] == {"video": False, "audio": False, "flow": True}
  assert second["present"] == {"video": True, "audio": False, "flow": False}
  for row in (first, second):
    assert row["inputs"]["video"].shape == (32, 224, 224, 3)
    assert row["inputs"]["flow"].shape == (8, 256, 256, 2)
    for m, there in row["present"].items():
      assert there or not row["inputs"][m].any()


def test_modalities_come_in_one_order_and_are_checked():
  source = _Source(_clip(flow=None))
  reader = ClipReader(source, modalities=("audio", "video"), train=False)
  assert list(reader[0]["inputs"]) == ["video", "audio"]
  for wrong in (("flow",), (), ("video", "video"), ("smell",)):
    with pytest.raises(DataError, match=r"must be one or more of \('video', 'audio'\)"):
      ClipReader(source, modalities=wrong, train=False)


# --- batches -------------------------------------------------------------------------


def test_stream_of_batches(epic):
  rows = [epic.table.rows([d], ["train"]) for d in ("D1", "D3")]
  reader = ClipReader(epic, modalities=ALL, train=False)
  stream = stream_batches(
    reader, key=jax.random.key(0), pool=make_pool(rows), per_domain=2, num_threads=2
  )
  batch = next(stream)
  stream.close()
  assert batch["inputs"]["video"].shape == (4, 32, 224, 224, 3)
  assert batch["inputs"]["audio"].shape == (4, SAMPLES)
  assert batch["domain"].tolist() == [0, 0, 1, 1]
  wanted = [epic.table.clips[r].index for r in np.concatenate(rows)]
  assert sorted(batch["index"].tolist()) == wanted


def test_device_inputs():
  rng = np.random.default_rng(0)
  batch = {
    "inputs": {
      "video": rng.integers(0, 256, (2, 3, 4, 4, 3), np.uint8),
      "audio": rng.integers(-999, 999, (2, 4000)).astype(np.int16),
      "flow": rng.integers(0, 256, (2, 3, 4, 4, 2), np.uint8),
    },
    "present": {
      "video": np.array([True, False]),
      "audio": np.array([True, True]),
      "flow": np.array([True, True]),
    },
    "index": np.array([11, 12], np.int32),
  }
  batch = jax.tree.map(jnp.asarray, batch)
  key = jax.random.key(4)
  plain = jax.jit(device_inputs)(batch)
  noisy = jax.jit(lambda b, k, e: device_inputs(b, key=k, epoch=e))(batch, key, 3)
  x = np.asarray(batch["inputs"]["video"][0], np.float64)
  mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
  expected = (x - mean) / std
  np.testing.assert_allclose(plain["video"][0], expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(plain["video"][1], 0)  # Missing.
  flow = (np.asarray(batch["inputs"]["flow"], np.float64) - 128) / 128
  np.testing.assert_allclose(plain["flow"], flow, atol=1e-6)
  assert plain["audio"].shape == (2, 257, 22, 1)
  single = log_spectrogram(batch["inputs"]["audio"][1])
  np.testing.assert_allclose(plain["audio"][1, ..., 0], single, atol=1e-4)
  with_noise = augment_spectrogram(clip_key(key, 3, 12), single)
  np.testing.assert_allclose(noisy["audio"][1, ..., 0], with_noise, atol=1e-4)
  np.testing.assert_array_equal(noisy["video"], plain["video"])
