"""Log-mel against a written-out computation, scipy, and invariances."""

import numpy as np
import pytest
from scipy import signal

from mer_dg.data.logmel import (
  FFT_POINTS,
  framed_waveform,
  log_mel,
  mel_filters,
  resample_time,
)

_RATE = 8000


def _clips(lengths=(1148, 90, 3358, 18262), seed=0):
  """Noise dying away to silence, per clip: (audio int16, start, length)."""
  rng = np.random.default_rng(seed)
  length = np.array(lengths)
  envelope = [3000 * np.exp(-np.linspace(0, 12, n)) for n in length]
  audio = np.rint(rng.normal(size=length.sum()) * np.concatenate(envelope))
  audio = audio.astype(np.int16)
  return audio, np.cumsum(length) - length, length


def test_matches_a_loop_over_scipy_spectra():
  audio, start, length = _clips()
  out, frames = log_mel(audio, start, length, sample_rate=_RATE)
  # 1 + (length - 200) // 160 full windows; at least 1, at most 64.
  assert frames.tolist() == [6, 1, 20, 64]
  filters = mel_filters(40, sample_rate=_RATE)
  # Hann at half-sample points: that of 401 points at its odd places.
  taper = np.hanning(401)[1::2]
  for i in range(4):
    clip = audio[start[i] : start[i] + length[i]].astype(np.float64)
    clip = np.pad(clip, (0, max(200 - len(clip), 0)))
    count = frames[i]
    power = np.stack(
      [
        filters
        @ np.abs(np.fft.fft(clip[t * 160 :][:200] * taper, FFT_POINTS)[:257]) ** 2
        for t in range(count)
      ]
    )
    expected = np.log(power / power.mean() + 1e-5)
    expected -= expected.mean()
    np.testing.assert_allclose(out[i, :count], expected, atol=0.01)  # float16
    assert not out[i, count:].any()
  # And the spectra themselves are scipy's, up to its density scaling.
  clip = audio[start[2] :][:3358].astype(np.float64)
  _, _, ours = signal.spectrogram(
    clip,
    _RATE,
    window=taper,
    nperseg=200,
    noverlap=40,
    nfft=512,
    detrend=False,
    scaling="spectrum",
  )
  mel = filters @ ours
  level = np.log(mel / mel.mean() + 1e-5)
  # One-sided doubling leaves ratios alone (no band holds 0 Hz or 4 kHz).
  np.testing.assert_allclose(out[2, :20], (level - level.mean()).T, atol=0.01)


@pytest.mark.parametrize("gain", [0.01, 37.0])
@pytest.mark.parametrize("features", [log_mel, framed_waveform])
def test_loudness_changes_nothing(features, gain):
  audio, start, length = _clips()
  audio = audio.astype(np.float64)
  quiet, _ = features(audio, start, length, sample_rate=_RATE)
  loud, _ = features(gain * audio, start, length, sample_rate=_RATE)
  np.testing.assert_allclose(loud, quiet, atol=0.01)


@pytest.mark.parametrize("features", [log_mel, framed_waveform])
def test_clips_do_not_see_each_other(features):
  audio, start, length = _clips()
  together, frames = features(audio, start, length, sample_rate=_RATE)
  for i in range(4):
    own = audio[start[i] : start[i] + length[i]]
    zero, size = np.array([0]), length[i : i + 1]
    alone, count = features(own, zero, size, sample_rate=_RATE)
    # Sums of matrix products may round differently with the number of rows.
    np.testing.assert_allclose(alone[0], together[i], atol=1e-3)
    assert count[0] == frames[i]
  # In any order.
  back, _ = features(audio, start[::-1], length[::-1], sample_rate=_RATE)
  np.testing.assert_allclose(back[::-1], together, atol=1e-3)


def test_digital_silence_is_finite():
  args = (np.zeros(800, np.int16), np.array([0]), np.array([800]))
  for features in (log_mel, framed_waveform):
    out, _ = features(*args, sample_rate=_RATE)
    np.testing.assert_array_equal(out, 0.0)


@pytest.mark.parametrize("hz", [150.0, 500.0, 1000.0, 3000.0])
def test_a_tone_lights_its_band(hz):
  tone = np.sin(2 * np.pi * hz * np.arange(1600) / _RATE)
  out, frames = log_mel(tone, np.array([0]), np.array([1600]), sample_rate=_RATE)
  # Centres lie at equal steps of 2595 log10(1 + f / 700) between 60 and 3900 Hz.
  mel = lambda f: 2595 * np.log10(1 + f / 700)
  expected = (mel(hz) - mel(60)) / ((mel(3900) - mel(60)) / 41) - 1
  found = out[0, : frames[0]].argmax(axis=1)
  assert (np.abs(found - expected) <= 1).all()


def test_waveform_is_the_clip_cut_into_frames():
  audio, start, length = _clips()
  out, frames = framed_waveform(audio, start, length, sample_rate=_RATE)
  assert out.shape == (4, 64, 160)
  assert frames.tolist() == [7, 1, 20, 64]
  clip = audio[start[2] :][: 20 * 160].astype(np.float64)
  expected = (clip / np.sqrt((clip**2).mean())).reshape(20, 160)
  np.testing.assert_allclose(out[2, :20], expected, rtol=1e-3)  # float16
  assert not out[2, 20:].any()
  assert not out[1, 0, 90:].any()  # Shorter than a frame.


def test_bands_without_bins_are_refused():
  with pytest.raises(ValueError, match="bands=200 at sample_rate=8000 leaves a mel"):
    mel_filters(200, sample_rate=_RATE)


def test_resample_time_agrees_with_numpy_interp_and_ignores_padding():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, 9, 2))
  length = np.array([1, 4, 9])
  out = resample_time(x, length, 5)
  for i, n in enumerate(length):
    for c in range(2):
      place = np.linspace(0, n - 1, 5)
      np.testing.assert_allclose(
        out[i, :, c], np.interp(place, np.arange(n), x[i, :n, c])
      )
  x[0, 1:], x[1, 4:] = 99.0, np.nan
  np.testing.assert_array_equal(resample_time(x, length, 5), out)
  with pytest.raises(ValueError, match="steps=0"):
    resample_time(x, length, 0)
