"""Small valid `.npz` files, for tests to read or to break."""

import pathlib

import numpy as np


def small(n=8):
  """A minimal valid file: 2 classes, 2 domains, one vector and one sequence."""
  rng = np.random.default_rng(0)
  return {
    "modalities": np.array(["a", "b"]),
    "a": rng.normal(size=(n, 3)).astype(np.float32),
    "b": rng.normal(size=(n, 5, 2)).astype(np.float16),
    "label": np.arange(n, dtype=np.int64) % 2,
    "domain": np.arange(n) // (n // 2),
  }


def write(folder, arrays, name="set.npz"):
  path = pathlib.Path(folder) / name
  np.savez(path, **arrays)
  return path
