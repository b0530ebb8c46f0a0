"""Encoders that a word chooses and no weights fill, behind the seam."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.contracts import InputSpec
from mer_dg.networks import ENCODERS, make_network
from mer_dg.networks.published import (
  FROM_SCRATCH,
  encode,
  make_from_scratch,
  make_sentiment_encoder,
)

HEADS = dict(num_classes=3, classifier_dim=8, projector_dim=8, projection_dim=4)
KEY = jax.random.key(0)


def test_words():
  assert set(FROM_SCRATCH) < set(ENCODERS)
  for name in FROM_SCRATCH:
    backbone = make_from_scratch(name, 1, compute_dtype="bfloat16")
    assert backbone.kind == name
    assert backbone.options["compute_dtype"] == "bfloat16"
    assert backbone.sample == (None, 1)
  with pytest.raises(ValueError, match="name='cnn' is not one of"):
    make_from_scratch("cnn", 1)


@pytest.mark.parametrize(
  ("name", "spec", "message"),
  [
    (
      "hust_cnn",
      InputSpec("sequence", (1024, 2)),
      r"needs samples of shape \(None, 1\)",
    ),
    ("hust_cnn", InputSpec("vector", (1024,)), "needs samples of shape"),
    ("sentiment_transformer", InputSpec("image", (8, 8, 3)), "needs samples of shape"),
  ],
)
def test_samples_that_do_not_fit_are_refused(name, spec, message):
  with pytest.raises(ValueError, match=message):
    make_network({"x": spec}, encoder=name, **HEADS)


def test_padding_enters_as_zeros_after_scaling():
  """Of a masked sequence the encoder sees scaled valid steps, then zeros."""
  spec = InputSpec("sequence", (6, 4), masked=True)  # Three channels and validity.
  network = make_network({"x": spec}, encoder="sentiment_transformer", **HEADS)
  variables = jax.jit(network.init)(KEY)
  center, inv_scale = np.array([1.0, -2.0, 3.0]), np.array([0.5, 2.0, 1.0])
  variables["scaling"]["x"] = {
    "center": jnp.float32(center),
    "inv_scale": jnp.float32(inv_scale),
  }
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, 6, 3)).astype(np.float32)
  valid = np.arange(6)[None, :] < np.array([6, 2, 4])[:, None]
  junk = np.concatenate(
    [np.where(valid[..., None], x, 77.0), valid[..., None]], axis=-1
  )
  present = {"x": jnp.array([True, True, False])}
  outputs, _ = jax.jit(lambda v, x: network.apply(v, {"x": x}, present))(
    variables, junk.astype(np.float32)
  )
  encoder = make_sentiment_encoder(3)
  own = {
    "layer4": {
      "params": variables["params"]["encoder_x"]["layer4"],
      "batch_stats": {},
    }
  }
  seen = np.where(valid[..., None], (x - center) * inv_scale, 0.0).astype(np.float32)
  expected, _ = jax.jit(lambda v, x: encode(encoder, v, x))(own, seen)
  np.testing.assert_allclose(outputs.embeddings["x"][:2], expected[:2], atol=1e-5)
  np.testing.assert_array_equal(outputs.embeddings["x"][2], 0.0)


def test_training_moves_the_statistics_of_the_cnn():
  specs = {m: InputSpec("sequence", (64, 1)) for m in ("vibration", "sound")}
  network = make_network(specs, encoder="hust_cnn", **HEADS)
  variables = jax.jit(network.init)(KEY)
  rng = np.random.default_rng(0)
  inputs = {m: rng.normal(size=(4, 64, 1)).astype(np.float32) for m in specs}
  present = {m: jnp.ones(4, bool) for m in specs}
  _, changed = jax.jit(
    lambda v: network.apply(v, inputs, present, train=True, key=KEY)
  )(variables)
  before = variables["batch_stats"]
  assert jax.tree.structure(changed["batch_stats"]) == jax.tree.structure(before)
  moved = jax.tree.map(
    lambda a, b: bool(jnp.any(a != b)), before, changed["batch_stats"]
  )
  assert all(jax.tree.leaves(moved))
