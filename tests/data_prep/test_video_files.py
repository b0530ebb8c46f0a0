"""JPEG, mp4 and wav files: what is read, and what is said of damaged ones."""

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("av")

import av

from mer_dg.data.dataset import DataError
from mer_dg.data.video.files import (
  count_frames,
  decode_jpeg,
  encode_jpeg,
  jpeg_size,
  read_bytes,
  read_sound,
  read_video,
  read_wav,
  stored_jpeg,
  wav_samples,
)
from tests.data_prep._trees import picture, write_mp4, write_wav


def _frames(count=12, height=64, width=80):
  rng = np.random.default_rng(0)
  phase = picture(rng, height, width, 3, 0)
  return np.stack([np.roll(phase, 5 * t, axis=1) for t in range(count)])


# --- JPEG ----------------------------------------------------------------------------


def test_jpeg_round_trip():
  frame = _frames()[0]
  data = encode_jpeg(frame)
  assert jpeg_size(data, "x") == (64, 80)
  assert np.abs(decode_jpeg(data, 3, "x").astype(int) - frame).mean() < 2
  grey = encode_jpeg(frame[..., :1])
  actual = decode_jpeg(grey, 1, "x")
  assert actual.shape == (64, 80, 1)
  assert np.abs(actual.astype(int) - frame[..., :1]).mean() < 2
  # Grey out of a colour JPEG is its luma: 0.299 R + 0.587 G + 0.114 B.
  luma = frame @ np.array([0.299, 0.587, 0.114])
  assert np.abs(decode_jpeg(data, 1, "x")[..., 0] - luma).mean() < 2


