"""Configs of EPIC-Kitchens and HAC: names, and what is refused before it costs time."""

import types
from typing import NamedTuple

import jax
import numpy as np
import pytest

from configs import epic_kitchens, hac
from mer_dg.data.video.reader import device_inputs
from mer_dg.data.video.spectrogram import SAMPLES
from mer_dg.experiments import (
  ConfigError,
  DataError,
  make_setup,
  pretrained,
  validate,
  video,
)
from mer_dg.experiments.config import protocol_hash
from mer_dg.experiments.video_config import KINDS, make_backbones
from mer_dg.networks import make_backbone
from mer_dg.networks.published import save_weights

SMALL = {"depths": (1, 1, 1, 1), "width": 8}


def test_names_and_settings():
  ours = validate(epic_kitchens.get_config("D3"))
  assert ours.data.modalities == ("video", "audio", "flow")
  assert (ours.batch_size, ours.optimizer.lr) == (48, 1e-4)
  # 1543 clips of D1, 24 in a batch: 64 steps are an epoch.
  assert (ours.total_steps, ours.eval_every) == (20 * 64, 60)
  assert ours.data.target_rows == "test"
  theirs = validate(hac.get_config("cartoon,af,reference"))
  assert theirs.data.modalities == ("audio", "flow")
  assert (theirs.batch_size, theirs.method) == (16, "mer_logdet")
  # 730 clips of animal, 8 in a batch.
  assert theirs.total_steps == 20 * 91
  assert theirs.data.target_rows == "all"
  assert ours.data.reencode
  assert not theirs.data.reencode
  made = make_backbones(theirs, ("audio", "flow"))
  assert made["audio"].options["layer4_init"] == "random"
  assert made["flow"].options["layer4_init"] == "pretrained"
  assert {b.options["bn_mode"] for b in made.values()} == {"batch"}


@pytest.mark.parametrize(
  ("module", "name"),
  [
    (epic_kitchens, "D4"),
    (epic_kitchens, "D3,av"),
    (epic_kitchens, "D3,va,theirs"),
    (epic_kitchens, "D3,ours,va"),
    (hac, "D3"),
    (hac, "cartoon,va,ours,more"),
  ],
)
def test_unknown_words_name_the_allowed_ones(module, name):
  with pytest.raises(ValueError, match=r"is not TARGET\[,SUBSET\].*'va'.*'reference'"):
    module.get_config(name)


@pytest.fixture
def config():
  def make(target="cartoon", **fields):
    c = hac.get_config(target)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c

  return make


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"target": ""}, r"configs/x.py:DOMAIN.*data_prep.extract_features"),
    ({"driver": "resident"}, "config.driver='resident' must be 'stream'"),
    ({"network__encoder": "conv"}, "config.network.encoder='conv' must be 'backbones'"),
    ({"data__name": "npz"}, "config.network.encoder='backbones' is for config.data"),
    ({"data__modalities": ("video", "text")}, "config.data.modalities=.* out of"),
    ({"data__target_rows": "train"}, "config.data.target_rows='train' must be one of"),
    ({"backbones__video__depths": (3, 4, 6)}, "config.backbones.video.depths=.3, 4, 6"),
    ({"backbones__video__width": 20}, "config.backbones, video: width=20 must be"),
    ({"backbones__bn_mode": "eval"}, "config.backbones.bn_mode='eval' must be one of"),
    (
      {"backbones__audio_layer4": "random"},
      "config.backbones, audio: layer4_init='random' needs bn_mode",
    ),
    ({"reader__prefetch": 0}, "config.reader.prefetch=0 must be an integer"),
    ({"reader__max_damaged": 1.5}, "config.reader.max_damaged=1.5 must be a number in"),
  ],
)
def test_fields_that_do_not_fit(config, fields, message):
  with pytest.raises(ConfigError, match=message):
    validate(config(**fields))


def test_where_files_lie_and_encoders_are_no_part_of_the_protocol(config):
  base = protocol_hash(validate(config()))
  same = {"data__path": "x", "backbones__video__weights": "y", "reader__threads": 1}
  same |= {"reader__max_damaged": 0.5}
  same |= {"backbones__bn_mode": "layer4"}  # Records say so, as a tag of the run.
  assert protocol_hash(validate(config(**same))) == base
  for name, value in (
    ("sync_augment", True),
    ("reencode", False),
    ("target_rows", "test"),
  ):
    assert protocol_hash(validate(config(**{f"data__{name}": value}))) != base


