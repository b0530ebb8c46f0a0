"""Arrays that dtype and rank would misread, and what their numbers show."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal

from mer_dg.data import DataError, load_npz, make_dataset
from mer_dg.data.evidence import order_along
from tests.data._npz_files import small, write


def _blurred(rng, *shape, axes, low=0.0, high=1.0):
  x = rng.normal(size=shape)
  sigma = [2.0 if a in axes else 0.0 for a in range(len(shape))]
  x = scipy.ndimage.gaussian_filter(x, sigma)
  x = (x - x.min()) / (x.max() - x.min())
  return (low + (high - low) * x).astype(np.float32)


def _waves(rng, *shape):
  """Band noise whose loudness differs between rows."""
  x = rng.normal(size=shape)
  b, a = scipy.signal.butter(2, [0.2, 0.4], "band")
  loud = rng.lognormal(sigma=1.5, size=(shape[0],) + (1,) * (len(shape) - 1))
  return (scipy.signal.lfilter(b, a, x, axis=1) * loud).astype(np.float32)


def _sensors(rng):
  """What four sensors of a kind answer to three gases, eight features each."""
  answer = rng.normal(size=(300, 1, 3)) @ rng.normal(size=(3, 8))
  return answer * rng.uniform(0.7, 1.3, (1, 4, 1)) + 0.3 * rng.normal(size=(300, 4, 8))


def _profile(rng):
  """Spectra: neighbours correlate, but every band has a level of its own."""
  return _blurred(rng, 300, 256, axes=(1,)) + 5 * _blurred(rng, 1, 256, axes=(1,))


def _skeleton(rng):
  at_rest = rng.normal(size=(1, 1, 20, 3))
  return at_rest + 0.02 * rng.normal(size=(200, 40, 20, 3)).cumsum(axis=1)


NOISE = lambda rng, *shape: rng.normal(size=shape)
PIXELS = lambda rng, *shape: rng.integers(0, 256, shape).astype(np.uint8)
# name: (array, kind, shape of a sample, whether a line is said of it)
CASES = {
  "features": (lambda r: NOISE(r, 200, 300), "vector", (300,), False),
  "spectra": (_profile, "vector", (256,), False),
  "waveform": (lambda r: _waves(r, 200, 2048), "sequence", (15, 25), True),
  "short signal": (lambda r: _waves(r, 200, 128), "sequence", (128, 1), True),
  "stereo": (lambda r: _waves(r, 100, 2048, 2), "sequence", (15, 50), True),
  "feature matrix": (_sensors, "vector", (32,), True),
  "walk": (
    lambda r: NOISE(r, 200, 8, 3).cumsum(axis=1),
    "sequence",
    (8, 3),
    False,
  ),
  "long noise": (lambda r: NOISE(r, 200, 60, 3), "sequence", (60, 3), True),
  "few rows": (lambda r: NOISE(r, 40, 4, 8), "sequence", (4, 8), False),
  "skeleton": (_skeleton, "sequence", (40, 60), False),
  "float image": (
    lambda r: _blurred(r, 100, 16, 20, 3, axes=(1, 2)),
    "image",
    (16, 20, 3),
    True,
  ),
  "float CHW": (
    lambda r: _blurred(r, 100, 3, 16, 20, axes=(2, 3), high=255),
    "image",
    (16, 20, 3),
    True,
  ),
  "depth video": (
    lambda r: _blurred(r, 60, 4, 16, 20, axes=(1, 2, 3), high=4000),
    "clip",
    (4, 16, 20, 1),
    True,
  ),
  "CHW": (lambda r: PIXELS(r, 30, 3, 12, 10), "image", (12, 10, 3), True),
  "TCHW": (lambda r: PIXELS(r, 30, 5, 3, 12, 10), "clip", (5, 12, 10, 3), True),
}


def _load(x, tmp_path, **extra):
  n = len(x)
  arrays = {
    "modalities": np.array(["m"]), "m": x,
    "label": np.arange(n) % 3, "domain": np.arange(n) * 2 // n,
  }  # fmt: skip
  kinds = extra.pop("kinds", None)
  return load_npz(write(tmp_path, arrays | extra), kinds=kinds)


@pytest.mark.parametrize("case", CASES)
def test_what_an_array_shows_to_be(tmp_path, case):
  make, kind, shape, odd = CASES[case]
  loaded = _load(make(np.random.default_rng(0)), tmp_path)
  assert (loaded.kinds["m"], loaded.inputs["m"].shape[1:]) == (kind, shape)
  assert loaded.why["m"]
  said = [line for line in loaded.warnings if line.startswith("'m' [N, ")]
  assert len(said) == odd
  if odd:  # What it says to type does something else.
    other = said[0].rpartition("--config.data.kinds.m=")[2].partition(" ")[0]
    again = _load(make(np.random.default_rng(0)), tmp_path, kinds={"m": other})
    assert again.why["m"] == "as given"
    assert again.inputs["m"].shape[1:] != shape or again.kinds["m"] != kind
    assert not [line for line in again.warnings if "data.kinds" in line]


def test_chw_pixels_stay_where_they_were():
  x = PIXELS(np.random.default_rng(0), 30, 3, 12, 10)
  fields = dict(
    label=np.arange(30) % 2, domain=np.arange(30) // 15, class_names="ab",
    domain_names="pq",
  )  # fmt: skip
  shown = make_dataset(name="x", inputs={"m": x}, **fields)
  told = make_dataset(name="x", inputs={"m": x}, kinds={"m": "image"}, **fields)
  for dataset in (shown, told):
    np.testing.assert_array_equal(dataset.inputs["m"][3, :, :, 1], x[3, 1])


def test_the_kind_in_the_file_wins_and_the_users_over_it(tmp_path):
  x = _waves(np.random.default_rng(0), 60, 512)
  as_file = _load(x, tmp_path, m_kind=np.array("vector"))
  assert as_file.kinds == {"m": "vector"}
  assert as_file.warnings == []
  told = _load(x, tmp_path, m_kind=np.array("vector"), kinds={"m": "waveform"})
  assert told.kinds == {"m": "sequence"}
  assert told.why["m"].startswith("waveform: as given; log power in bands")
  with pytest.raises(DataError, match=r"kinds are given for \['x'\]"):
    _load(x, tmp_path, kinds={"x": "vector"})
  with pytest.raises(DataError, match="m_kind='tone' is not one of"):
    _load(x, tmp_path, kinds={"m": "tone"})


def test_the_order_of_drawn_features_is_no_order():
  rng = np.random.default_rng(0)
  smooth = 0
  for _ in range(20):
    x = (rng.normal(size=(300, 5)) @ rng.normal(size=(5, 48))).reshape(300, 6, 8)
    order = order_along(x + 0.3 * rng.normal(size=x.shape), 1)
    smooth += order.smooth and order.structure > 0.15
  assert smooth == 0


def test_a_rate_is_one_number(tmp_path):
  x = _waves(np.random.default_rng(0), 60, 512)
  at = lambda rate: _load(x, tmp_path, m_rate=np.array(rate))
  assert "at 8000 Hz" in at(8000).why["m"]
  assert at(2000.0).inputs["m"].shape != at(8000).inputs["m"].shape
  for wrong in (0, -1.0, np.inf, [8000, 8000], "8000"):
    with pytest.raises(DataError, match="m_rate must be samples per second"):
      at(wrong)


def test_bands_are_of_a_waveform_that_is_long_enough(tmp_path):
  arrays = small() | {"a_kind": np.array("waveform")}
  with pytest.raises(DataError, match="'a' is no waveform: .* 32 samples"):
    load_npz(write(tmp_path, arrays))
