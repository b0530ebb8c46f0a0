"""Interleaved timing: contenders take turns, so that a busy machine hits all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import time

import numpy as np


def interleaved(
  contenders: Mapping[str, Callable[[], object]], *, rounds: int = 7
) -> dict[str, dict[str, float]]:
  """Times zero-argument functions that block until their result is there.

  Args:
    contenders: ``{name: call}``. Each is called once before timing (compilation).
    rounds: Turns.

  Returns:
    ``{name: {"wall_ms", "cpu_ms"}}``, minima over the rounds. CPU time is the sum over
    the threads of this process: on a shared machine its ratios are the steadier ones.
  """
  wall = {name: [] for name in contenders}
  cpu = {name: [] for name in contenders}
  for call in contenders.values():
    call()
  for _ in range(rounds):
    for name, call in contenders.items():
      t, c = time.perf_counter(), time.process_time()
      call()
      wall[name].append(time.perf_counter() - t)
      cpu[name].append(time.process_time() - c)
  return {
    name: {"wall_ms": 1e3 * np.min(wall[name]), "cpu_ms": 1e3 * np.min(cpu[name])}
    for name in contenders
  }


def print_table(
  rows: Mapping[str, Mapping[str, float]], base: str, *, extra: Mapping[str, str] = {}
) -> None:
  """Prints a Markdown table of times and their ratio to the row ``base``."""
  print(f"| {'':44s} | wall ms | x | cpu ms | x | |\n|---|---:|---:|---:|---:|---|")
  for name, row in rows.items():
    ratios = [row[k] / rows[base][k] for k in ("wall_ms", "cpu_ms")]
    print(
      f"| {name:44s} | {row['wall_ms']:.2f} | {ratios[0]:.2f} | "
      f"{row['cpu_ms']:.2f} | {ratios[1]:.2f} | {extra.get(name, '')} |"
    )
