"""A network with published encoders, behind the same seam as any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.contracts import InputSpec
from mer_dg.networks import (
  count_parameters,
  make_backbone,
  make_network,
  place_weights,
)
from mer_dg.networks.published import encode
from tests.factories import quick_jit
from tests.networks.published import _parity

SMALL = dict(depths=(1, 1, 1, 1), width=8)
SPECS = {
  "video": InputSpec("clip", (4, 32, 32, 3)),
  "audio": InputSpec("image", (33, 40, 1)),
  "sensor": InputSpec("vector", (5,)),
}
HEADS = dict(
  num_classes=3, hidden_dim=16, classifier_dim=16, projector_dim=16, projection_dim=8
)
KEY = jax.random.key(0)
ROWS = 4


def build(*, bn_mode="batch", trainable="layer4", dropout=0.5):
  """The network, its backbones, their weights, and variables with these in place."""
  options = dict(SMALL, bn_mode=bn_mode, trainable=trainable)
  backbones = {
    "video": make_backbone("slowfast_r101", **options, dropout=dropout),
    "audio": make_backbone("vggsound_resnet18", **options),
  }
  network = make_network(SPECS, encoder={**backbones, "sensor": "mlp"}, **HEADS)
  weights = {
    m: _parity.random_variables(backbone, seed)
    for seed, (m, backbone) in enumerate(backbones.items())
  }
  variables = place_weights(quick_jit(network.init)(KEY), backbones, weights)
  variables["scaling"]["video"] = {
    "center": jnp.full(3, 120.0),
    "inv_scale": jnp.full(3, 1 / 60),
  }
  return network, backbones, weights, variables


def batch(rows=ROWS, seed=0):
  rng = np.random.default_rng(seed)
  inputs = {
    "video": rng.integers(0, 256, (rows, *SPECS["video"].shape)).astype(np.uint8),
    "audio": rng.normal(size=(rows, *SPECS["audio"].shape)).astype(np.float32),
    "sensor": rng.normal(size=(rows, 5)).astype(np.float32),
  }
  return inputs, {m: np.ones(rows, bool) for m in SPECS}


@pytest.fixture(scope="module")
def built():
  return build()


def run(network, variables, inputs, present, train):
  @quick_jit
  def apply(variables, inputs, present):
    key = jax.random.key(3) if train else None
    return network.apply(variables, inputs, present, train=train, key=key)

  return apply(variables, inputs, present)


def test_evaluation_is_the_encoder_on_scaled_input(built):
  network, backbones, weights, variables = built
  inputs, present = batch()
  outputs, changed = run(network, variables, inputs, present, train=False)
  assert changed == {}
  x = {"video": (inputs["video"] - np.float32(120)) / 60, "audio": inputs["audio"]}
  for m, backbone in backbones.items():
    expected, _ = quick_jit(lambda v, x, b=backbone: encode(b, v, x))(weights[m], x[m])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(outputs.embeddings[m], expected, atol=1e-4 * scale)
  assert outputs.logits.shape == (ROWS, 3)


def test_where_variables_live(built):
  network, backbones, weights, variables = built
  assert set(variables) == {"params", "scaling", "frozen", "batch_stats"}
  assert set(count_parameters(variables)) == {"fusion"} | {
    f"{part}_{m}" for part in ("encoder", "projector", "head") for m in SPECS
  }
  for m in backbones:
    assert set(variables["params"][f"encoder_{m}"]) == {"layer4"}
    assert set(variables["frozen"][m]) == {"trunk"}
  _, backbones, weights, variables = build(trainable="all")
  assert "frozen" not in variables
  for m in backbones:
    for part in ("trunk", "layer4"):
      jax.tree.map(
        np.testing.assert_array_equal,
        variables["params"][f"encoder_{m}"][part],
        weights[m][part]["params"],
      )


def test_a_step_moves_layer4_and_statistics_and_no_trunk(built):
  network, _, _, variables = built
  inputs, present = batch()
  rest = {name: group for name, group in variables.items() if name != "params"}

  @quick_jit
  def gradient(params):
    def loss(params, rest):
      outputs, changed = network.apply(
        {"params": params, **rest}, inputs, present, train=True, key=KEY
      )
      return jnp.sum(outputs.logits**2), changed

    return jax.grad(loss, argnums=(0, 1), has_aux=True, allow_int=True)(params, rest)

  (grads, grads_rest), changed = gradient(variables["params"])
  for leaf in jax.tree.leaves(grads["encoder_video"] | grads["encoder_audio"]):
    assert np.any(leaf != 0)
  for leaf in jax.tree.leaves(grads_rest["frozen"]):
    np.testing.assert_array_equal(leaf, 0.0)
  assert set(changed) == {"batch_stats"}
  old = variables["batch_stats"]
  assert jax.tree.structure(changed["batch_stats"]) == jax.tree.structure(old)
  same = jax.tree.map(np.array_equal, changed["batch_stats"], old)
  for m, part, moves in (
    ("video", "trunk", True),
    ("video", "layer4", True),
    ("audio", "trunk", False),
    ("audio", "layer4", True),
  ):
    assert all(leaf != moves for leaf in jax.tree.leaves(same[m][part])), (m, part)


def test_frozen_statistics_are_no_new_state():
  network, _, _, variables = build(bn_mode="frozen")
  inputs, present = batch()
  _, changed = run(network, variables, inputs, present, train=True)
  assert changed == {}


def test_dropout_is_seen_by_every_loss_and_repeated_by_fuse(built):
  network, _, _, variables = built
  inputs, present = batch()
  outputs, _ = run(network, variables, inputs, present, train=True)
  # 288 entries a row, half of them dropped, the others doubled; ReLUs leave zeros too.
  plain, *_, own = build(dropout=0.0)
  expected, _ = run(plain, own, inputs, present, train=True)
  alive = np.asarray(expected.embeddings["video"] != 0)
  kept = np.asarray(outputs.embeddings["video"] != 0)
  assert 0.4 < kept[alive].mean() < 0.6
  np.testing.assert_allclose(
    outputs.embeddings["video"][kept], 2 * expected.embeddings["video"][kept], rtol=1e-3
  )
  # None for audio.
  np.testing.assert_allclose(
    outputs.embeddings["audio"], expected.embeddings["audio"], rtol=1e-4, atol=1e-5
  )
  again = network.fuse(
    variables, outputs.embeddings, present, train=True, key=jax.random.key(3)
  )
  np.testing.assert_allclose(again, outputs.logits, rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match="dropout of video needs one"):
    network.apply(variables, inputs, present, train=True)


def test_a_missing_modality_influences_nothing(built):
  network, _, _, variables = built
  inputs, present = batch()
  # NaN where video is missing: with batch statistics it would reach every row.
  present["video"] = np.array([True, True, False, True])
  audio = inputs["audio"].copy()
  audio[2] = np.nan
  present["audio"] = present["video"]
  expected, stats = run(network, variables, inputs, present, train=True)
  other = inputs | {"audio": audio, "video": inputs["video"].copy()}
  other["video"][2] = 255 - other["video"][2]
  actual, other_stats = run(network, variables, other, present, train=True)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(a, e)
  jax.tree.map(np.testing.assert_array_equal, other_stats, stats)
  np.testing.assert_array_equal(actual.embeddings["video"][2], 0.0)
  # Nor does the zero that stands in for it: statistics are those of the other rows.
  rows = np.array([0, 1, 3])
  fewer = {m: x[rows] for m, x in inputs.items()}
  _, without = run(network, variables, fewer, batch(rows=3)[1], train=True)
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-4), stats, without
  )


def test_names_and_errors():
  by_name = make_network(
    {"audio": SPECS["audio"]}, encoder="vggsound_resnet18", **HEADS
  )
  shapes = jax.eval_shape(by_name.init, KEY)
  # 4 x 3x3 convolutions, a projection and 5 batch norms: 256 -> 512 -> 512.
  layer4 = 9 * (256 * 512 + 3 * 512 * 512) + 256 * 512 + 5 * 2 * 512
  assert count_parameters(shapes)["encoder_audio"] == layer4
  with pytest.raises(
    ValueError, match=r"encoder\['sensor'\]='slowonly_r50_flow' needs"
  ):
    make_network({"sensor": SPECS["sensor"]}, encoder="slowonly_r50_flow", **HEADS)
  with pytest.raises(ValueError, match=r"samples of shape \(None, None, None, 2\)"):
    make_network({"video": SPECS["video"]}, encoder="slowonly_r50_flow", **HEADS)


def test_weights_that_do_not_belong(built):
  _, backbones, weights, variables = built
  with pytest.raises(ValueError, match=r"weights for \['flow'\], but only"):
    place_weights(variables, backbones, {"flow": weights["video"]})
  wrong = jax.tree.map(lambda leaf: leaf[..., :1], weights["audio"])
  with pytest.raises(ValueError, match="'audio' do not fit"):
    place_weights(variables, backbones, {"audio": wrong})
