"""Tiny sets in the published layouts: real JPEG, mp4 and wav files."""

import csv
import wave

import numpy as np
import pytest

# Frames [start, stop) of the clips of each kitchen: a short one that has to be looped,
# one that just fits the 64 frames of a window, and one that is longer.
EPIC_CLIPS = {"train": ((0, 20), (30, 94)), "test": ((5, 76),)}
EPIC_COLUMNS = (
  "uid participant_id video_id narration start_timestamp stop_timestamp start_frame "
  "stop_frame verb verb_class"
)


def picture(rng, height, width, channels, t):
  """A smooth moving pattern, so that JPEG and mp4 keep it nearly as it is."""
  y, x = np.mgrid[:height, :width]
  phase = rng.uniform(0, 6, channels)
  waves = [
    np.sin(x / 23 + p + t / 7) * np.cos(y / 31 + p - t / 11) for p in phase.tolist()
  ]
  return (127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def write_jpegs(folder, numbers, size, channels, seed):
  Image = pytest.importorskip("PIL.Image")
  folder.mkdir(parents=True)
  rng = np.random.default_rng(seed)
  frames = picture(rng, *size, channels, 0)
  for n in numbers:
    frame = np.roll(frames, n, axis=1)
    image = Image.fromarray(frame[..., 0] if channels == 1 else frame)
    image.save(folder / f"frame_{n:010d}.jpg", quality=90)


def write_mp4(path, frames, sound=None):
  """uint8 ``[T, H, W, 3]`` as H.264; sound at 44.1 kHz as AAC."""
  av = pytest.importorskip("av")
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
    stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    track = None if sound is None else container.add_stream("aac", rate=44_100)
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())
    if track is not None:
      samples = sound.astype(np.int16)[None]
      piece = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
      piece.rate = 44_100
      container.mux(track.encode(piece))
      container.mux(track.encode())


def write_wav(path, samples, rate=16_000, channels=1, width=2):
  path.parent.mkdir(parents=True, exist_ok=True)
  with wave.open(str(path), "wb") as file:
    file.setnchannels(channels)
    file.setsampwidth(width)
    file.setframerate(rate)
    file.writeframes(samples.astype(f"<i{width}").tobytes())


def sound(seed, seconds):
  rng = np.random.default_rng(seed)
  return rng.integers(-3000, 3000, int(seconds * 16_000))


def stamp(seconds):
  return f"00:{int(seconds // 60):02d}:{seconds % 60:05.2f}"


def write_epic_lists(root):
  """Lists of three kitchens, two training clips and one test clip each."""
  folder = root / "MM-SADA_Domain_Adaptation_Splits"
  folder.mkdir(parents=True)
  uid = 0
  for d, kitchen in enumerate(("P08", "P01", "P22")):
    for split, clips in EPIC_CLIPS.items():
      with (folder / f"D{d + 1}_{split}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(EPIC_COLUMNS.split())
        for i, (start, stop) in enumerate(clips):
          uid += 1
          times = (stamp(start / 60), stamp(stop / 60))
          row = (uid, kitchen, recording(kitchen, split), "open, then close", *times)
          writer.writerow((*row, start, stop, "open", (d + i) % 8))


def recording(kitchen, split):
  return f"{kitchen}_{'01' if split == 'train' else '02'}"


# Frames of the videos of a domain; most are shorter than the window of 64.
HAC_CLIPS = {"train": {"a-001.mp4": 70, "-b c.mp4": 12}, "test": {"a-002.mp4": 16}}


def write_hac_list(root, split, domain, rows):
  folder = root / "HAC_Splits"
  folder.mkdir(exist_ok=True)
  with (folder / f"HAC_{split}_only_{domain}.csv").open("w", newline="") as file:
    csv.writer(file).writerows(rows)


def write_hac_clip(folder, stem, count, seed):
  rng = np.random.default_rng(seed)
  frames = np.stack([picture(rng, 64, 72, 3, 0)] * count)
  for t in range(count):
    frames[t] = np.roll(frames[t], 3 * t, axis=1)
  write_mp4(folder / "videos" / f"{stem}.mp4", frames)
  grey = frames[..., :1].repeat(3, axis=-1)
  write_mp4(folder / "flow" / f"{stem}_flow_x.mp4", grey)
  write_mp4(folder / "flow" / f"{stem}_flow_y.mp4", 255 - grey[:-1])
  write_wav(folder / "audio" / f"{stem}.wav", sound(seed, count / 24))
