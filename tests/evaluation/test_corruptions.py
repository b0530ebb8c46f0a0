"""One battery over every corruption, and the meaning of each strength by formula."""

import io
import re

import numpy as np
import pytest

from mer_dg import evaluation
from mer_dg.evaluation import corruptions
from mer_dg.evaluation._corrupt_common import Draw

RATE = 4000.0
N = 6
OPTIONS = {
  "waveform": {"sample_rate": RATE},
  "vector": {"scale": np.linspace(0.5, 2.0, 64), "center": np.linspace(-1, 1, 64)},
}
ALL = [(k, name) for k, names in evaluation.CORRUPTIONS.items() for name in names]


def samples(kind):
  """Six smooth samples of a kind, of a size that shows every corruption."""
  rng = np.random.default_rng(0)
  rows, cols = np.meshgrid(np.linspace(0, 6, 24), np.linspace(0, 5, 20), indexing="ij")
  phase = rng.random((N, 8, 1, 1, 3)) * 6
  clip = 0.5 + 0.3 * np.sin(rows[..., None] * 2 + phase) * np.cos(cols[..., None] * 3)
  time = np.arange(4000) / RATE
  tone = sum(np.sin(2 * np.pi * f * time + 1) for f in (200, 333, 900))
  tone = tone[None] * (0.2 + 0.1 * np.sin(2 * np.pi * 3 * time)[None])
  steps = np.linspace(0, 9, 40)[:, None] + rng.random((N, 1, 16)) * 6
  return {
    "image": clip[:, 0],
    "clip": clip,
    "flow": 4 * (clip[..., :2] - 0.4),
    "waveform": tone * rng.uniform(0.5, 1.5, (N, 1)),
    "logmel": -3 + 2 * np.sin(steps),
    "sequence": np.sin(steps) * np.linspace(0.5, 3, 16) + 2.0,
    "vector": rng.normal(size=(N, 64)),
  }[kind].astype(np.float32)


def run(x, kind, name, severity=3, ids=None, **options):
  ids = np.arange(len(x)) + 100 if ids is None else ids
  options = OPTIONS.get(kind, {}) | options
  return evaluation.corrupt(x, ids, kind=kind, name=name, severity=severity, **options)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_same_shape_finite_deterministic_and_by_sample_id_alone(kind, name):
  x = samples(kind)
  before = x.copy()
  out = run(x, kind, name)
  assert (out.shape, out.dtype) == (x.shape, x.dtype)
  assert np.isfinite(out).all()
  np.testing.assert_array_equal(x, before)
  assert not np.array_equal(out, x)
  np.testing.assert_array_equal(out, run(x, kind, name))
  # In another order, beside other samples: the same.
  order = np.array([4, 1, 5])
  part = run(x[order], kind, name, ids=order + 100)
  np.testing.assert_array_equal(part, out[order])


