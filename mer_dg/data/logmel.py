"""Log-mel spectrograms and framed waveforms of many short clips at once, in numpy."""

from __future__ import annotations

import numpy as np

# 25 ms windows every 20 ms: a spoken digit (0.4 s) is about 20 frames, so that a
# conv encoder on two CPU cores is affordable; 10 ms would double its cost.
WINDOW_S = 0.025
HOP_S = 0.020
# 512 points put at least two FFT bins into the narrowest of 40 bands at 8 kHz.
FFT_POINTS = 512
LOWEST_HZ = 60.0
# Band powers are floored at -50 dB of the clip's mean band power. A floor relative
# to the clip, unlike an absolute one, makes the result independent of its level.
RELATIVE_FLOOR = 1e-5


def log_mel(
  audio: np.ndarray,
  start: np.ndarray,
  length: np.ndarray,
  *,
  sample_rate: int,
  bands: int = 40,
  max_frames: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
  """Level-normalised log-mel spectrograms of clips that lie in one long array.

  Hann window, power spectrum, triangular bands equally spaced on the mel scale
  ``2595 log10(1 + f / 700)``, natural logarithm, then the clip's mean over frames
  and bands is subtracted. Multiplying a clip by a constant changes nothing:
  speakers and microphones differ in loudness, and that says nothing about words.

  Args:
    audio: All clips behind each other, ``[S]``, any numbers.
    start: int ``[N]``, first sample of each clip.
    length: int ``[N]``, samples of each clip, at least 1. A clip shorter than one
      window is continued by zeros, a longer one ends at its last full window.
    sample_rate: Samples per second.
    bands: Mel bands.
    max_frames: Frames kept of a longer clip, counted from its start.

  Returns:
    ``(spectrogram float16 [N, max_frames, bands], frames int32 [N])``; frames
    beyond the second are 0.

  Raises:
    ValueError: ``sample_rate`` so low that a mel band would be empty.

  Example:
    >>> tone = np.sin(2 * np.pi * 1000 * np.arange(800) / 8000)
    >>> spectrogram, frames = log_mel(
    ...   tone, np.array([0]), np.array([800]), sample_rate=8000)
    >>> frames, int(spectrogram[0, 0].argmax())  # Band 17 is centred on 975 Hz.
    (array([4], dtype=int32), 17)
  """
  window, hop = round(WINDOW_S * sample_rate), round(HOP_S * sample_rate)
  clip, frame, samples, frames = _frames(
    audio, start, length, size=window, hop=hop, max_frames=max_frames
  )
  taper = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(window) + 0.5) / window)
  # float64 throughout: rounding that differs between machines then dies in the
  # final float16, and with it a difference in the version of the data.
  filters = mel_filters(bands, sample_rate=sample_rate)
  power = np.empty((len(samples), bands))
  for i in range(0, len(samples), 8192):  # Bounds the memory of the FFT.
    block = slice(i, i + 8192)
    spectrum = np.fft.rfft(samples[block] * taper, FFT_POINTS)
    power[block] = (spectrum.real**2 + spectrum.imag**2) @ filters.T
  mean = np.bincount(clip, power.mean(axis=1)) / frames  # [N]
  mean = np.where(mean > 0, mean, 1.0)  # Digital silence: all bands at the floor.
  log_power = np.log(power / mean[clip, None] + RELATIVE_FLOOR)
  level = np.bincount(clip, log_power.mean(axis=1)) / frames
  out = np.zeros((len(frames), max_frames, bands), np.float16)
  out[clip, frame] = log_power - level[clip, None]
  return out, frames


def resample_time(sequence: np.ndarray, length: np.ndarray, steps: int) -> np.ndarray:
  """Stretches each sequence to ``steps`` steps, linearly between its valid steps.

  The first and the last valid step become the first and the last; how fast
  somebody speaks, which differs between people, is taken out.

  Args:
    sequence: Floating ``[N, T, C]``, valid steps first.
    length: int ``[N]``, valid steps, 1 to T.
    steps: Steps to stretch to, at least 1.

  Returns:
    ``[N, steps, C]`` in the dtype of ``sequence``.

  Raises:
    ValueError: ``steps`` below 1.

  Example:
    >>> ramp = np.array([[[0.0], [2.0], [9.0]]])
    >>> resample_time(ramp, np.array([2]), 3)[0, :, 0].tolist()
    [0.0, 1.0, 2.0]
  """
  if steps < 1:
    raise ValueError(f"steps={steps} must be at least 1.")
  place = np.linspace(0.0, 1.0, steps)[None, :] * (length[:, None] - 1)  # [N, steps]
  low = np.floor(place).astype(np.int64)
  high = np.minimum(low + 1, length[:, None] - 1)
  weight = (place - low)[..., None]
  row = np.arange(len(sequence))[:, None]
  blend = (1 - weight) * sequence[row, low] + weight * sequence[row, high]
  return blend.astype(sequence.dtype)


