"""Several hosts, one table: each trains its share of the waves.

Under ``jax.distributed`` every host runs the same command on the same workdir (a folder
that all see), takes every n-th wave, and writes records of its own. No run talks to
another, so no number travels between hosts; only files and barriers do.
"""

from __future__ import annotations

import os
import pathlib
import platform

import jax
from jax.experimental import multihost_utils
import numpy as np

from mer_dg.experiments.config import ConfigError


def start(where: str) -> None:
  """Joins the other hosts; to be called before anything else of jax.

  Args:
    where: ``"auto"``, where the cluster says who is who (Slurm, MPI, Cloud TPU), or
      ``"ADDRESS:PORT,COUNT,INDEX"``: the address of host 0, how many hosts there are,
      and which one this is. ``""`` is one host alone.

  Raises:
    ConfigError: If it is none of these.
  """
  if where == "auto":
    jax.distributed.initialize()
  elif where:
    address, *numbers = where.split(",")
    if len(numbers) != 2 or not all(n.isdigit() for n in numbers) or ":" not in address:
      raise ConfigError(
        f"--distributed={where!r} must be 'auto' or 'ADDRESS:PORT,COUNT,INDEX'."
      )
    count, index = map(int, numbers)
    if index >= count:
      raise ConfigError(f"--distributed={where!r}: INDEX must be less than COUNT.")
    jax.distributed.initialize(address, count, index)


def this_host() -> tuple[int, int]:
  """(index, number of hosts)."""
  if not jax.distributed.is_initialized():
    return 0, 1  # Without waking a backend.
  return jax.process_index(), jax.process_count()


def is_first_host() -> bool:
  """Whether this host is the one that reports."""
  return this_host()[0] == 0


def wait_for_all(name: str) -> None:
  """Returns when every host has come to this point."""
  if this_host()[1] > 1:
    multihost_utils.sync_global_devices(name)


def agree(fine: bool) -> bool:
  """What the first host says; every host must ask."""
  if this_host()[1] == 1:
    return fine
  return bool(multihost_utils.broadcast_one_to_all(np.int32(fine)))


def device_name() -> str:
  """Number and kind of the local jax devices, e.g. ``1 x NVIDIA H100``.

  On CPU the processor's name and the cores this process may use.
  """
  devices = jax.local_devices()
  if devices[0].platform != "cpu":
    return f"{len(devices)} x {devices[0].device_kind}"
  affinity = getattr(os, "sched_getaffinity", None)
  cores = len(affinity(0)) if affinity else os.cpu_count()
  return f"{cores} cores of {_cpu_name()}"


def _cpu_name() -> str:
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  if cpuinfo.exists():
    for line in cpuinfo.read_text(errors="replace").splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine() or "an unknown CPU"
