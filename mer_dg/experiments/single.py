"""One run with checkpoints: train, resume, evaluate."""

from __future__ import annotations

from collections.abc import Callable
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.data.sampling import Pool
from mer_dg.data.stream import DevicePrefetch, stream_batches
from mer_dg.experiments import pretrained, video
from mer_dg.experiments.build import (
  Setting,
  Workbench,
  make_evaluation,
  name_sources,
)
from mer_dg.experiments.runs import (
  Evaluation,
  Run,
  code_revision,
  evaluation_steps,
  record_of,
  run_hyper,
  run_id,
)
from mer_dg.experiments.workdir import MetricsLog, Workdir, WorkdirError
from mer_dg.methods import Method
from mer_dg.networks import describe
from mer_dg.protocol import append_records, select, validation_score, write_atomic
from mer_dg.training.checkpoints import CheckpointError, Checkpoints
from mer_dg.training.drivers import ResidentDriver, StreamDriver
from mer_dg.training.loop import fit
from mer_dg.training.state import TrainState, evaluated, make_state, run_keys
from mer_dg.training.step import (
  Step,
  make_evaluate,
  make_streamed_evaluate,
  make_train_step,
)

_NO_CHECKPOINT = "{} holds no checkpoint of {}; train first (--mode=train)."


def the_run(bench: Workbench) -> Run:
  """The run of a config with ``target``."""
  config = bench.config
  return Run(config["method"], config["target"], config["seed"])


def _prepare(bench: Workbench, run: Run) -> tuple[Setting, TrainState, Step]:
  """Setting, state before the first step, and the training step of a run."""
  config, setting = bench.config, bench.setting(*run.task)
  method = bench.method(run.method, *run.task)
  network = bench.network_of(run.method)
  schedule = bench.settings("optimizer", run.method)["schedule"]
  horizon = dict(schedule=schedule, total_steps=config["total_steps"])
  step = make_train_step(network, method, **horizon)
  init_key = run_keys(jax.random.key(run.seed)).init
  variables = jax.jit(network.init)(init_key)
  if bench.backbones:
    variables = pretrained.fill(variables, init_key, config, bench.backbones)

  @jax.jit
  def begin(seed, variables):
    hyper, scaling = run_hyper(bench, run), setting.scaling
    return make_state(
      network, method, seed=seed, scaling=scaling, hyper=hyper, variables=variables,
      **horizon,
    )  # fmt: skip

  state = begin(np.uint32(run.seed), variables)
  return setting, state, video.with_inputs(step, bench.dataset)


def _evaluator(
  bench: Workbench, setting: Setting, method_name: str
) -> Callable[[dict], dict]:
  """``variables -> metrics``."""
  sources, network = setting.split.sources, bench.network_of(method_name)
  summary = make_evaluation(network, bench.config["metric"], len(sources))
  if bench.dataset.on_disk:
    return video.make_evaluate(
      network, summary, bench.dataset, setting, bench.config["reader"]
    )
  if bench.config["driver"] == "stream":
    arrays, evaluate = bench.host_arrays, make_streamed_evaluate(network, summary)
  else:
    arrays, evaluate = bench.arrays, jax.jit(make_evaluate(network, summary))
  places = (setting.rows, setting.mask, setting.domain)
  return lambda variables: evaluate(arrays, *places, variables)


def _judge(
  method: Method, evaluate: Callable[[dict], dict], state: TrainState
) -> tuple[TrainState, dict]:
  """The state after its terms saw the evaluation, and the metrics of a record."""
  raw = evaluate(state.variables) if method.watches else None
  if raw is not None:
    state = state.replace(memory=jax.jit(method.on_eval)(state.memory, raw))
    if not method.averages:
      return state, raw
  return state, evaluate(evaluated(state, method))


def _on_device(pool: Pool) -> Pool:
  return Pool(*map(jnp.asarray, pool))


def _driver(bench: Workbench, setting: Setting, state: TrainState, step):
  per_domain = bench.per_domain(setting.split)
  if bench.config["driver"] == "resident":
    return ResidentDriver(step, bench.arrays, _on_device(setting.pool), per_domain)
  config = bench.config
  stream = stream_batches(
    bench.dataset.reader(train=True, seed=config["seed"]),
    key=run_keys(state.key).order,
    pool=setting.pool,
    per_domain=per_domain,
    **video.read_ahead(config["reader"]),
  )
  return StreamDriver(step, DevicePrefetch(stream))


def _checkpoints(bench: Workbench, workdir: Workdir, run: str, **how) -> Checkpoints:
  kind = video.TrunklessCheckpoints if bench.backbones else Checkpoints
  return kind(workdir.checkpoints(run), **how)


