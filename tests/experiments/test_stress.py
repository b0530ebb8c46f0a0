"""Corrupted and missing modalities of a small set of every kind of input."""

import dataclasses

import jax
import numpy as np
import pytest

from mer_dg.data.arrays import gather_batch, to_arrays
from mer_dg.data.dataset import make_dataset
from mer_dg.evaluation import CORRUPTIONS, accuracy
from mer_dg.evaluation.evaluators import make_evaluate, make_forward
from mer_dg.experiments import make_setup, stress, validate
from mer_dg.experiments.setup import asked
from mer_dg.protocol import Assignment


def dataset():
  """A vector, a padded sequence and an image; some rows lack the sequence."""
  rng = np.random.default_rng(0)
  n, label = 45, np.arange(45) % 3
  present = rng.random(n) < 0.8
  sequence = rng.normal(size=(n, 6, 2)).astype(np.float32) + label[:, None, None]
  sequence[~present] = np.nan
  return make_dataset(
    name="kinds",
    inputs={
      "v": (rng.normal(size=(n, 4)) + label[:, None]).astype(np.float32),
      "s": sequence,
      "i": rng.integers(0, 255, (n, 8, 8, 1), dtype=np.uint8),
    },
    present={"s": present},
    lengths={"s": rng.integers(2, 7, n)},
    label=label,
    domain=np.arange(n) // 15,
    class_names=list("xyz"),
    domain_names=list("pqr"),
  )


@pytest.fixture(scope="module")
def setup(tiny):
  config = validate(tiny("", targets=("r",), methods=("erm",), seeds=(0, 1)))
  config = dataclasses.replace(
    config, data=dataclasses.replace(config.data, name="npz")
  )
  return make_setup(config, dataset())


TASK = Assignment("r")


@pytest.fixture(scope="module")
def networks(setup):
  """Variables of two untrained networks."""
  init = jax.jit(setup.network().init)
  return [init(jax.random.key(seed)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def clean(setup, networks):
  """Final metrics of each network on target rows, and its fusion of them by hand."""
  network, rows = setup.network(), setup.folds[TASK].test
  data = to_arrays(setup.dataset)
  places = np.array([rows]), np.full((1, len(rows)), -1), np.ones((1, len(rows)), bool)
  evaluate = jax.jit(make_evaluate(network, asked(setup, TASK, "checkpoint")))
  batch = gather_batch(data, rows, *(a[0] for a in places[1:]))
  forward = jax.jit(make_forward(network))
  return [(evaluate(data, *places, v), forward(v, batch), v) for v in networks]


def test_every_subset_of_modalities_is_scored(setup, clean):
  subsets = ("v", "s", "i", "v+s", "v+i", "s+i")
  for metrics, seen, variables in clean:
    named = {k for k in metrics if k.startswith("target/") and "paired" not in k}
    hows = ("without", "mean_for")
    assert named == {f"target/{how}_{s}/accuracy" for how in hows for s in subsets}
    # One of them by hand: nothing of v and i, the sequence where it is present.
    none = np.zeros_like(seen.present["v"])
    here = {"v": none, "i": none, "s": seen.present["s"]}
    logits = setup.network().fuse(variables, seen.embeddings, here)
    want = accuracy(logits, seen.label)
    np.testing.assert_allclose(metrics["target/without_v+i/accuracy"], want, rtol=1e-6)


def test_every_corruption_of_every_kind_is_scored(setup, networks):
  found = stress.Stress(setup).scores(TASK, setup.network(), networks)
  kinds = {"v": "vector", "s": "sequence", "i": "image"}
  for scores in found:
    assert set(scores) == {
      f"corrupted/{m}/{name}/{severity}"
      for m, kind in kinds.items()
      for name in CORRUPTIONS[kind]
      for severity in range(1, 6)
    }
    assert all(0 <= value <= 1 for value in scores.values())
  assert found[0] != found[1]


def test_a_corruption_that_changes_nothing_scores_as_clean(
  setup, networks, clean, monkeypatch
):
  monkeypatch.setattr(stress, "corrupt", lambda x, *_, **__: x)
  found = stress.Stress(setup).scores(TASK, setup.network(), networks)
  for scores, (_, seen, _) in zip(found, clean, strict=True):
    want = pytest.approx(float(accuracy(seen.logits, seen.label)))
    assert all(value == want for value in scores.values())


def test_inputs_keep_padding_missing_rows_and_validity(setup):
  found = list(stress.corrupted_inputs(setup, TASK, "s", "sequence", "gaussian_noise"))
  again = list(stress.corrupted_inputs(setup, TASK, "s", "sequence", "gaussian_noise"))
  np.testing.assert_array_equal(found, again)
  rows = setup.folds[TASK].test
  was = to_arrays(setup.dataset).inputs["s"][rows]
  for x in found:
    np.testing.assert_array_equal(x[..., -1], was[..., -1])
    np.testing.assert_array_equal(x[was[..., -1] == 0], 0)
  change = [np.abs(x - was)[was[..., -1] == 1].mean() for x in found]
  assert change[0] > 0
  assert (np.diff(change) > 0).all()  # Severity by severity.


def with_input(setup, x, kind):
  d = setup.dataset
  changed = dataclasses.replace(d, inputs={"i": x}, kinds={"i": kind})
  return make_setup(setup.config, changed)


@pytest.mark.parametrize(
  ("x", "kind", "expected"),
  [
    (np.full((45, 2, 2, 1), 0.5, np.float32), "image", "image"),
    (np.full((45, 2, 2, 1), 1.5, np.float32), "image", None),
    (np.full((45, 2, 2, 1), np.nan, np.float32), "image", None),
    (np.zeros((45, 2, 2, 1), np.int16), "image", None),
    (np.zeros((45, 3, 2, 2, 2), np.uint8), "clip", "flow"),
    (np.zeros((45, 3, 2, 2, 3), np.uint8), "clip", "clip"),
  ],
)
def test_the_kind_of_images_depends_on_their_scale(setup, x, kind, expected):
  assert stress.corruption_kind(with_input(setup, x, kind), "i") == expected


@pytest.mark.parametrize(
  ("audio", "kind"), [("logmel", "logmel"), ("waveform", "waveform")]
)
def test_audio_of_av_digits_is_known(setup, audio, kind):
  data = dataclasses.replace(setup.config.data, name="av_digits", audio=audio)
  config = dataclasses.replace(setup.config, data=data)
  own = make_setup(config, setup.dataset)
  assert stress.corruption_kind(own, "s") == kind
  assert stress.corruption_kind(own, "i") == "image"
  if kind == "waveform":  # Frames of 2 samples every 20 ms are one signal.
    (first, *_) = stress.corrupted_inputs(own, TASK, "s", kind, "white_noise")
    was = to_arrays(own.dataset).inputs["s"][own.folds[TASK].test]
    assert first.shape == was.shape
