"""How many seeds of a table fit into the minutes that a config gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mer_dg.experiments.config import Config
from mer_dg.experiments.search import Encoders
from mer_dg.experiments.setup import Setup
from mer_dg.protocol import Record, group_by

# How much a step of a table's methods costs on average, relative to plain fusion.
_DEARER = 1.5


def seconds_a_step(records: Sequence[Record]) -> dict[str, float]:
  """What one training took a step, by encoder, after its wave's first evaluation.

  Until then a wave compiles.

  Args:
    records: Of runs that choose encoders.

  Returns:
    ``{encoder: seconds}``; empty where runs were evaluated once.
  """
  # {encoder: {seconds a step of a wave: its trainings}}
  waves: dict[str, dict[float, set[Any]]] = {}
  for own in group_by(records, lambda r: r["run_id"]).values():
    first, last = own[0], own[-1]
    if steps := last["step"] - first["step"]:
      took = (last["wall_time_s"] - first["wall_time_s"]) / steps
      of = waves.setdefault(last["tags"]["network.encoder"], {})
      of.setdefault(took, set()).add((*last["sources"], last["seed"]))
  return {e: sum(of) / sum(map(len, of.values())) for e, of in waves.items()}


def affordable_seeds(
  setup: Setup, encoders: Encoders, records: Sequence[Record]
) -> tuple[int, ...]:
  """The first seeds of a table that end in ``config.minutes``, one at least.

  All of them where the config sets no limit, or nothing was measured: vectors have no
  encoder to choose, and are trained in no time.

  Args:
    setup: The setup.
    encoders: Of each task.
    records: Of the runs that chose them, on this machine.
  """
  config, took = setup.config, seconds_a_step(records)
  if not (config.minutes and took):
    return config.seeds
  slowest = max(took.values())
  a_step = sum(took.get(encoders.get(task, ""), slowest) for task in setup.tasks)
  a_seed = a_step * config.total_steps * len(config.methods) * _DEARER
  count = max(1, int(60 * config.minutes / a_seed)) if a_seed > 0 else None
  return config.seeds[:count]


def said(seeds: Sequence[int], config: Config) -> str:
  """What a table does instead of all of its seeds; "" if it trains them all."""
  if len(seeds) == len(config.seeds):
    return ""
  return (
    f"All {len(config.seeds)} seeds would take more than {config.minutes:g} minutes "
    f"here: training {len(seeds)}. The same command with --config.minutes=0 trains "
    "the others, too."
  )