RANDOM = [  # What draws no number: the others change with id and seed.
  (k, n) for k, n in ALL
  if n not in ("defocus_blur", "contrast", "jpeg", "clipping")
  and (k, n) != ("logmel", "reverberation")
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_id_and_seed_decide_the_draw(kind, name):
  same = np.repeat(samples(kind)[:1], 8, axis=0)
  out = run(same, kind, name, severity=5)
  distinct = len(np.unique(out.reshape(8, -1), axis=0))
  other = run(same, kind, name, severity=5, seed=1)
  if (kind, name) in RANDOM:
    assert distinct > 2
    assert not np.array_equal(out, other)
  else:
    assert distinct == 1
    np.testing.assert_array_equal(out, other)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_severity_is_worse_than_the_one_before(kind, name):
  x = np.repeat(samples(kind), 4, axis=0)  # 24 draws: luck evens out.
  errors = [
    np.mean((run(x, kind, name, s).astype(np.float64) - x) ** 2)
    for s in evaluation.SEVERITIES
  ]
  assert errors[0] > 0
  assert errors == sorted(errors), errors
  assert errors[-1] > 2 * errors[0]


@pytest.mark.parametrize("kind", ["image", "clip", "flow", "waveform"])
def test_integer_samples_match_floating_ones_to_one_step(kind):
  x = samples(kind)
  if kind == "waveform":
    scale, dtype, stored = 8000.0, np.int16, np.round(8000 * x)
    back = lambda a: a / scale
  elif kind == "flow":
    stored, dtype = np.round(30 * x + 127.5), np.uint8
    back = lambda a: (a - 127.5) / 30
  else:
    stored, dtype = np.round(255 * x), np.uint8
    back = lambda a: a / 255
  stored = stored.astype(dtype)
  exact = back(stored.astype(np.float64))
  for name in evaluation.CORRUPTIONS[kind]:
    if name in ("jpeg", "shot_noise"):  # Both round what they are given.
      continue
    out = run(stored, kind, name, 2)
    assert out.dtype == dtype
    expected = run(exact, kind, name, 2)
    step = back(np.float64(1)) - back(np.float64(0))
    clipped = (out == np.iinfo(dtype).max) | (out == np.iinfo(dtype).min)
    gap = np.abs(back(out.astype(np.float64)) - expected)
    assert np.max(gap[~clipped]) <= 0.51 * step, name


@pytest.mark.parametrize("kind", ["waveform", "logmel", "sequence"])
def test_padding_stays_and_does_not_matter(kind):
  x = samples(kind)
  steps = x.shape[1]
  lengths = np.array([steps, steps // 2, 1, 0, steps - 3, 7])
  valid = np.arange(steps)[None, :] < lengths[:, None]
  padded = np.where(valid.reshape(valid.shape + (1,) * (x.ndim - 2)), x, 0)
  other = np.where(valid.reshape(valid.shape + (1,) * (x.ndim - 2)), x, 77)
  for name in evaluation.CORRUPTIONS[kind]:
    out = run(padded, kind, name, lengths=lengths)
    assert np.all(out[~valid] == 0), name
    np.testing.assert_array_equal(
      run(other, kind, name, lengths=lengths)[valid], out[valid]
    )
    alone = run(x[1:2, : lengths[1]], kind, name, ids=np.array([101]))
    np.testing.assert_array_equal(out[1, : lengths[1]], alone[0])


def snr(clean, noisy):
  noise = noisy.astype(np.float64) - clean
  return 10 * np.log10(np.sum(clean.astype(np.float64) ** 2, 1) / np.sum(noise**2, 1))


@pytest.mark.parametrize(
  ("name", "decibel"),
  [
    ("white_noise", (25, 18, 12, 6, 0)),
    ("wind", (20, 13, 6, 0, -6)),
    ("babble", (20, 14, 8, 3, -2)),
  ],
)
def test_noise_on_waveforms_has_its_signal_to_noise_ratio(name, decibel):
  x = samples("waveform").astype(np.float64)
  for severity in evaluation.SEVERITIES:
    found = snr(x, run(x, "waveform", name, severity))
    np.testing.assert_allclose(found, decibel[severity - 1], atol=1e-6)
  silent = np.zeros((1, 400))
  np.testing.assert_array_equal(run(silent, "waveform", name), silent)


def power_below(noise, hertz):
  spectrum = np.abs(np.fft.rfft(noise, axis=1)) ** 2
  low = np.fft.rfftfreq(noise.shape[1], 1 / RATE) < hertz
  return spectrum[:, low].sum() / spectrum.sum()


def test_noises_have_their_colour():
  x = samples("waveform").astype(np.float64)
  colour = {
    name: power_below(run(x, "waveform", name) - x, 500.0)
    for name in ("white_noise", "babble", "wind")
  }
  # White: 500 of 2000 Hz. Wind lives below 120 Hz, speech falls from 500 Hz on.
  assert abs(colour["white_noise"] - 0.25) < 0.02
  assert 0.5 < colour["babble"] < 0.9
  assert colour["wind"] > 0.97


def test_noise_on_log_mels_adds_power_at_its_ratio():
  x = samples("logmel").astype(np.float64)
  for name, decibel in (("white_noise", 12), ("wind", 6)):
    added = np.exp(run(x, "logmel", name, 3)) - np.exp(x)
    assert np.all(added >= -1e-12)
    ratio = np.exp(x).sum((1, 2)) / added.sum((1, 2))
    np.testing.assert_allclose(10 * np.log10(ratio), decibel, atol=1e-6)
  loud = x + 800.0  # exp would overflow; the ratio does not change.
  np.testing.assert_allclose(
    run(loud, "logmel", "wind") - 800.0, run(x, "logmel", "wind"), atol=1e-6
  )


def test_reverberation_keeps_the_power_and_fills_what_was_silent():
  x = samples("waveform").astype(np.float64)
  x[:, 2000:] = 0.0
  out = run(x, "waveform", "reverberation", 4)
  np.testing.assert_allclose(np.mean(out**2, 1), np.mean(x**2, 1))
  assert np.mean(out[:, 2000:2400] ** 2) > 0.05 * np.mean(x**2)
  assert np.mean(out[:, 3800:] ** 2) < np.mean(out[:, 2000:2200] ** 2)  # It decays.
  mel = samples("logmel").astype(np.float64)
  wet = run(mel, "logmel", "reverberation", 4)
  np.testing.assert_allclose(np.exp(wet).sum((1, 2)), np.exp(mel).sum((1, 2)))


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur"])
def test_blurs_keep_even_surfaces_and_the_mean_and_reduce_contrast(name):
  even = np.full((2, 16, 16, 3), 0.37)
  np.testing.assert_allclose(run(even, "image", name, 5), even, atol=1e-12)
  # One bright pixel far from the border keeps its light and spreads it.
  point = np.zeros((1, 33, 33, 1))
  point[0, 16, 16] = 1.0
  out = run(point, "image", name, 4)
  np.testing.assert_allclose(out.sum(), 1.0, atol=1e-9)
  assert out.max() < 0.5
  rows, cols = np.nonzero(out[0, ..., 0] > 1e-6)
  np.testing.assert_allclose([rows.mean(), cols.mean()], 16, atol=0.51)
  spread = np.cov(np.stack([rows, cols]))
  low, high = np.linalg.eigvalsh(spread)
  # A disk is as wide as long, a line is not.
  assert (low / high > 0.9) == (name == "defocus_blur")


def test_contrast_and_fog_by_formula():
  x = samples("image").astype(np.float64)
  mean = x.mean((1, 2), keepdims=True)
  np.testing.assert_allclose(
    run(x, "image", "contrast", 3), mean + 0.38 * (x - mean), atol=1e-12
  )
  out = run(x, "image", "fog", 3)
  field = (out - 0.5 * x) / 0.5  # What it mixes with: bright, and grey.
  assert 0.7 <= field.min() <= field.max() <= 1.0
  np.testing.assert_allclose(field[..., 0], field[..., 1], atol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_that_of_the_reference_codec(channels):
  image = pytest.importorskip("PIL.Image")
  rng = np.random.default_rng(1)
  rows, cols = np.meshgrid(np.linspace(0, 9, 61), np.linspace(0, 8, 50), indexing="ij")
  x = 127 + 70 * np.sin(2 * rows)[..., None] * np.cos(3 * cols)[..., None]
  x = x + 5 * rng.normal(size=(61, 50, channels)) + 20 * np.arange(channels)
  x = np.clip(np.round(x), 0, 255).astype(np.uint8)
  for severity, quality in zip(evaluation.SEVERITIES, (40, 25, 15, 9, 5), strict=True):
    file = io.BytesIO()
    picture = image.fromarray(x if channels == 3 else x[..., 0])
    picture.save(file, "JPEG", quality=quality, subsampling=0)
    expected = np.asarray(image.open(file)).reshape(x.shape).astype(int)
    actual = run(x[None], "image", "jpeg", severity)[0].astype(int)
    gap = np.pad(np.abs(actual - expected).max(-1), ((0, 3), (0, 6)))
    worst = gap.reshape(8, 8, 7, 8).max(axis=(1, 3))  # Of each block.
    # Equal up to rounding, but for a block now and then in which a coefficient lies
    # half-way between two steps and the integer transform of the codec rounds it the
    # other way.
    assert np.mean(worst > (1 if channels == 1 else 3)) < 0.2
    assert gap.mean() < 1.0


def test_frames_are_frozen_or_black_and_never_new():
  x = samples("clip")
  frozen, dropped = (run(x, "clip", f"frame_{n}", 4) for n in ("freeze", "drop"))
  for before, after in zip(x, frozen, strict=True):
    sources = [
      next(j for j, f in enumerate(before) if np.array_equal(frame, f))
      for frame in after
    ]
    assert sources[0] == 0
    assert all(b in (a, t) for a, b, t in zip(sources, sources[1:], range(1, 8),
                                              strict=False))  # fmt: skip
  black = ~dropped.any(axis=(2, 3, 4))
  assert abs(black.mean() - 0.6) < 0.25  # 48 frames: 0.6 ± 0.07.
  np.testing.assert_array_equal(dropped[~black], x[~black])


def test_blocks_of_flow_stand_still_in_all_frames():
  x = samples("flow")
  out = run(x, "flow", "block_zero", 3)
  still = ~out.any(axis=-1)
  assert np.array_equal(still, np.broadcast_to(still[:, :1], still.shape))
  np.testing.assert_array_equal(out[~still], x[~still])
  stored = np.full((1, 3, 12, 12, 2), 200, np.uint8)
  out = run(stored, "flow", "block_zero", 5)
  assert set(np.unique(out)) == {128, 200}  # 127.5 is no motion.


def test_vectors_and_series_by_formula():
  x, scale, center = samples("vector").astype(np.float64), *OPTIONS["vector"].values()
  noise = (run(x, "vector", "gaussian_noise", 3) - x) / scale
  assert abs(noise.std() - 0.5) < 0.06  # 384 values: 0.5 ± 0.018.
  out = run(x, "vector", "feature_drop", 4)
  lost = out != x
  np.testing.assert_allclose(out[lost], np.broadcast_to(center, x.shape)[lost])
  assert abs(lost.mean() - 0.45) < 0.1
  jump = run(x, "vector", "spikes", 5) - x
  hit = jump != 0
  np.testing.assert_allclose(
    np.abs(jump[hit]), 6 * np.broadcast_to(scale, x.shape)[hit]
  )
  series = samples("sequence").astype(np.float64)
  ramp = run(series, "sequence", "drift", 3) - series
  np.testing.assert_allclose(ramp[:, 0], 0.0, atol=1e-12)
  np.testing.assert_allclose(np.diff(ramp, 2, axis=1), 0.0, atol=1e-9)  # Straight.
  held = run(series, "sequence", "freeze", 3)
  repeats = np.all(np.diff(held, axis=1) == 0, axis=2).sum(axis=1)
  # 30 % of 40 steps; one repeat less where the stretch begins at the first step.
  assert set(repeats) <= {11, 12}


def test_a_stretch_of_a_higher_severity_contains_that_of_a_lower_one():
  for seed in range(20):
    make = lambda: Draw(np.random.default_rng(seed), 1, 1.0, None, None)  # noqa: B023
    inner = make().segment(37, 0.2)
    outer = make().segment(37, 0.6)
    assert 0 <= outer.start <= inner.start < inner.stop <= outer.stop <= 37


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"kind": "smell"}, r"kind='smell' is not one of \('image', 'clip'"),
    ({"name": "wind"}, r"name='wind' is no corruption of kind='image'.*'jpeg'"),
    ({"severity": 0}, r"severity=0 is not one of \(1, 2, 3, 4, 5\)"),
    ({"severity": 6}, "severity=6"),
    ({"ids": np.arange(3)}, r"ids must be integer \[2\]"),
    ({"ids": np.array([0.0, 1.0])}, "ids must be integer"),
    ({"ids": np.array([-1, 1])}, "ids must be >= 0, got -1"),
    ({"x": np.zeros((2, 8, 8))}, r"must be \[n, H, W, C\], got \(2, 8, 8\)"),
    ({"x": np.full((2, 8, 8, 3), 9.0)}, r"must lie in \[0, 1\], got \[9, 9\]"),
    ({"x": np.full((2, 8, 8, 3), np.nan)}, "must lie in"),
    ({"x": np.zeros((2, 8, 8, 3), int)}, "must be floating or uint8, got int64"),
    ({"lengths": np.array([1, 1])}, "lengths are of"),
    ({"sample_rate": 8000.0}, "takes no sample_rate"),
    ({"scale": np.ones(3)}, "takes no scale"),
  ],
)
def test_bad_arguments_are_named(change, match):
  good = dict(x=np.zeros((2, 8, 8, 3)), ids=np.arange(2), kind="image", name="fog",
              severity=1)  # fmt: skip
  with pytest.raises(ValueError, match=match):
    evaluation.corrupt(**(good | change))


