"""One run with checkpoints: train, resume, evaluate."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mer_dg.data.stream import DevicePrefetch, stream_batches
from mer_dg.experiments.build import (
  Setting,
  Workbench,
  inspect_embeddings,
  make_measure,
)
from mer_dg.experiments.config import protocol_hash
from mer_dg.experiments.grid import Run, name_sources, run_hyper
from mer_dg.experiments.workdir import MetricsLog, Workdir
from mer_dg.networks import describe
from mer_dg.reporting import (
  append_records,
  device_name,
  git_revision,
  make_record,
)
from mer_dg.reporting.plots import write_atomic
from mer_dg.training.checkpoints import Checkpoints
from mer_dg.training.drivers import ResidentDriver, StreamDriver
from mer_dg.training.loop import fit
from mer_dg.training.state import TrainState, make_state, run_keys
from mer_dg.training.step import make_evaluate, make_train_step


def record_of(bench: Workbench, run: Run, step, metrics, wall_time_s) -> Any:
  """The record of one evaluation of a run."""
  config, split = bench.config, bench.split(run.target)
  method = bench.method(run.method, bench.task(split))
  hyper = run_hyper(bench, method, run)
  flat = {f"optimizer.{k}": v for k, v in hyper["optimizer"].items()}
  for term, numbers in hyper["method"].items():
    flat |= {f"{term}.{k}": v for k, v in numbers.items()}
  return make_record(
    method=run.method,
    target=run.target,
    sources=split.sources,
    modalities=bench.dataset.modalities,
    dataset=bench.dataset.name,
    data_version=bench.dataset.version,
    seed=run.seed,
    split_seed=config["split_seed"],
    hyper=flat,
    config_hash=protocol_hash(config),
    trials=run.trials,
    step=step,
    metrics=metrics,
    git_revision=git_revision(),
    wall_time_s=wall_time_s,
    device=device_name(),
  )


def _prepare(bench: Workbench, run: Run) -> tuple[Setting, TrainState, Any]:
  """Setting, state before the first step, and the training step of a run."""
  config, setting = bench.config, bench.setting(run.target)
  task = bench.task(setting.split)
  method = bench.method(run.method, task)
  horizon = dict(
    schedule=config["optimizer"]["schedule"], total_steps=config["total_steps"]
  )
  step = make_train_step(bench.network, method, **horizon)

  @jax.jit
  def init(seed):
    return make_state(
      bench.network,
      method,
      seed=seed,
      scaling=setting.scaling,
      hyper=run_hyper(bench, method, run),
      **horizon,
    )

  return setting, init(np.uint32(run.seed)), step


def _evaluator(bench: Workbench, setting: Setting) -> Callable[[TrainState], dict]:
  measure = make_measure(bench.config["metric"], setting.split.sources)
  evaluate = jax.jit(make_evaluate(bench.network, measure, inspect_embeddings))

  def run_evaluation(state: TrainState) -> dict[str, float]:
    found = evaluate(
      bench.arrays, setting.rows, setting.mask, setting.domain, state
    )
    found = {k: float(v) for k, v in found.items()}
    return name_sources(found, setting.split.sources)

  return run_evaluation


def _driver(bench: Workbench, setting: Setting, state: TrainState, step):
  per_domain = bench.per_domain(setting.split)
  if bench.config["driver"] == "resident":
    pool = jax.tree.map(jax.numpy.asarray, setting.pool)
    return ResidentDriver(step, bench.arrays, pool, per_domain)
  stream = stream_batches(
    bench.dataset,
    key=run_keys(state.key).order,
    pool=setting.pool,
    per_domain=per_domain,
  )
  return StreamDriver(step, DevicePrefetch(stream))


def train(bench: Workbench, workdir: Workdir) -> TrainState:
  """Trains the run of a config to its end, from its newest checkpoint if any.

  Args:
    bench: Workbench of a config with ``target``.
    workdir: Where everything goes.

  Returns:
    The final state.
  """
  config = bench.config
  run = Run(config["method"], config["target"], config["seed"])
  setting, state, step = _prepare(bench, run)
  print(describe(state.variables))
  evaluate, driver = _evaluator(bench, setting), _driver(bench, setting, state, step)
  began, logs = time.perf_counter(), []

  def on_resume(resumed: int) -> None:
    logs.append(MetricsLog(workdir, resumed))
    if resumed:
      print(f"Resuming {workdir.path} at step {resumed}.")

  def on_eval(at: int, metrics) -> None:
    wall = time.perf_counter() - began
    # Written before its checkpoint; a record that is there already stays.
    append_records(workdir.results, [record_of(bench, run, at, metrics, wall)])
    logs[0].events(at, metrics)

  try:
    with Checkpoints(workdir.checkpoints) as checkpoints:
      state = fit(
        state,
        driver,
        evaluate=evaluate,
        checkpoints=checkpoints,
        total_steps=config["total_steps"],
        log_every=config["log_every"],
        eval_every=config["eval_every"],
        score=f"val/{config['metric']}",
        on_log=lambda at, metrics: logs[0].write(at, metrics),
        on_eval=on_eval,
        on_resume=on_resume,
        label=f"{run.method} -> {run.target}",
      )
  finally:
    for log in logs:
      log.close()
  workdir.finish()
  return state


def evaluate(bench: Workbench, workdir: Workdir) -> dict[str, float]:
  """Evaluates the checkpoint that source validation selects.

  Args:
    bench: Workbench of a config with ``target``.
    workdir: A workdir in which it was trained.

  Returns:
    The metrics; also written to ``evaluation.json``.

  Raises:
    FileNotFoundError: If there is no checkpoint.
  """
  config = bench.config
  run = Run(config["method"], config["target"], config["seed"])
  setting, template, _ = _prepare(bench, run)
  with Checkpoints(workdir.checkpoints) as checkpoints:
    best = checkpoints.best_step()
    if best is None:
      raise FileNotFoundError(
        f"{workdir.checkpoints} holds no checkpoint; train first (--mode=train)."
      )
    state, _ = checkpoints.restore(template, best)
  metrics = _evaluator(bench, setting)(state)
  write_atomic(
    workdir.path / "evaluation.json",
    json.dumps({"step": best, "metrics": metrics}, indent=2) + "\n",
  )
  return {"step": float(best), **metrics}
