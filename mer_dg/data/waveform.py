"""Raw signals as log power in bands: the front end of the kind ``waveform``.

Every number depends on its own row alone, nothing is fitted: it is computed once, when
a set is read, and scaled later like any other sequence, with statistics of the source
training rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy  # its rooms are loaded when they are used

BANDS = 32  # At most, per channel.
SECONDS = 0.032  # Of a window, where the sampling rate is known.
FRAMES = 64  # More are averaged, neighbours together.
# Power below which the logarithm is flat, relative to the mean of the row: -80 dB.
FLOOR = 1e-8
_ROWS = 256  # At a time: bounds the memory of the transform.


class Layout(NamedTuple):
  """Window and hop in samples, and the first bin of each band (and the end)."""

  window: int
  hop: int
  edges: tuple[int, ...]


def band_layout(steps: int, rate: float | None = None) -> Layout:
  """Window, hop and bands for signals of a length.

  The window is the power of two nearest to 32 ms, or an eighth of the signal where the
  rate is not known, and between 16 samples and a quarter of the signal; windows overlap
  by half. Bands are equally wide in log frequency, but at least a bin wide.

  Args:
    steps: Samples per row.
    rate: Samples per second, if known.

  Returns:
    The layout.

  Raises:
    ValueError: Fewer than 32 samples, or a rate that is not above 0.

  Example:
    >>> band_layout(2048)[:2], band_layout(8000, rate=8000.0)[:2]
    ((256, 128), (256, 128))
  """
  if steps < 32:
    raise ValueError(f"a waveform needs 32 samples or more, got {steps}.")
  if rate is not None and not 0 < rate < np.inf:
    raise ValueError(f"the sampling rate must be a number above 0, got {rate}.")
  wanted = steps / 8 if rate is None else SECONDS * rate
  most = 2 ** int(np.log2(steps / 4 if steps >= 64 else steps / 2))
  window = int(np.clip(2 ** round(np.log2(wanted)), 16, max(16, min(most, 4096))))
  last = window // 2 + 1  # Bins; the first, the mean, is left out.
  ideal = np.geomspace(1, last, min(BANDS, last - 1) + 1)
  edges = np.unique(np.rint(ideal).astype(int))
  return Layout(window, window // 2, tuple(edges.tolist()))


def log_bands(
  x: np.ndarray, *, rate: float | None = None, lengths: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
  """Log power of signals in bands over time.

  Hann windows, the mean of each taken off; natural logarithm of the mean power per
  bin of each band. Loudness is kept: a set in which it is an accident of the recording
  should bring signals of one loudness.

  Args:
    x: Signals ``[N, T]`` or ``[N, T, C]``, any numbers.
    rate: Samples per second.
    lengths: int ``[N]``, valid samples of padded signals.

  Returns:
    float32 ``[N, F, C * B]``, F at most `FRAMES`, and the valid frames of each row
    (None without ``lengths``).

  Raises:
    ValueError: As `band_layout`.

  Example:
    >>> tone = np.sin(2 * np.pi * 0.25 * np.arange(1024))[None]
    >>> bands, _ = log_bands(tone)
    >>> bands.shape, int(bands[0].mean(axis=0).argmax())
    ((1, 15, 23), 17)
  """
  x = x[:, :, None] if x.ndim == 2 else x.reshape(*x.shape[:2], -1)
  window, hop, edges = band_layout(x.shape[1], rate)
  frames = 1 + (x.shape[1] - window) // hop
  pool = -(-frames // FRAMES)
  out = np.empty(
    (len(x), -(-frames // pool), x.shape[2] * (len(edges) - 1)), np.float32
  )
  valid = None
  if lengths is not None:
    full = np.clip(1 + (lengths - window) // hop, 1, frames)
    valid = -(-full // pool)
  width = np.diff(edges)
  for start in range(0, len(x), _ROWS):
    rows = slice(start, start + _ROWS)
    signal = np.moveaxis(x[rows].astype(np.float32), 1, 2)  # [n, C, T]
    _, _, power = scipy.signal.spectrogram(
      signal, window="hann", nperseg=window, noverlap=window - hop, scaling="spectrum"
    )  # [n, C, bins, frames]
    power = np.add.reduceat(power[:, :, : edges[-1]], edges[:-1], axis=2)
    power = power / width[:, None]
    here = np.ones((len(signal), frames), bool)
    if lengths is not None:
      here = np.arange(frames) < full[rows, None]
    power = np.where(here[:, None, None, :], power, 0)
    count = np.maximum(here.sum(axis=1), 1) * power.shape[2]
    mean = power.sum(axis=(2, 3)) / count[:, None]  # [n, C]
    floor = np.where(mean > 0, FLOOR * mean, 1e-20)[:, :, None, None]
    logs = np.log(power + floor)
    pieces = np.arange(0, frames, pool)
    seen = np.maximum(np.add.reduceat(here, pieces, axis=1, dtype=int), 1)
    logs = np.where(here[:, None, None, :], logs, 0)
    logs = np.add.reduceat(logs, pieces, axis=3) / seen[:, None, None, :]
    out[rows] = np.moveaxis(logs, 3, 1).reshape(len(logs), len(pieces), -1)
  return out, None if valid is None else valid.astype(np.int32)
