"""The file of final parameters: whole, unchanged, or named as damaged."""

import jax
import numpy as np
import pytest

from mer_dg.training.parameters import (
  CheckpointError,
  load_parameters,
  save_parameters,
  saved_hash,
)

VARIABLES = {
  "params": {
    "late": {},
    "encoder/%2F": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)},
  },
  "scaling": {"a": {"center": np.zeros(2, np.float32)}},
}


def test_what_is_read_is_what_was_written(tmp_path):
  path = tmp_path / "deep" / "run.npz"
  assert saved_hash(path) == ""
  save_parameters(path, jax.tree.map(jax.numpy.asarray, VARIABLES))
  found = load_parameters(path)
  jax.tree.map(np.testing.assert_array_equal, found, VARIABLES)
  assert [p.name for p in path.parent.iterdir()] == ["run.npz"]
  first = saved_hash(path)
  save_parameters(path, jax.tree.map(lambda a: a + 1, VARIABLES))
  assert saved_hash(path) != first


def test_damage_is_named(tmp_path):
  path = tmp_path / "run.npz"
  with pytest.raises(CheckpointError, match="run.npz cannot be read"):
    load_parameters(path)
  save_parameters(path, VARIABLES)
  whole = path.read_bytes()
  for kept in (0, 10, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:kept])
    with pytest.raises(CheckpointError, match="run.npz cannot be read"):
      load_parameters(path)
  path.write_bytes(whole)
  with np.load(path) as file:
    arrays = dict(file)
  arrays["params/encoder%2F%252F/kernel"] = arrays["params/encoder%2F%252F/kernel"] + 1
  np.savez(path, **arrays)
  with pytest.raises(CheckpointError, match="not what was saved, the hash differs"):
    load_parameters(path)