def train(bench: Workbench, workdir: Workdir) -> TrainState:
  """Trains the run of a config to its end, from its newest checkpoint if any.

  Args:
    bench: Workbench of a config with ``target``.
    workdir: Where everything goes.

  Returns:
    The final state.
  """
  config, run = bench.config, the_run(bench)
  code_revision()
  own, steps = run_id(bench, run), evaluation_steps(config)
  workdir.ask(workdir.results, [own], steps)
  setting, state, step = _prepare(bench, run)
  print(describe(state.variables))
  if bench.backbones:
    print(pretrained.notice(bench.weight_hashes), end="")
  method, sources = bench.method(run.method, *run.task), setting.split.sources
  measure = _evaluator(bench, setting, run.method)
  driver = _driver(bench, setting, state, step)

  def evaluate(state: TrainState):
    state, metrics = _judge(method, measure, state)
    return state, name_sources(metrics, sources)

  began, logs = time.perf_counter(), []

  def on_resume(resumed: int) -> None:
    there = {r["step"] for r in workdir.records() if r["run_id"] == own}
    if any(step <= resumed and step not in there for step in steps):
      raise WorkdirError(
        f"{workdir.results} lacks records that {workdir.checkpoints(own)} has behind "
        f"it, at step {resumed}. Without that folder, the same command trains the run "
        "again."
      )
    logs.append(MetricsLog(workdir, own, resumed))
    if resumed:
      print(f"Resuming {workdir.path} at step {resumed} of {config['total_steps']}.")

  def on_eval(at: int, metrics) -> None:
    workdir.check_there()
    found = Evaluation(run, at, metrics, time.perf_counter() - began)
    # Written before its checkpoint; a record that is there already stays.
    append_records(workdir.results, [record_of(bench, found)])
    logs[0].events(at, metrics)

  try:
    with _checkpoints(bench, workdir, own) as checkpoints:
      state = fit(
        state,
        driver,
        evaluate=evaluate,
        checkpoints=checkpoints,
        total_steps=config["total_steps"],
        log_every=config["log_every"],
        eval_every=config["eval_every"],
        # The rule and the ties of `protocol.select`.
        rank=lambda m: validation_score(m, config["selection"], config["metric"]),
        on_log=lambda at, metrics: logs[0].write(at, metrics),
        on_eval=on_eval,
        on_resume=on_resume,
        label=f"{run.method} -> {run.target}",
      )
  finally:
    driver.close()
    for log in logs:
      log.close()
  workdir.finish({own: run.trials}, steps)
  return state


def _check_selected(
  bench: Workbench, workdir: Workdir, run: str, best: int, newest: int
) -> None:
  """The best of the checkpoints is the best of the records: none was lost."""
  config = bench.config
  records = [r for r in workdir.records() if r["run_id"] == run]
  # A record is written before its checkpoint: the newest may still be in flight.
  records = [r for r in records if r["step"] <= newest]
  rule, metric = config["selection"], config["metric"]
  for record in select(records, rule, metric=metric) if records else []:
    if record["step"] != best:
      missing = workdir.checkpoints(run) / str(record["step"])
      raise CheckpointError(f"Checkpoint {missing} is not there")


def evaluate(bench: Workbench, workdir: Workdir) -> dict[str, float]:
  """Evaluates the checkpoint that source validation selects.

  Args:
    bench: Workbench of a config with ``target``.
    workdir: A workdir in which it was trained.

  Returns:
    The metrics; also written to ``evaluation.json``.

  Raises:
    WorkdirError: If there is no checkpoint.
    CheckpointError: If it cannot be read, or is not what was saved.
  """
  run = the_run(bench)
  own = run_id(bench, run)
  setting, template, _ = _prepare(bench, run)
  # A training may be writing there.
  with _checkpoints(bench, workdir, own, read_only=True) as checkpoints:
    try:
      found = checkpoints.restore_best(template)
      if found is None:
        raise WorkdirError(_NO_CHECKPOINT.format(workdir.path, run))
      best, state, _ = found
      _check_selected(bench, workdir, own, best, max(checkpoints.steps()))
    except CheckpointError as error:
      raise CheckpointError(
        f"{error}. It is, or may be, the one that source validation selects. Without "
        f"{workdir.checkpoints(own)}, --mode=train makes it again."
      ) from error
  method = bench.method(run.method, *run.task)
  measured = _evaluator(bench, setting, run.method)(evaluated(state, method))
  metrics = name_sources(measured, setting.split.sources)
  null = {k: v if np.isfinite(v) else None for k, v in metrics.items()}  # As records.
  found = {"run_id": own, "step": best, "metrics": null}
  write_atomic(
    workdir.path / "evaluation.json",
    json.dumps(found, indent=2, allow_nan=False) + "\n",
  )
  return {"step": float(best), **metrics}