def test_only_other_sizes_are_encoded_anew():
  high = encode_jpeg(np.zeros((256, 300, 3), np.uint8), 50)
  assert stored_jpeg(high, 3, "x", 95) is high
  low = encode_jpeg(_frames()[0], 50)
  assert jpeg_size(stored_jpeg(low, 3, "x", 95), "x") == (256, 320)


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_damaged_jpeg(damage):
  data = encode_jpeg(_frames()[0])
  data = {"cut": data[: len(data) // 2], "empty": b"", "text": b"hello"}[damage]
  with pytest.raises(DataError, match=r"a/b.jpg: not a whole image"):
    decode_jpeg(data, 3, "a/b.jpg")


def test_an_image_of_too_many_pixels():
  data = bytearray(encode_jpeg(_frames()[0]))
  at = data.index(b"\xff\xc0") + 5  # Height and width in the frame header, T.81 B.2.2.
  data[at : at + 4] = b"\x23\x28\x23\x28"
  with pytest.raises(DataError, match=r"x.jpg: 9000x9000 pixels; 67108864 are"):
    decode_jpeg(bytes(data), 3, "x.jpg")


def test_missing_file(tmp_path):
  with pytest.raises(DataError, match=r"x.jpg: No such file"):
    read_bytes(tmp_path / "x.jpg")


# --- mp4 -----------------------------------------------------------------------------


def test_video_frames(tmp_path):
  path, frames = tmp_path / "a.mp4", _frames()
  write_mp4(path, frames)
  assert count_frames(path) == len(frames)
  places = np.array([0, 3, 11])
  for place, actual in zip(places, read_video(path, places, 3), strict=True):
    errors = [np.abs(actual.astype(int) - f).mean() for f in frames]
    assert np.argmin(errors) == place  # The very frame that was asked for.
    assert min(errors) < 6
  grey = list(read_video(path, places, 1))[1][..., 0].astype(int)
  colour = list(read_video(path, places, 3))[1] @ np.array([0.299, 0.587, 0.114])
  assert np.abs(grey - colour).mean() < 2  # What the references compute.


def test_damaged_videos(tmp_path):
  path = tmp_path / "a.mp4"
  write_mp4(path, _frames(60))
  data = path.read_bytes()
  for share in (0.5, 0.8):  # The index comes first: frames are missing at the end.
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(
      DataError, match=r"a.mp4: (cut short, \d+ of 60|not a readable)"
    ):
      count_frames(path)
  path.write_bytes(data)
  with av.open(str(path)) as container:
    ends = [packet.pos for packet in container.demux(video=0) if packet.size]
  path.write_bytes(data[: ends[40]])  # Every frame that is there is whole.
  with pytest.raises(DataError, match=r"a.mp4: cut short, 40 of 60 frames"):
    count_frames(path)
  path.write_bytes(data[:200])
  for read in (count_frames, lambda path: list(read_video(path, np.array([0]), 3))):
    with pytest.raises(DataError, match=r"a.mp4: no pictures in it"):
      read(path)
  with pytest.raises(DataError, match=r"none.mp4: .*No such file"):
    count_frames(tmp_path / "none.mp4")
  write_mp4(path, _frames(3))
  with pytest.raises(DataError, match="ends before frame 7"):
    list(read_video(path, np.array([1, 7]), 3))
  write_wav(tmp_path / "sound.mp4", np.zeros(1000))
  with pytest.raises(DataError, match="no pictures"):
    count_frames(tmp_path / "sound.mp4")


# --- wav -----------------------------------------------------------------------------


def test_wav_pieces(tmp_path):
  path, samples = tmp_path / "a.wav", np.arange(-16_000, 16_000)
  write_wav(path, samples)
  assert wav_samples(path) == 32_000
  np.testing.assert_array_equal(read_wav(path), samples)
  # 0.25 s is sample 4000; 0.50003 s is 8000.48, rounded to 8000.
  np.testing.assert_array_equal(read_wav(path, 0.25, 0.50003), samples[4000:8000])
  np.testing.assert_array_equal(read_wav(path, 1.9, 9.0), samples[30_400:])
  assert not len(read_wav(path, 5.0, 6.0))
  assert not len(read_wav(path, 1.0, 0.5))


def test_wav_of_another_width(tmp_path):
  soundfile = pytest.importorskip("soundfile")
  path, samples = tmp_path / "a.wav", np.arange(-800, 800) * 20
  soundfile.write(path, samples / 32768, 16_000, subtype="PCM_24")
  assert wav_samples(path) == 1600
  np.testing.assert_allclose(read_wav(path, 0.05, 0.06), samples[800:960], atol=1)


def _tone(rate, seconds, hertz):
  return 8000 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_wav_of_another_rate(tmp_path, rate):
  path = tmp_path / "a.wav"
  write_wav(path, _tone(rate, 1.0, 440), rate=rate)
  actual = read_wav(path)
  assert wav_samples(path) == len(actual) == 16_000
  # The same tone, sampled at 16 kHz; its ends ring.
  expected = _tone(16_000, 1.0, 440)
  assert np.abs(actual - expected)[200:-200].max() < 0.01 * 8000
  for start, stop in ((0.0, 0.2), (0.3337, 0.7001), (0.9, 2.0), (1.5, 2.0)):
    piece = actual[round(start * 16_000) : round(stop * 16_000)]
    np.testing.assert_array_equal(read_wav(path, start, stop), piece)


def test_what_16_khz_cannot_hold_is_filtered(tmp_path):
  path = tmp_path / "a.wav"
  write_wav(path, _tone(48_000, 1.0, 13_000), rate=48_000)  # Would alias to 3 kHz.
  assert np.abs(read_wav(path))[200:-200].max() < 0.01 * 8000


def test_wav_of_two_channels(tmp_path):
  path = tmp_path / "a.wav"
  left, right = np.arange(1000), 3 * np.arange(1000)
  write_wav(path, np.stack([left, right], axis=1), channels=2)
  np.testing.assert_array_equal(read_wav(path), 2 * np.arange(1000))
  assert wav_samples(path) == 1000
  np.testing.assert_array_equal(read_wav(path, 0.025, 0.05), 2 * np.arange(400, 800))


@pytest.mark.parametrize("rate", [1, 2**31 - 1])
def test_wav_of_no_rate(tmp_path, rate):
  path = tmp_path / "a.wav"
  write_wav(path, np.zeros(1000), rate=rate)
  with pytest.raises(DataError, match=rf"a.wav: {rate} Hz and 1 channels"):
    read_wav(path)


def test_the_sound_of_a_video(tmp_path):
  path = tmp_path / "a.mp4"
  write_mp4(path, _frames(48), sound=_tone(44_100, 2.0, 440))
  actual = read_sound(path)
  assert abs(len(actual) - 32_000) < 1600
  part = actual[4000:28_000].astype(float)
  power = np.abs(np.fft.rfft(part))
  assert power.argmax() * 16_000 / len(part) == pytest.approx(440, abs=1)
  np.testing.assert_array_equal(read_sound(path, 0.5, 1.0), actual[8000:16_000])
  assert count_frames(path) == 48
  write_mp4(path, _frames(3))
  with pytest.raises(DataError, match=r"a.mp4: no sound in it"):
    read_sound(path)
  path.write_bytes(b"hello")
  with pytest.raises(DataError, match=r"a.mp4: its sound cannot be read"):
    read_sound(path)


def test_damaged_wavs(tmp_path):
  path = tmp_path / "a.wav"
  write_wav(path, np.ones(1000))
  data = path.read_bytes()
  path.write_bytes(data[:-2])
  for read in (read_wav, wav_samples):
    with pytest.raises(DataError, match=r"a.wav: cut short, 999 of 1000 samples"):
      read(path)
  np.testing.assert_array_equal(read_wav(path, 0, 0.05), 1)  # That much is there.
  path.write_bytes(data[:20])
  with pytest.raises(DataError, match=r"a.wav: "):
    read_wav(path)
  path.write_bytes(b"RIFF is no sound")
  with pytest.raises(DataError, match=r"a.wav: "):
    wav_samples(path)
  with pytest.raises(DataError, match=r"none.wav: cannot be read \(No such file"):
    wav_samples(tmp_path / "none.wav")