def framed_waveform(
  audio: np.ndarray,
  start: np.ndarray,
  length: np.ndarray,
  *,
  sample_rate: int,
  max_frames: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
  """Waveforms cut into adjoining 20 ms frames, so that a 1-D conv can train on them.

  A conv of width ``k`` over frames is a strided conv of width ``k * 20 ms`` over
  samples. Each clip is divided by its root mean square, the only normalisation.

  Args:
    audio: All clips behind each other, ``[S]``, any numbers.
    start: int ``[N]``, first sample of each clip.
    length: int ``[N]``, samples of each clip, at least 1. The last frame is
      continued by zeros where a clip is shorter than one frame.
    sample_rate: Samples per second.
    max_frames: Frames kept of a longer clip, counted from its start.

  Returns:
    ``(waveform float16 [N, max_frames, 0.02 * sample_rate], frames int32 [N])``.

  Example:
    >>> audio = np.tile([3, -3], 160)
    >>> waveform, frames = framed_waveform(
    ...   audio, np.array([0]), np.array([320]), sample_rate=8000, max_frames=3)
    >>> waveform.shape, frames.tolist(), waveform[0, :, 0].tolist()
    ((1, 3, 160), [2], [1.0, 1.0, 0.0])
  """
  size = round(HOP_S * sample_rate)
  clip, frame, samples, frames = _frames(
    audio, start, length, size=size, hop=size, max_frames=max_frames
  )
  power = np.bincount(clip, (samples**2).mean(axis=1)) / frames
  rms = np.sqrt(np.where(power > 0, power, 1.0))
  out = np.zeros((len(frames), max_frames, size), np.float16)
  out[clip, frame] = samples / rms[clip, None]
  return out, frames


def mel_filters(bands: int, *, sample_rate: int) -> np.ndarray:
  """Triangular mel bands over the FFT bins, each summing to 1.

  Args:
    bands: Number of bands, between 60 Hz and 97.5 % of the Nyquist frequency.
    sample_rate: Samples per second.

  Returns:
    float64 ``[bands, FFT_POINTS // 2 + 1]``.

  Raises:
    ValueError: If a band would hold no bin.

  Example:
    >>> mel_filters(40, sample_rate=8000).sum(axis=1).round(6).tolist() == [1.0] * 40
    True
  """
  highest = 0.975 * sample_rate / 2
  mel = np.linspace(_mel(LOWEST_HZ), _mel(highest), bands + 2)
  edge = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)  # Hz
  hz = np.fft.rfftfreq(FFT_POINTS, 1.0 / sample_rate)[None, :]
  low, centre, high = edge[:-2, None], edge[1:-1, None], edge[2:, None]
  weight = np.minimum((hz - low) / (centre - low), (high - hz) / (high - centre))
  weight = np.maximum(weight, 0.0)
  total = weight.sum(axis=1, keepdims=True)
  if not (total > 0).all():
    raise ValueError(
      f"bands={bands} at sample_rate={sample_rate} leaves a mel band without an FFT "
      f"bin; {FFT_POINTS} points allow fewer bands or a lower rate."
    )
  return weight / total


def _mel(hz: float) -> float:
  return 2595.0 * np.log10(1.0 + hz / 700.0)


def _frames(audio, start, length, *, size: int, hop: int, max_frames: int):
  """All full frames of all clips: (clip [F], frame [F], samples [F, size], [N])."""
  length = np.asarray(length)
  frames = np.clip(1 + (length - size) // hop, 1, max_frames)
  clip = np.repeat(np.arange(len(frames)), frames)
  frame = np.arange(len(clip)) - np.repeat(np.cumsum(frames) - frames, frames)
  offset = frame[:, None] * hop + np.arange(size)[None, :]  # Within the clip.
  inside = offset < length[clip, None]
  at = np.minimum(np.asarray(start)[clip, None] + offset, len(audio) - 1)
  samples = np.where(inside, audio[at], 0).astype(np.float32)
  return clip, frame, samples, frames.astype(np.int32)
