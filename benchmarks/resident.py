"""Speed of many vmapped runs against the same runs one after another.

  python benchmarks/resident.py                    # 1, 8 and 64 runs on one device
  python benchmarks/resident.py --waves 4 8 16 32  # which wave size is fastest
  python benchmarks/resident.py --waves 16 --devices=2  # the CPU as 2 jax devices

Every number is that of the default experiment (configs/cooccurrence.py, method
mer_kde, --steps updates per run, evaluations left out). "One after another" trains
one run at a time with the resident driver of a single run, from the same seeds; a
single run is compiled once and reused. Times are medians of --rounds rounds, in which
the two take turns.
"""

import argparse
import os
from pathlib import Path
import statistics
import sys
import time

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--runs", type=int, nargs="*", default=[1, 8, 64])
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--method", default="mer_kde")
  parser.add_argument("--waves", type=int, nargs="+", help="Compare wave sizes.")
  parser.add_argument("--devices", type=int, default=1, help="CPU devices to expose.")
  arguments = parser.parse_args()
  os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
  sys.path.insert(0, str(ROOT))  # configs/ is not installed.

  import jax

  jax.config.update("jax_enable_compilation_cache", False)  # Compile times are real.
  if arguments.devices > 1:
    jax.config.update("jax_num_cpu_devices", arguments.devices)
  from mer_dg.experiments.hosts import device_name

  print(f"Device: {device_name()}, used as {jax.local_device_count()} jax device(s).")
  print(f"{arguments.method}, {arguments.steps} steps a run.\n")
  if arguments.waves:
    compare_waves(arguments)
  else:
    compare_with_loop(arguments)


def compare_with_loop(arguments) -> None:
  """One vmapped program for n runs against n calls of the program for one run."""
  setup = setup_of(arguments.steps, max(arguments.runs), arguments.method)
  runs = make_runs(setup, max(arguments.runs))
  loop, loop_compile = timed(lambda: make_loop(setup, runs[0]))
  rows = []
  for n in arguments.runs:
    wave, wave_compile = timed(lambda n=n: make_wave(setup, runs, n))
    one_by_one, at_once = [], []
    for _ in range(arguments.rounds):
      at_once.append(seconds(lambda wave=wave, n=n: wave(runs[:n])))
      one_by_one.append(seconds(lambda n=n: loop(runs[:n])))
    loop_s, wave_s = statistics.median(one_by_one), statistics.median(at_once)
    with_compile = (loop_s + loop_compile) / (wave_s + wave_compile)
    rows.append(
      f"| {n} | {n / loop_s:.2f} | {n / wave_s:.2f} | **{loop_s / wave_s:.2f}** | "
      f"{loop_compile:.1f} | {wave_compile:.1f} | {with_compile:.2f} |"
    )
  print(
    "| runs | runs/s, one after another | runs/s, vmapped | ratio "
    "| compile, single (s) | compile, vmapped (s) | ratio with compile |\n"
    + "|---:" * 7
    + "|"
  )
  print("\n".join(rows))


def compare_waves(arguments) -> None:
  """Runs/s of one wave for several wave sizes."""
  sizes = arguments.waves
  setup = setup_of(arguments.steps, max(sizes), arguments.method)
  runs = make_runs(setup, max(sizes))
  waves = {n: timed(lambda n=n: make_wave(setup, runs, n)) for n in sizes}
  times: dict[int, list[float]] = {n: [] for n in sizes}
  for _ in range(arguments.rounds):
    for n, (wave, _) in waves.items():
      times[n].append(seconds(lambda wave=wave, n=n: wave(runs[:n])) / n)
  print("| runs in a wave | runs/s | compile (s) |\n|---:|---:|---:|")
  for n, (_, compile_s) in waves.items():
    print(f"| {n} | {1 / statistics.median(times[n]):.2f} | {compile_s:.1f} |")


def setup_of(steps: int, seeds: int, method: str):
  from configs import cooccurrence
  from mer_dg.experiments import make_setup, validate

  config = cooccurrence.get_config()
  config.total_steps, config.eval_every, config.log_every = steps, steps, steps
  config.seeds, config.methods = tuple(range(seeds)), (method,)
  return make_setup(validate(config))


def make_runs(setup, count: int):
  from mer_dg.experiments.runs import Run

  tasks, (method,) = setup.tasks, setup.config.methods
  return [Run(method, tasks[i % len(tasks)].target, i) for i in range(count)]


def make_wave(setup, runs, n: int):
  """The compiled wave of n runs; calling it trains runs from the start."""
  import jax

  from mer_dg.experiments.grid import Grid, WaveProgram

  method, devices = runs[0].method, jax.local_devices()
  program = WaveProgram(Grid(setup), method, setup.tasks, n, devices=devices)

  def train(some):
    state, pool = program.begin(some)[:2]
    return jax.block_until_ready(program.advance(state, pool, setup.config.total_steps))

  train(runs[:n])
  return train


def make_loop(setup, run):
  """The compiled program of a single run, called for one run after another."""
  import jax
  import jax.numpy as jnp

  from mer_dg.data.arrays import put, to_arrays
  from mer_dg.data.sampling import Pool
  from mer_dg.experiments.runs import run_hyper
  from mer_dg.experiments.setup import first_state, step_of, task_arrays
  from mer_dg.training.step import make_resident_chunk

  arrays = put(to_arrays(setup.dataset.in_memory()))
  tasks = {task: task_arrays(setup, task) for task in setup.tasks}
  chunk = make_resident_chunk(
    step_of(setup, run.method, run.task),
    per_domain=setup.per_domain(run.task),
    length=setup.config.total_steps,
  )
  chunk = jax.jit(chunk, donate_argnums=2)
  init = jax.jit(
    lambda seed, scaling, hyper: first_state(
      setup, run.method, run.task, seed=seed, scaling=scaling, hyper=hyper
    )
  )

  def train(some):
    for one in some:
      task = tasks[one.task]
      state = init(jnp.uint32(one.seed), task.scaling, run_hyper(setup, one))
      pool = Pool(*map(jnp.asarray, task.pool))
      jax.block_until_ready(chunk(arrays, pool, state))

  train([run])
  return train


def timed(make):
  """What ``make`` returns, and the seconds it took (compilation and one call)."""
  start = time.perf_counter()
  made = make()
  return made, time.perf_counter() - start


def seconds(call) -> float:
  return timed(call)[1]


if __name__ == "__main__":
  main()
