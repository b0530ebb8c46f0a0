"""Corrupted and missing modalities of a small set of every kind of input."""

import dataclasses

import jax
import numpy as np
import pytest

from mer_dg.data.arrays import to_arrays
from mer_dg.data.dataset import make_dataset
from mer_dg.evaluation import CORRUPTIONS
from mer_dg.experiments import make_setup, stress, validate
from mer_dg.experiments.setup import HEADLINE

RUNS = 2


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


@pytest.fixture(scope="module")
def networks(setup):
  """``(variables, embeddings)`` of two untrained networks, stacked."""
  arrays = to_arrays(setup.dataset)

  def one(key):
    variables = setup.network().init(key)
    outputs, _ = setup.network().apply(
      variables, arrays.inputs, arrays.present, train=False, key=None
    )
    return variables, outputs.embeddings

  keys = jax.random.split(jax.random.key(0), RUNS)
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys))


def clean(setup, networks):
  """Headline metric of the target rows, by fusing the embeddings of those alone."""
  variables, z = networks
  rows = stress.fold(setup, "r").test
  here = {m: p[rows] for m, p in setup.dataset.present.items()}
  of_run = lambda v, z: setup.network().fuse(
    v, {m: a[rows] for m, a in z.items()}, here
  )
  logits = jax.vmap(of_run)(variables, z)
  label = setup.dataset.label[rows]
  metric = HEADLINE[setup.config.metric]
  return np.array([metric(x, label) for x in logits])


def test_every_corruption_of_every_kind_and_all_subsets_are_scored(setup, networks):
  scores = stress.Stress(setup, setup.network()).scores("r", *networks)
  kinds = {"v": "vector", "s": "sequence", "i": "image"}
  expected = {
    f"corrupted/{m}/{name}/{severity}"
    for m, kind in kinds.items()
    for name in CORRUPTIONS[kind]
    for severity in range(1, 6)
  }
  subsets = ("v", "s", "i", "v+s", "v+i", "s+i")
  expected |= {f"{how}_{s}" for how in ("without", "mean_for") for s in subsets}
  assert set(scores) == expected
  assert all(v.shape == (RUNS,) for v in scores.values())
  assert all(((v >= 0) & (v <= 1)).all() for v in scores.values())


def test_a_corruption_that_changes_nothing_scores_as_clean(
  setup, networks, monkeypatch
):
  monkeypatch.setattr(stress, "corrupt", lambda x, *_, **__: x)
  scores = stress.Stress(setup, setup.network()).scores("r", *networks)
  want = clean(setup, networks)
  for m in setup.dataset.modalities:
    kind = stress.corruption_kind(setup, m)
    assert kind is not None
    name = CORRUPTIONS[kind][0]
    np.testing.assert_allclose(scores[f"corrupted/{m}/{name}/3"], want, err_msg=m)


def test_inputs_keep_padding_missing_rows_and_validity(setup):
  found = list(stress.corrupted_inputs(setup, "r", "s", "sequence", "gaussian_noise"))
  again = list(stress.corrupted_inputs(setup, "r", "s", "sequence", "gaussian_noise"))
  np.testing.assert_array_equal(found, again)
  rows = stress.fold(setup, "r").test
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
    (first, *_) = stress.corrupted_inputs(own, "r", "s", kind, "white_noise")
    assert (
      first.shape
      == to_arrays(own.dataset).inputs["s"][stress.fold(own, "r").test].shape
    )
