"""Corruptions of audio: waveforms ``[T]`` and log-mel spectrograms ``[T, F]``.

Noise is scaled to an exact signal-to-noise ratio of the sample's own power, so
recordings of any loudness are corrupted alike; silence stays silent.
"""

from __future__ import annotations

import numpy as np
import scipy  # its rooms are loaded when they are used

from mer_dg.evaluation._corrupt_common import Draw

_TALKERS = 6


def _at_snr(x: np.ndarray, noise: np.ndarray, decibel: float) -> np.ndarray:
  """``x`` plus noise whose power is ``decibel`` below that of ``x``."""
  power = np.mean(noise**2)
  if power == 0:
    return x
  return x + noise * np.sqrt(np.mean(x**2) / power * 10 ** (-decibel / 10))


def _shaped(size: int, draw: Draw, gain) -> np.ndarray:
  """Noise whose spectrum is ``gain(frequency in Hz)``."""
  spectrum = np.fft.rfft(draw.rng.standard_normal(size))
  return np.fft.irfft(
    spectrum * gain(np.fft.rfftfreq(size, 1 / draw.sample_rate)), size
  )


def _swell(size: int, draw: Draw, hertz: float) -> np.ndarray:
  """A non-negative loudness that changes about ``hertz`` times a second."""
  return _shaped(size, draw, lambda f: np.exp(-((f / hertz) ** 2))) ** 2


def white_noise(x: np.ndarray, draw: Draw) -> np.ndarray:
  """White noise."""
  noise = draw.rng.standard_normal(x.shape)
  return _at_snr(x, noise, draw.pick((25, 18, 12, 6, 0)))


def wind(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Rumble below about 120 Hz that comes in gusts."""
  rumble = _shaped(len(x), draw, lambda f: 1 / (1 + (f / 120) ** 2))
  return _at_snr(x, rumble * _swell(len(x), draw, 1.0), draw.pick((20, 13, 6, 0, -6)))


def babble(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Several talkers: speech-shaped noise, each with syllables of its own.

  No recording is used: the long-term spectrum of speech, modulated at the rate of
  syllables, about 4 per second.
  """
  total = np.zeros(len(x))
  for _ in range(_TALKERS):
    # Flat to 500 Hz, then 9 dB per octave down.
    voice = _shaped(len(x), draw, lambda f: 1 / (1 + (f / 500) ** 1.5))
    total += voice * _swell(len(x), draw, 4.0)
  return _at_snr(x, total, draw.pick((20, 14, 8, 3, -2)))


def clipping(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Cuts off above a share of the peak."""
  limit = draw.pick((0.6, 0.4, 0.25, 0.14, 0.07)) * np.max(np.abs(x), initial=0.0)
  return np.clip(x, -limit, limit)


def reverberation(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Convolution with decaying noise behind the direct sound; keeps the power."""
  seconds = draw.pick((0.2, 0.4, 0.7, 1.1, 1.6))  # Until 60 dB down.
  ratio = draw.pick((9, 4, 0, -4, -8))  # Direct to reverberant power, in dB.
  # As long as the slowest decay whatever the severity: the same room, more of it.
  time = np.arange(1, max(2, round(1.6 * draw.sample_rate))) / draw.sample_rate
  tail = draw.rng.standard_normal(time.shape) * 10 ** (-3 * time / seconds)
  tail *= np.sqrt(10 ** (-ratio / 10) / np.sum(tail**2))
  wet = x.copy()
  wet[1:] += scipy.signal.fftconvolve(x, tail)[: len(x) - 1]
  power = np.mean(wet**2)
  return wet * np.sqrt(np.mean(x**2) / power) if power > 0 else x


def silence(x: np.ndarray, draw: Draw) -> np.ndarray:
  """A stretch is lost."""
  out = x.copy()
  out[draw.segment(len(x), draw.pick((0.1, 0.2, 0.3, 0.45, 0.6)))] = 0.0
  return out


def _mel_noise(x: np.ndarray, noise: np.ndarray, decibel: float) -> np.ndarray:
  """Log of power plus noise power at a signal-to-noise ratio of the totals."""
  top = x.max()  # Relative to the peak: the exponential cannot overflow.
  power = np.exp(x - top)
  noise = noise * (np.sum(power) / np.sum(noise) * 10 ** (-decibel / 10))
  return top + np.log(power + noise)


def mel_white_noise(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Noise of equal expected power in all bands."""
  return _mel_noise(
    x, draw.rng.exponential(size=x.shape), draw.pick((25, 18, 12, 6, 0))
  )


def mel_wind(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Noise in the lowest bands."""
  bands = np.exp(-np.arange(x.shape[1]) / (0.08 * x.shape[1]))
  noise = draw.rng.exponential(size=x.shape) * bands[None, :]
  return _mel_noise(x, noise, draw.pick((20, 13, 6, 0, -6)))


def mel_reverberation(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Power leaks into later frames; keeps the total."""
  decay = draw.pick((0.3, 0.5, 0.65, 0.78, 0.88))  # Per frame.
  top = x.max()
  power = np.exp(x - top)
  wet = scipy.signal.lfilter([1.0], [1.0, -decay], power, axis=0)
  return top + np.log(wet * (np.sum(power) / np.sum(wet)))


def mel_silence(x: np.ndarray, draw: Draw) -> np.ndarray:
  """A stretch falls to the lowest value of the sample."""
  out = x.copy()
  out[draw.segment(len(x), draw.pick((0.1, 0.2, 0.3, 0.45, 0.6)))] = x.min()
  return out


def band_drop(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Neighbouring bands fall to the lowest value of the sample."""
  out = x.copy()
  out[:, draw.segment(x.shape[1], draw.pick((0.1, 0.2, 0.3, 0.45, 0.6)))] = x.min()
  return out


WAVEFORM = {
  "white_noise": white_noise,
  "wind": wind,
  "babble": babble,
  "clipping": clipping,
  "reverberation": reverberation,
  "silence": silence,
}
LOGMEL = {
  "white_noise": mel_white_noise,
  "wind": mel_wind,
  "reverberation": mel_reverberation,
  "silence": mel_silence,
  "band_drop": band_drop,
}