def test_what_a_kind_needs_is_asked_for():
  ids = np.arange(2)
  wave = dict(kind="waveform", name="wind", severity=1)
  with pytest.raises(ValueError, match="needs sample_rate, got None"):
    evaluation.corrupt(np.zeros((2, 9)), ids, **wave)
  with pytest.raises(ValueError, match="sample_rate must be > 0, got -1"):
    evaluation.corrupt(np.zeros((2, 9)), ids, sample_rate=-1, **wave)
  vector = dict(kind="vector", name="gain", severity=1)
  with pytest.raises(ValueError, match="needs scale"):
    evaluation.corrupt(np.zeros((2, 9)), ids, **vector)
  with pytest.raises(ValueError, match=r"scale must have shape \(9,\), got \(4,\)"):
    evaluation.corrupt(np.zeros((2, 9)), ids, scale=np.ones(4), **vector)
  series = dict(kind="sequence", name="drift", severity=1)
  with pytest.raises(ValueError, match=r"lengths must be \[2\] in 0..9"):
    evaluation.corrupt(np.zeros((2, 9, 1)), ids, lengths=np.array([3, 10]), **series)
  with pytest.raises(ValueError, match=r"x of kind='flow' must be \[n, T, H, W, 2\]"):
    flow = np.zeros((2, 3, 4, 4, 3))
    evaluation.corrupt(flow, ids, kind="flow", name="block_zero", severity=1)


def test_the_registry_names_what_exists():
  assert set(corruptions.CORRUPTIONS) == {
    *("image", "clip", "flow", "waveform", "logmel", "sequence", "vector")
  }
  assert all(len(names) >= 3 for names in evaluation.CORRUPTIONS.values())


def test_the_documentation_lists_what_exists(repo_root):
  text = (repo_root / "docs" / "evaluation.md").read_text()
  rows = dict(re.findall(r"^\| (\w+) `\[.*?\]` \| (.*?) \|$", text, re.M))
  rows["clip"] = rows["clip"].replace("the same", rows["image"])
  found = {kind: tuple(names.split(", ")) for kind, names in rows.items()}
  assert found == evaluation.CORRUPTIONS