def test_a_set_that_is_not_there(config, tmp_path):
  with pytest.raises(DataError, match="is not a folder"):
    make_setup(validate(config(data__path=str(tmp_path / "x"))))
  with pytest.raises(DataError, match="data_prep.audit --set=hac"):
    make_setup(validate(config(data__path=str(tmp_path))))


def test_weights_that_are_not_there_or_of_another_network(config, tmp_path):
  pytest.importorskip("safetensors")
  path = tmp_path / "audio.safetensors"
  fields = {f"backbones__audio__{k}": v for k, v in SMALL.items()}
  c = validate(config(backbones__audio__weights=str(path), **fields))
  backbones = make_backbones(c, ("audio",))
  with pytest.raises(ConfigError, match=r"audio.weights=.*no such file.*convert_check"):
    pretrained.load(c, backbones, jax.random.key(0))
  with pytest.raises(ConfigError, match=r"audio.weights=.*no such file"):
    pretrained.weight_hashes(c, backbones)
  wider = make_backbone(KINDS["audio"], depths=(1, 1, 1, 1), width=16)
  save_weights(path, wider, jax.jit(wider.init)(jax.random.key(0)))
  with pytest.raises(ConfigError, match="width '16', but the network has '8'"):
    pretrained.load(c, backbones, jax.random.key(0))
  path.write_bytes(b"nothing")
  with pytest.raises(ConfigError, match="not a safetensors file"):
    pretrained.load(c, backbones, jax.random.key(0))


@pytest.mark.parametrize("kind", KINDS.values())
def test_initial_weights_have_the_type_that_a_step_returns(kind):
  """Of a weak type, they would make the step compile again for its second call."""
  shapes = jax.eval_shape(make_backbone(kind, **SMALL).init, jax.random.key(0))
  assert not any(leaf.weak_type for leaf in jax.tree.leaves(shapes))


def test_random_weights_are_said_aloud():
  assert pretrained.notice({"video": "1a2b"}) == ""
  said = pretrained.notice({"video": "1a2b", "audio": "random"})
  assert "WARNING: the encoders of audio start from RANDOM weights" in said
  assert "config.backbones.audio.weights" in said


def test_the_step_sees_new_noise_in_the_sound_every_time():
  class State(NamedTuple):
    step: int

  rng = np.random.default_rng(0)
  batch = {
    "inputs": {
      "audio": rng.integers(-3000, 3000, (2, SAMPLES)).astype(np.int16),
      "video": rng.integers(0, 255, (2, 1, 2, 2, 3)).astype(np.uint8),
    },
    "present": {"audio": np.array([True, False]), "video": np.ones(2, bool)},
    "index": np.array([3, 4]),
  }
  clips = types.SimpleNamespace(device_inputs=device_inputs)
  step = jax.jit(video.with_inputs(lambda state, batch, key: batch["inputs"], clips))
  key = jax.random.key(0)
  first, again, later = (step(State(s), batch, key) for s in (0, 0, 1))
  plain = device_inputs(batch)
  np.testing.assert_array_equal(first["audio"], again["audio"])
  np.testing.assert_allclose(first["video"], plain["video"], rtol=1e-5)
  for other in (plain, later):
    # Noise of up to 0.05, and nine rows of frequency.
    difference = np.abs(first["audio"][0] - other["audio"][0])
    assert 0.01 < np.median(difference) <= 0.1
  assert not np.any(first["audio"][1])  # Missing.


def test_a_random_layer4_differs_between_seeds_and_the_trunk_does_not(config, tmp_path):
  pytest.importorskip("safetensors")
  path = tmp_path / "audio.safetensors"
  plain = make_backbone(KINDS["audio"], **SMALL)
  save_weights(path, plain, jax.jit(plain.init)(jax.random.key(0)))
  fields = {f"backbones__audio__{k}": v for k, v in SMALL.items()}
  fields |= {"backbones__bn_mode": "layer4", "backbones__audio_layer4": "random"}
  c = validate(config(backbones__audio__weights=str(path), **fields))
  backbones = make_backbones(c, ("audio",))
  a, b = (pretrained.load(c, backbones, jax.random.key(s))["audio"] for s in (0, 1))
  jax.tree.map(np.testing.assert_array_equal, a["trunk"], b["trunk"])
  kernels = [
    v["layer4"]["params"]["layer4"]["block0"]["conv1"]["conv"]["kernel"] for v in (a, b)
  ]
  assert not np.array_equal(*kernels)
