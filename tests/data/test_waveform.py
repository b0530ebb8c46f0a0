"""Log power in bands: what it must not depend on, and what it must show."""

import numpy as np
import pytest

from mer_dg.data.waveform import FLOOR, band_layout, log_bands


@pytest.mark.parametrize("steps", [32, 33, 100, 512, 8000, 100_000])
@pytest.mark.parametrize("rate", [None, 50.0, 8000.0, 44_100.0])
def test_every_layout_covers_the_signal(steps, rate):
  window, hop, edges = band_layout(steps, rate)
  assert 16 <= window <= max(16, steps / 2)
  assert hop == window // 2
  assert edges[0] == 1
  assert edges[-1] == window // 2 + 1
  assert (np.diff(edges) > 0).all()


def test_a_tone_is_in_its_band():
  rate, t = 8000, np.arange(8000) / 8000
  window, _, edges = band_layout(8000, rate)
  for hz in (100, 440, 3000):
    bands, _ = log_bands(np.sin(2 * np.pi * hz * t)[None], rate=rate)
    bin_ = hz * window / rate
    place = int(bands[0].mean(axis=0).argmax())
    assert edges[place] - 1 <= bin_ <= edges[place + 1]


def test_loudness_adds_a_constant_and_silence_is_flat():
  x = np.random.default_rng(0).normal(size=(2, 1024))
  quiet, _ = log_bands(x)
  loud, _ = log_bands(100 * x)
  np.testing.assert_allclose(loud - quiet, 2 * np.log(100), atol=1e-3)
  silence, _ = log_bands(np.zeros((1, 1024)))
  assert np.ptp(silence) == 0
  assert np.isfinite(silence).all()
  low = quiet.min() - quiet.max()
  assert low > np.log(FLOOR) - 20


def test_padding_changes_nothing():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, 9000, 2))
  lengths = np.array([9000, 4000, 100])
  junk = x.copy()
  for row, length in enumerate(lengths):
    junk[row, length:] = 0 if row == 2 else 1e3
    x[row, length:] = 0
  clean, frames = log_bands(x, rate=8000, lengths=lengths)
  dirty, again = log_bands(junk, rate=8000, lengths=lengths)
  np.testing.assert_array_equal(frames, again)
  assert clean.shape[1] <= 64
  assert frames[0] == clean.shape[1]
  assert frames[2] == 1
  for row, valid in enumerate(frames):
    np.testing.assert_array_equal(clean[row, :valid], dirty[row, :valid])
