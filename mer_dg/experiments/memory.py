"""How many runs fit into memory at once."""

from __future__ import annotations

import math
import os
from pathlib import Path

import jax
import numpy as np

from mer_dg.data.arrays import EVAL_BLOCK
from mer_dg.experiments.setup import Setup, first_state

# Runs trained at once where the config leaves it open and memory does not bound it. On
# two CPU cores 1 to 64 runs at once are about equally fast (benchmarks/resident.py
# --waves): a small wave writes its records sooner. An accelerator wants many.
_WAVE_CPU = 16
_WAVE_ACCELERATOR = 256
# Share of the memory that a wave may take.
_SHARE = 0.5
# Beside the state: gradient, update and a copy.
_MORE_PARAMETERS = 3
# Activations of encoders over the bytes of their inputs, upwards of what the four sets
# of configs/benchmark.py take by XLA's analysis.
_ACTIVATIONS = 16
# Whatever is small: keys, indices, statistics of a method.
_REST = 2**20


def wave_size(setup: Setup, method: str) -> int:
  """Most runs of a method in a wave: ``config.wave``, or what device and memory allow.

  It depends on the machine and the config, not on what else is running: a table that
  was interrupted goes on in the same waves. An estimate: `is_out_of_memory` tells when
  it was too large.
  """
  if setup.config.wave:
    return setup.config.wave
  most = _WAVE_CPU if jax.default_backend() == "cpu" else _WAVE_ACCELERATOR
  return int(np.clip(_SHARE * memory_bytes() // run_bytes(setup, method), 1, most))


def run_bytes(setup: Setup, method: str) -> int:
  """About what one run takes on the device, the dataset not included, in bytes."""
  network, dataset = setup.network(method), setup.dataset.in_memory()
  state = jax.eval_shape(lambda: first_state(setup, method, setup.tasks[0]))
  training = _bytes(state) + _MORE_PARAMETERS * _bytes(state.params)
  width = sum(network.widths.values())
  logits = dataset.num_classes * (len(network.modalities) + 2)
  evaluation = 4 * len(dataset) * (width + logits)
  row = sum(4 * math.prod(x.shape[1:]) for x in dataset.inputs.values())
  rows = max(EVAL_BLOCK, setup.config.batch_size)
  activations = _ACTIVATIONS * rows * row
  return training + evaluation + activations + _REST


def memory_bytes(device: jax.Device | None = None) -> int:
  """Memory of an accelerator, or of this machine or container."""
  device = device or jax.local_devices()[0]
  if device.platform != "cpu":
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
      return int(stats["bytes_limit"])
  own = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  limit = Path("/sys/fs/cgroup/memory.max")
  text = limit.read_text().strip() if limit.exists() else "max"
  return min(own, int(text)) if text.isdigit() else own


def is_out_of_memory(error: Exception) -> bool:
  """Whether a device ran out of memory."""
  return "RESOURCE_EXHAUSTED" in str(error)


def _bytes(tree) -> int:
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
