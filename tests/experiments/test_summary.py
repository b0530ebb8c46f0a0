"""What is printed before anything compiles: all that decides, and only what is so."""

import re

import numpy as np
import pytest

from configs import features
from mer_dg.experiments import ConfigError, make_setup, validate
from mer_dg.experiments.summary import summary


def _arrays(n=240):
  rng = np.random.default_rng(0)
  domain = np.repeat(["home", "office", "street"], n // 3)
  label = np.arange(n) % 4
  label[domain == "street"] = np.arange(n // 3) % 3  # "lie" is missing there.
  return {
    "modalities": np.array(["imu", "gas"]),
    "imu": rng.normal(size=(n, 20, 3)).cumsum(axis=1).astype(np.float32),
    "imu_present": np.arange(n) % 4 > 0,
    "gas": rng.normal(size=(n, 4, 8)).astype(np.float32),
    "gas_lens": np.ones(n),
    "label": label,
    "class_names": np.array(["walk", "run", "sit", "lie"]),
    "domain": domain,
    "group": np.arange(n) // 5,
  }


@pytest.fixture
def setup(tmp_path):
  def make(**fields):
    np.savez(tmp_path / "mine.npz", **_arrays())
    config = features.get_config()
    fields |= {"data.path": str(tmp_path / "mine.npz"), "network.hidden_dim": 16}
    config.update_from_flattened_dict(fields)
    return make_setup(validate(config))

  return make


def test_everything_that_decides_is_said(setup):
  said = summary(setup(methods=("erm", "late"), seeds=(0, 1), total_steps=100))
  assert said.startswith("mine: 240 rows, 4 classes, 3 domains, 48 groups")
  words = " ".join(said.split())
  for line in (
    "classes: walk 67, run 67, sit 66, lie 40",
    "street 80 lie",
    "home 80 none",
    r"imu [20, 3] sequence its order shows",
    "25.0% conv",
    r"gas [32] vector no order shows",
    "12 runs: 2 methods (erm, late) x 3 targets x 2 seeds",
    "key 'gas_lens' of the file is not read; did you mean 'gas_len'?",
    "--config.data.kinds.gas=sequence if it is none",
  ):
    assert line in words, line
  batch, steps, epochs, rows = map(
    int, re.search(r"batch (\d+), (\d+) steps = (\d+) epochs of (\d+)", said).groups()
  )
  assert (batch, steps) == (96, 100)
  assert epochs == round(96 * 100 / rows)
  assert rows < 160


def test_a_kind_of_the_command_line_is_taken(setup):
  said = summary(setup(**{"data.kinds": ("gas=sequence",)}))
  assert "gas [4, 8] sequence as given" in " ".join(said.split())
  assert "data.kinds" not in said


@pytest.mark.parametrize(
  ("kinds", "name", "message"),
  [
    (("gas=tone",), "npz", "'MODALITY=KIND' with a kind out of"),
    (("gas",), "npz", "'MODALITY=KIND' with a kind out of"),
    (("gas=vector",), "cooccurrence", "needs config.data.name='npz'"),
  ],
)
def test_a_wrong_kind_names_the_field(setup, kinds, name, message):
  with pytest.raises(ConfigError, match=f"config.data.kinds=.*{message}"):
    setup(**{"data.kinds": kinds, "data.name": name})
