"""Many runs of one method as one compiled program, in waves.

A wave is ``vmap`` over runs of ``scan`` over steps: seeds, held-out domains and
numeric hyperparameters are array axes. With several accelerators the runs are
sharded over them; no run talks to another. A CPU counts as one device, however
many jax is told to expose: on two cores two devices are slower than one
(benchmarks/resident.py --devices=2), and waves with an evaluation hung there
(jaxlib 0.10.2; batched LAPACK calls are the suspect, not the proven cause).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import functools
import itertools
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from mer_dg.contracts import Network
from mer_dg.data.arrays import to_arrays
from mer_dg.data.sampling import Pool, make_pool
from mer_dg.evaluation.evaluators import make_evaluate, name_sources
from mer_dg.experiments.hosts import this_host
from mer_dg.experiments.memory import is_out_of_memory, wave_size
from mer_dg.experiments.runs import Evaluation, Run, run_hyper
from mer_dg.experiments.setup import (
  Setup,
  TaskArrays,
  asked,
  first_state,
  step_of,
  task_arrays,
)
from mer_dg.protocol import Assignment
from mer_dg.reporting.names import display, metric_name, number
from mer_dg.training.progress import Progress
from mer_dg.training.state import TrainState, evaluated, judge, run_keys
from mer_dg.training.step import (
  first_nonfinite,
  make_resident_chunk,
)


class Divergence(NamedTuple):
  """A run that was given up: ``what`` stopped being finite at ``step``."""

  run: Run
  step: int
  what: str

  def __str__(self) -> str:
    return f"{self.run}: {self.what} stopped being finite at step {self.step}"


class Wave(NamedTuple):
  """What a wave ends with.

  Attributes:
    runs: Its runs.
    evaluations: In order of step, then run; of runs that stayed finite only.
    diverged: The others.
    state: Final states, stacked over trainings (`trainings`); there may be more, which
      are padding.
    variables: Of the networks that are evaluated in the end, stacked in the same way.
  """

  runs: Sequence[Run]
  evaluations: list[Evaluation]
  diverged: list[Divergence]
  state: TrainState
  variables: Any


class Grid:
  """What all waves of a setup share; forgotten with it, and made again.

  Attributes:
    setup: The setup.
    tasks: ``task -> TaskArrays``.
    arrays: ``devices -> Arrays``, the dataset on these.
    fresh: ``(network, devices) -> `` its first variables by seed, compiled. What it and
      the next know nothing of is the method: one program serves all of one network.
    evaluation: ``(method, task, devices) -> ``the compiled evaluation: it knows nothing
      of the method, one program serves all of one network and number of sources.
  """

  def __init__(self, setup: Setup):
    self.setup = setup
    host = to_arrays(setup.dataset.in_memory())
    self.tasks = functools.cache(functools.partial(task_arrays, setup))

    @functools.cache
    def arrays(devices: tuple[jax.Device, ...]):
      return jax.device_put(host, NamedSharding(_mesh(devices), P()))

    def evaluation(method: str, task: Assignment, devices: tuple[jax.Device, ...]):
      network = setup.network(method)
      key = id(network), len(setup.folds[task].sources), devices
      if key not in programs:
        evaluate = make_evaluate(network, asked(setup, task, "evaluation"))
        programs[key] = _over_runs(evaluate, (None, 0, 0, 0, 0), devices)
      return programs[key]

    def fresh(network: Network, devices: tuple[jax.Device, ...]):
      if (id(network), devices) not in programs:
        first = lambda seed: dict(network.init(run_keys(jax.random.key(seed)).init))
        programs[id(network), devices] = _over_runs(first, (0,), devices)
      return programs[id(network), devices]

    programs: dict[Any, Callable] = {}
    self.arrays, self.fresh, self.evaluation = arrays, fresh, evaluation


def _mesh(devices: tuple[jax.Device, ...]):
  return jax.make_mesh(
    (len(devices),), ("runs",), axis_types=(AxisType.Auto,), devices=devices
  )


def _over_runs(
  fn, axes: tuple[int | None, ...], devices: tuple[jax.Device, ...], **how
) -> Any:  # What jax.jit returns.
  """``vmap`` over runs, compiled, the runs sharded over the devices."""
  # shard_map, and not sharded arguments alone: what the partitioner does not know
  # how to split (a Cholesky factor, say) it would gather on every device.
  sharded = jax.shard_map(
    jax.vmap(fn, in_axes=axes),
    mesh=_mesh(devices),
    in_specs=tuple(P() if axis is None else P("runs") for axis in axes),
    out_specs=P("runs"),
    check_vma=False,  # Nothing is summed over devices.
  )
  return jax.jit(sharded, **how)


class WaveProgram:
  """The compiled programs of one method: init, chunk of steps, evaluation.

  They take the runs as an array axis, so one object serves all waves of a
  method whose tasks have the same static facts. Everything is padded to the
  largest task of the group: shapes, and hence numbers, do not depend on which
  runs share a wave.

  Args:
    grid: What waves share.
    name: Method name.
    tasks: Tasks of the group.
    runs: Trainings per wave; rounded up to a multiple of the devices used.
    devices: Over which runs are sharded; by default all local accelerators.
  """

  def __init__(
    self,
    grid: Grid,
    name: str,
    tasks: Sequence[Assignment],
    runs: int,
    devices: Sequence[jax.Device] | None = None,
  ):
    setup = self._setup = grid.setup
    if devices is None:
      devices = jax.local_devices()
      devices = devices[:1] if devices[0].platform == "cpu" else devices
    devices = self._devices = tuple(devices[:runs])
    self.runs = -(-runs // len(devices)) * len(devices)
    self._tasks = {task: grid.tasks(task) for task in tasks}
    self._width = max(t.pool.rows.shape[1] for t in self._tasks.values())
    self._blocks = max(len(t.rows) for t in self._tasks.values())
    self._arrays = grid.arrays(devices)
    method = self._method = setup.method(name, tasks[0])
    step, per_domain = step_of(setup, name, tasks[0]), setup.per_domain(tasks[0])

    def init(seed, scaling, hyper, variables):
      given = dict(seed=seed, scaling=scaling, hyper=hyper, variables=variables)
      return first_state(setup, name, tasks[0], **given)

    self._fresh = grid.fresh(setup.network(name), devices)
    self._init = _over_runs(init, (0, 0, 0, 0), devices)
    self._chosen = _over_runs(lambda s: evaluated(s, method), (0,), devices)
    self._shown = _over_runs(method.on_eval, (0, 0), devices)
    self._evaluate = grid.evaluation(name, tasks[0], devices)

    @functools.cache
    def chunk(length: int):
      steps = make_resident_chunk(step, per_domain=per_domain, length=length)
      return _over_runs(steps, (None, 0, 0), devices, donate_argnums=2)

    self._chunk, self._compiled = chunk, dict[int, Callable]()

  def prepare(self, runs: Sequence[Run]) -> WaveProgram:
    """Compiles what the first steps of a wave need; the program itself."""
    state, pool, _ = self.begin([lane[0] for lane in trainings(runs)])
    config = self._setup.config
    length = min(config.eval_every, config.total_steps)
    lowered = self._chunk(length).lower(self._arrays, pool, state)
    self._compiled[length] = lowered.compile()
    return self

  def train(
    self,
    runs: Sequence[Run],
    on_chunk: Callable[[int, Mapping[str, np.ndarray]], None] = lambda *_: None,
  ) -> Wave:
    """Trains runs together and evaluates them every ``eval_every`` steps.

    Args:
      runs: Runs of at most ``self.runs`` trainings; see `trainings`.
      on_chunk: Called after each chunk with the number of steps just done, summed over
        trainings, and the training metrics ``{name: [trainings, steps]}``.
    """
    config, began = self._setup.config, time.perf_counter()
    lanes = trainings(runs)
    count, most = len(lanes), max(map(len, lanes))
    state, pool, rows = self.begin([lane[0] for lane in lanes])
    # A training is judged on the rows of each of its targets.
    judged = [rows, *(self._rows([lane[j % len(lane)] for lane in lanes])
                        for j in range(1, most))]  # fmt: skip
    measure = lambda variables, rows: self._evaluate(self._arrays, *rows, variables)
    evaluations: list[Evaluation] = []
    diverged: dict[Run, Divergence] = {}
    step, total = 0, config.total_steps
    while step < total and len(diverged) < len(runs):
      length = min(config.eval_every, total - step)
      state, metrics = self.advance(state, pool, length)
      state, measured = judge(
        state, self._method, measure, judged,
        remember=self._shown, choose=self._variables,
      )  # fmt: skip
      metrics, measured = jax.tree.map(
        lambda a: np.asarray(a)[:count], (metrics, measured)
      )
      wall = time.perf_counter() - began
      for i, lane in enumerate(lanes):
        own = {k: v[i] for k, v in metrics.items()}
        failed = first_nonfinite(own, step)
        for run, found in zip(lane, measured, strict=False):
          found, bad = {k: v[i] for k, v in found.items()}, failed
          if bad is None and not np.isfinite(found["val/nll"]):
            bad = (step + length, "the source validation")
          if bad is not None:
            diverged.setdefault(run, Divergence(run, *bad))
          if run not in diverged:
            found |= {f"train/{k}": v.mean() for k, v in own.items()}
            named = name_sources(found, self._setup.folds[run.task].sources)
            evaluations.append(Evaluation(run, step + length, named, wall))
      step += length
      on_chunk(length * count, metrics)
    kept = [e for e in evaluations if e.run not in diverged]
    lost = list(diverged.values())
    return Wave(runs, kept, lost, state, self._variables(state))

  def _variables(self, state: TrainState):
    """Of the networks that are evaluated."""
    return self._chosen(state) if self._method.averages else state.variables

  def begin(self, runs: Sequence[Run]):
    """``(state, pool, (rows, domain, mask))``, stacked over runs, before step 1."""
    filled = self._filled(runs)
    pool, rows, scaling = self._stack(
      [self._padded(self._tasks[run.task]) for run in filled]
    )
    hyper = [_as_float32(run_hyper(self._setup, run)) for run in filled]
    seeds = [np.uint32(run.seed) for run in filled]
    seeds = self._stack(seeds)
    state = self._init(seeds, scaling, self._stack(hyper), self._fresh(seeds))
    return state, pool, rows

  def _filled(self, runs: Sequence[Run]) -> list[Run]:
    # The last wave is filled up: another number of runs would be another program.
    return [*runs, *[runs[-1]] * (self.runs - len(runs))]

  def _rows(self, runs: Sequence[Run]):
    """``(rows, domain, mask)``, stacked over runs."""
    tasks = [self._tasks[run.task] for run in self._filled(runs)]
    return self._stack([self._padded_rows(task) for task in tasks])

  def advance(self, state: TrainState, pool: Pool, steps: int):
    """``(state, metrics [runs, steps])`` after ``steps`` more; ``state`` is donated."""
    run = self._compiled.get(steps) or self._chunk(steps)
    return run(self._arrays, pool, state)

  def _stack(self, trees: Sequence[Any]):
    """Pytrees stacked over runs, on the devices."""
    stacked = jax.tree.map(lambda *a: np.stack(a), *trees)
    return jax.device_put(stacked, NamedSharding(_mesh(self._devices), P("runs")))

  def _padded(self, task: TaskArrays):
    """(pool, (rows, domain, mask), scaling) in the shapes of the group."""
    trimmed = [r[:n] for r, n in zip(*task.pool, strict=True)]
    pool = make_pool(trimmed, width=self._width)
    return pool, self._padded_rows(task), task.scaling

  def _padded_rows(self, task: TaskArrays):
    missing = self._blocks - len(task.rows)
    pad = lambda a: np.concatenate([a, np.zeros((missing, *a.shape[1:]), a.dtype)])
    return tuple(pad(a) for a in (task.rows, task.domain, task.mask))


def trainings(runs: Sequence[Run]) -> list[list[Run]]:
  """Runs by the network they train: runs that differ in target alone share one.

  Sources that follow from the target (``run.sources`` is ()) are another training for
  each target.

  Example:
    >>> pair = lambda target: Run("erm", target, 0, sources=("a",))
    >>> [[r.target for r in lane] for lane in trainings([pair("b"), pair("c")])]
    [['b', 'c']]
  """
  lanes: dict[Run, list[Run]] = {}
  for run in runs:
    key = dataclasses.replace(run, target="") if run.sources else run
    lanes.setdefault(key, []).append(run)
  return list(lanes.values())


def train_all(
  grid: Grid,
  runs: Sequence[Run],
  on_wave: Callable[[Wave], None],
  *,
  done: Collection[Run] = (),
) -> None:
  """Trains all runs, wave by wave, methods one after another.

  Which runs share a wave depends on ``runs`` (and the number of hosts) alone: a table
  that was interrupted goes on in the same waves, and ends with the same numbers. Of
  several hosts each trains every n-th wave. A wave that does not fit into the memory of
  the device is trained in halves.

  Args:
    grid: What waves share.
    runs: The runs, of any methods.
    on_wave: Called with each finished wave.
    done: Runs that need no training; a wave of such runs is left out.
  """
  done, (host, hosts), setup = set(done), this_host(), grid.setup
  # Different static facts (a number of sources, say) are different programs.
  groups: dict[Any, list[Run]] = {}
  for run in runs:
    facts = setup.facts(run.trained, run.task)
    groups.setdefault((run.trained, facts), []).append(run)
  size = lambda method, count: min(wave_size(setup, method), -(-count // hosts))
  waves = {g: _waves(runs, size(g[0], len(runs))) for g, runs in groups.items()}
  ours = {group: ws[host::hosts] for group, ws in waves.items()}
  left = {g: [w for w in ws if not done.issuperset(w)] for g, ws in ours.items()}
  count = sum(len(trainings(wave)) for some in left.values() for wave in some)
  hint = (
    "Stop at any time: the same command goes on. Fewer seeds (--config.seeds=1), "
    "methods (--config.methods) or steps (--config.total_steps) take less; seeds and "
    "methods may be added later."
  )
  jobs = []
  for group, members in groups.items():
    if left[group]:
      tasks = list(dict.fromkeys(run.task for run in members))
      lanes = max(len(trainings(wave)) for wave in waves[group])
      make = functools.partial(WaveProgram, grid, group[0], tasks)
      jobs.append(_Job(group[0], make, lanes, left[group]))
  # One method compiles while the one before it trains.
  with (
    Progress(count * setup.config.total_steps, 0, "", hint) as progress,
    ThreadPoolExecutor(1) as ahead,
  ):
    program = None
    for job, after in itertools.zip_longest(jobs, jobs[1:]):
      ready = ahead.submit(_prepared, after) if after else None
      for result in _trained(job, program, progress):
        on_wave(result)
        progress.write(_wave_line(job.name, result, setup.config.metric))
      if ready and after and not ready.done():
        progress.name(display(after.name), compiling=True)
      program = ready.result() if ready else None


class _Job(NamedTuple):
  """What a method has to train, and how its programs are made for some lanes."""

  name: str
  make: Callable[[int], WaveProgram]
  lanes: int
  waves: Sequence[Sequence[Run]]


def _prepared(job: _Job) -> WaveProgram | None:
  try:
    return job.make(job.lanes).prepare(job.waves[0])
  except Exception:  # Whatever it is, training meets and tells it.
    return None


def _trained(
  job: _Job, program: WaveProgram | None, progress: Progress
) -> Iterator[Wave]:
  """Trains waves one after another, in halves once one is too large for the device."""
  name, make, lanes, waves = job
  fresh = program is None
  program, left = program or make(lanes), list(waves)
  while left:
    waves_left = f"{len(left)} wave{'s' * (len(left) > 1)} left"
    progress.name(f"{display(name)}, {waves_left}", compiling=fresh)
    fresh = False
    try:
      result = program.train(left[0], progress.add)
    except jax.errors.JaxRuntimeError as error:
      if not is_out_of_memory(error) or lanes == 1:
        raise
      lanes = -(-lanes // 2)
      progress.write(f"Out of memory: going on with {lanes} runs at once.")
      program, fresh = make(lanes), True
      left = [part for wave in left for part in _waves(wave, lanes)]
      continue
    del left[0]
    yield result


def _waves(members: Sequence[Run], size: int) -> list[Sequence[Run]]:
  """Waves of at most ``size`` trainings, the last one perhaps smaller."""
  lanes = trainings(members)
  each = -(-len(lanes) // -(-len(lanes) // size))
  parts = [lanes[i : i + each] for i in range(0, len(lanes), each)]
  return [[run for lane in part for run in lane] for part in parts]


def _wave_line(name: str, wave: Wave, metric: str) -> str:
  lines = [f"{d}; the run is left out." for d in wave.diverged]
  last = max((e.step for e in wave.evaluations), default=0)
  ended = [e for e in wave.evaluations if e.step == last]
  if ended:
    # Not the target: who looks at it while training chooses by it.
    val = np.mean([e.metrics[f"val/{metric}"] for e in ended])
    lines.append(
      f"{display(name)}: {len(ended)} runs, {ended[0].wall_time_s:.1f} s, source "
      f"validation at the last step: {metric_name(metric, unit=False)} "
      f"{number(val, metric)}"
    )
  return "\n".join(lines)


def _as_float32(tree):
  return jax.tree.map(np.float32, tree)
