"""Many runs of one method as one compiled program, in waves.

A wave is ``vmap`` over runs of ``scan`` over steps: seeds, held-out domains and
numeric hyperparameters are array axes. With several devices the runs are
sharded over them; no run talks to another.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from mer_dg.data.sampling import Pool, make_pool
from mer_dg.experiments.build import Workbench, inspect_embeddings, make_measure
from mer_dg.methods import Method
from mer_dg.training.state import TrainState, make_state
from mer_dg.training.step import (
  first_nonfinite,
  make_evaluate,
  make_resident_chunk,
  make_train_step,
)

log = logging.getLogger(__name__)

# Runs trained at once where the config leaves it open. On a CPU more runs than
# this only cost cache; an accelerator wants many (benchmarks/grid.py).
_WAVE = {"cpu": 16}
_WAVE_ACCELERATOR = 256


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of the table.

  Attributes:
    method: Method name.
    target: Held-out domain.
    seed: Seed of weights, data order and noise.
    overrides: ``{"term.number" or "optimizer.number": value}`` of a search trial.
    trials: Number of settings that were tried to arrive at this one.
  """

  method: str
  target: str
  seed: int
  overrides: tuple[tuple[str, float], ...] = ()
  trials: int = 1


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Metrics of one run at one step."""

  run: Run
  step: int
  metrics: dict[str, float]
  wall_time_s: float


def wave_size(config: Mapping[str, Any]) -> int:
  """Runs per wave: ``config.wave``, or a default of the device."""
  return config["wave"] or _WAVE.get(jax.default_backend(), _WAVE_ACCELERATOR)


def run_hyper(bench: Workbench, method: Method, run: Run) -> dict[str, dict]:
  """Numeric hyperparameters of a run: the method's, with the run's overrides."""
  hyper = jax.tree.map(float, bench.hyper(method))
  for name, value in run.overrides:
    term, _, number = name.partition(".")
    group = hyper["optimizer"] if term == "optimizer" else hyper["method"][term]
    group[number] = float(value)
  return hyper


class WaveProgram:
  """The compiled programs of one method: init, chunk, evaluation.

  They take the runs as array axes, so one object serves all waves of a method
  whose splits have one number of sources.

  Args:
    bench: The workbench.
    name: Method name.
    target: Any target; it fixes the static facts of the task.
  """

  def __init__(self, bench: Workbench, name: str, target: str):
    config, split = bench.config, bench.split(target)
    self.bench, task = bench, bench.task(split)
    self.method = bench.method(name, task)
    self.per_domain = bench.per_domain(split)
    horizon = dict(
      schedule=config["optimizer"]["schedule"], total_steps=config["total_steps"]
    )
    self._step = make_train_step(bench.network, self.method, **horizon)

    def init(seed, scaling, hyper):
      return make_state(
        bench.network, self.method, seed=seed, scaling=scaling, hyper=hyper, **horizon
      )

    measure = make_measure(config["metric"], split.sources)
    evaluate = make_evaluate(bench.network, measure, inspect_embeddings)
    self.init = jax.jit(jax.vmap(init))
    self.evaluate = jax.jit(jax.vmap(evaluate, in_axes=(None, 0, 0, 0, 0)))
    self._chunks: dict[int, Callable] = {}

  def advance(self, arrays, pool, state, length: int):
    """``length`` steps of all runs; metrics ``[runs, length]``."""
    if length not in self._chunks:
      chunk = make_resident_chunk(
        self._step, per_domain=self.per_domain, length=length
      )
      self._chunks[length] = jax.jit(
        jax.vmap(chunk, in_axes=(None, 0, 0)), donate_argnums=2
      )
    return self._chunks[length](arrays, pool, state)


def train_wave(
  program: WaveProgram,
  runs: Sequence[Run],
  on_chunk: Callable[[int], None] = lambda steps: None,
) -> tuple[list[Evaluation], TrainState]:
  """Trains the runs of one wave and evaluates them every ``eval_every`` steps.

  Args:
    program: The programs of their method.
    runs: Runs of that method.
    on_chunk: Called with the number of run-steps just done.

  Returns:
    The evaluations in order of step, then run; and the final states, stacked.
    A run that diverged has evaluations only up to its last finite chunk.
  """
  bench, began = program.bench, time.perf_counter()
  config, place = bench.config, _placement(len(runs))
  settings = [bench.setting(run.target) for run in runs]
  stack = lambda trees: place(jax.tree.map(lambda *a: np.stack(a), *trees))
  pool = place(_stack_pools([s.pool for s in settings]))
  blocks = [_pad_blocks(s, settings) for s in settings]
  rows, mask, domain = (place(np.stack(column)) for column in zip(*blocks, strict=True))
  state = program.init(
    place(np.array([run.seed for run in runs], np.uint32)),
    stack([s.scaling for s in settings]),
    stack([_as_float32(run_hyper(bench, program.method, run)) for run in runs]),
  )
  evaluations, step, alive = [], 0, [True] * len(runs)
  while step < config["total_steps"]:
    length = min(config["eval_every"], config["total_steps"] - step)
    state, metrics = program.advance(bench.arrays, pool, state, length)
    measured = program.evaluate(bench.arrays, rows, mask, domain, state)
    metrics, measured = jax.tree.map(np.asarray, (metrics, measured))
    for i, run in enumerate(runs):
      if alive[i]:
        alive[i] = _still_finite(run, {k: v[i] for k, v in metrics.items()}, step)
    step += length
    wall = time.perf_counter() - began
    for i, run in enumerate(runs):
      if alive[i]:
        found = {k: float(v[i]) for k, v in measured.items()}
        found |= {f"train/{k}": float(v[i].mean()) for k, v in metrics.items()}
        found = name_sources(found, settings[i].split.sources)
        evaluations.append(Evaluation(run, step, found, wall))
    on_chunk(length * len(runs))
  return evaluations, state


def train_all(
  bench: Workbench,
  runs: Iterable[Run],
  on_wave: Callable[[list[Evaluation]], None],
  on_states: Callable[[WaveProgram, Sequence[Run], TrainState], None] | None = None,
) -> None:
  """Trains all runs, wave by wave, methods one after another.

  Args:
    bench: The workbench.
    runs: The runs, of any methods.
    on_wave: Called with the evaluations of each finished wave.
    on_states: Called with program, runs and final states of each finished wave.
  """
  runs = list(runs)
  size, steps = wave_size(bench.config), bench.config["total_steps"]
  # Different numbers of sources are different shapes, hence different programs.
  sources = {t: len(bench.split(t).sources) for t in {r.target for r in runs}}
  groups: dict[tuple[str, int], list[Run]] = {}
  for run in runs:
    groups.setdefault((run.method, sources[run.target]), []).append(run)
  with tqdm(total=len(runs) * steps, unit="step", unit_scale=True) as bar:
    for (name, _), members in groups.items():
      program = WaveProgram(bench, name, members[0].target)
      for start in range(0, len(members), size):
        wave = members[start : start + size]
        bar.set_description(f"{name} {start + len(wave)}/{len(members)} runs")
        evaluations, state = train_wave(program, wave, bar.update)
        on_wave(evaluations)
        if on_states is not None:
          on_states(program, wave, state)
        bar.write(_wave_line(name, wave, evaluations, bench.config["metric"]))


def _wave_line(name, wave, evaluations, metric) -> str:
  last = [e for e in evaluations if e.step == max(x.step for x in evaluations)]
  if not last:
    return f"{name}: all {len(wave)} runs diverged."
  mean = lambda key: 100 * np.mean([e.metrics[key] for e in last])
  return (
    f"{name}: {len(last)} runs, {last[0].wall_time_s:.1f} s, last step: source "
    f"validation {mean(f'val/{metric}'):.1f}, target {mean(f'target/{metric}'):.1f}"
  )


def _still_finite(run: Run, metrics, start: int) -> bool:
  bad = first_nonfinite(metrics, start)
  if bad is not None:
    log.error(
      "%s, target %s, seed %d %s: %s stopped being finite at step %d; the run is left "
      "out of the table from there on.",
      *(run.method, run.target, run.seed, dict(run.overrides) or "", bad[1], bad[0]),
    )
  return bad is None


def name_sources(metrics: dict[str, float], sources) -> dict[str, float]:
  for i, name in enumerate(sources):
    for key in [k for k in metrics if k.startswith(f"val/source{i}/")]:
      metrics[f"val/{name}/{key.rpartition('/')[2]}"] = metrics.pop(key)
  return metrics


def _stack_pools(pools: Sequence[Pool]) -> Pool:
  width = max(p.rows.shape[1] for p in pools)
  rows = [
    make_pool([r[:c] for r, c in zip(*p, strict=True)], width=width) for p in pools
  ]
  return jax.tree.map(lambda *a: np.stack(a), *rows)


def _pad_blocks(setting, settings):
  """(rows, mask, domain) of a setting, padded to the most blocks of any."""
  count = max(len(s.rows) for s in settings)
  pad = lambda a: np.concatenate([a, np.zeros((count - len(a), *a.shape[1:]), a.dtype)])
  return pad(setting.rows), pad(setting.mask), pad(setting.domain)


def _as_float32(tree):
  return jax.tree.map(np.float32, tree)


def _placement(runs: int) -> Callable[[Any], Any]:
  """Puts arrays with a leading axis of runs on the devices, sharded if they divide."""
  devices = jax.devices()
  usable = max(d for d in range(1, len(devices) + 1) if runs % d == 0)
  if usable == 1:
    return lambda tree: jax.tree.map(jnp.asarray, tree)
  mesh = jax.make_mesh(
    (usable,), ("runs",), axis_types=(AxisType.Auto,), devices=devices[:usable]
  )
  sharding = NamedSharding(mesh, P("runs"))
  return lambda tree: jax.device_put(tree, sharding)
