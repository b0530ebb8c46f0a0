"""One run with checkpoints: train, resume, evaluate."""

from __future__ import annotations

from collections.abc import Callable
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.data.arrays import Arrays, put, to_arrays
from mer_dg.data.sampling import Pool
from mer_dg.data.splits import NOBODY
from mer_dg.data.stream import DevicePrefetch, stream_batches
from mer_dg.evaluation.evaluators import (
  make_evaluate,
  make_streamed_evaluate,
  name_sources,
)
from mer_dg.experiments import pretrained, video
from mer_dg.experiments.config import settings
from mer_dg.experiments.model import Model
from mer_dg.experiments.runs import (
  Evaluation,
  Run,
  code_revision,
  evaluation_steps,
  record_of,
  run_hyper,
  run_id,
)
from mer_dg.experiments.setup import (
  Setup,
  TaskArrays,
  asked,
  first_state,
  step_of,
  task_arrays,
)
from mer_dg.experiments.tables import append_diverged
from mer_dg.experiments.workdir import MetricsLog, Workdir, WorkdirError
from mer_dg.networks import describe
from mer_dg.protocol import append_records, select, validation_score, write_atomic
from mer_dg.training.checkpoints import Checkpoints
from mer_dg.training.drivers import ResidentDriver, StreamDriver
from mer_dg.training.loop import TrainingDiverged, fit
from mer_dg.training.parameters import CheckpointError
from mer_dg.training.state import TrainState, evaluated, judge, run_keys
from mer_dg.training.step import Step

_NO_CHECKPOINT = "{} holds no checkpoint of {}; train first (--mode=train)."


def the_run(setup: Setup) -> Run:
  """The run of a config with ``target``."""
  config, (task,) = setup.config, setup.tasks
  method, _, encoder = config.method.partition("@")
  return Run(method, task.target, config.seed, sources=task.sources, encoder=encoder)


def is_trained(setup: Setup, workdir: Workdir) -> bool:
  """Whether the run of a config has ended or diverged."""
  ended = workdir.ended(workdir.results, evaluation_steps(setup.config))
  return run_id(setup, the_run(setup)) in ended


def _prepare(setup: Setup, run: Run) -> tuple[TaskArrays, TrainState, Step]:
  """Rows, state before the first step, and the training step of a run."""
  task = task_arrays(setup, run.task)
  step = step_of(setup, run.trained, run.task)
  init_key = run_keys(jax.random.key(run.seed)).init
  variables = jax.jit(setup.network(run.trained).init)(init_key)
  if setup.backbones:
    variables = pretrained.fill(variables, init_key, setup.config, setup.backbones)

  @jax.jit
  def begin(seed, variables):
    how = dict(seed=seed, scaling=task.scaling, hyper=run_hyper(setup, run))
    return first_state(setup, run.trained, run.task, variables=variables, **how)

  state = begin(np.uint32(run.seed), variables)
  return task, state, video.with_inputs(step, setup.dataset)


def _arrays(setup: Setup) -> Arrays | None:
  """The dataset where the driver wants it; none of clips, which are read."""
  if setup.dataset.on_disk:
    return None
  host = to_arrays(setup.dataset.in_memory())
  return put(host) if setup.config.driver == "resident" else host


def _evaluator(
  setup: Setup, run: Run, task: TaskArrays, arrays: Arrays | None
) -> Callable[[dict], dict]:
  """``variables -> metrics``."""
  config, network = setup.config, setup.network(run.trained)
  found = asked(setup, run.task, "evaluation")
  if setup.dataset.on_disk:
    return video.make_evaluate(network, found, setup.dataset, task, config.reader)
  if config.driver == "stream":
    evaluate = make_streamed_evaluate(network, found)
  else:
    evaluate = jax.jit(make_evaluate(network, found))
  return lambda variables: evaluate(
    arrays, task.rows, task.domain, task.mask, variables
  )


def _on_device(pool: Pool) -> Pool:
  return Pool(*map(jnp.asarray, pool))


def _driver(setup: Setup, run: Run, task: TaskArrays, arrays, state: TrainState, step):
  per_domain, config = setup.per_domain(run.task), setup.config
  if config.driver == "resident":
    return ResidentDriver(step, arrays, _on_device(task.pool), per_domain)
  stream = stream_batches(
    setup.dataset.reader(train=True, seed=config.seed),
    key=run_keys(state.key).order,
    pool=task.pool,
    per_domain=per_domain,
    **video.read_ahead(config.reader),
  )
  return StreamDriver(step, DevicePrefetch(stream))


def _checkpoints(setup: Setup, workdir: Workdir, run: str, **how) -> Checkpoints:
  kind = video.TrunklessCheckpoints if setup.backbones else Checkpoints
  return kind(workdir.checkpoints(run), **how)


def train(setup: Setup, workdir: Workdir) -> TrainState:
  """Trains the run of a config to its end, from its newest checkpoint if any.

  Args:
    setup: Of a config with ``target``.
    workdir: Where everything goes.

  Returns:
    The final state.
  """
  config, run = setup.config, the_run(setup)
  code_revision()
  own, steps = run_id(setup, run), evaluation_steps(config)
  missing = workdir.ask(workdir.results, [own], steps)
  task, state, step = _prepare(setup, run)
  if missing:
    print(describe(state.variables))
    if setup.backbones:
      print(pretrained.notice(setup.weights), end="")
  method, sources = setup.method(run.trained, run.task), setup.folds[run.task].sources
  arrays = _arrays(setup)
  measure = _evaluator(setup, run, task, arrays)
  driver = _driver(setup, run, task, arrays, state, step)

  def evaluate(state: TrainState):
    state, (metrics,) = judge(
      state, method, lambda variables, _: measure(variables), [None],
      remember=jax.jit(method.on_eval), choose=lambda s: evaluated(s, method),
    )  # fmt: skip
    named = name_sources(metrics, sources)
    if run.target == NOBODY:  # Nothing was measured there.
      named = {k: v for k, v in named.items() if not k.startswith("target/")}
    return state, named

  began, logs = time.perf_counter(), []

  def on_resume(resumed: int) -> None:
    there = {r["step"] for r in workdir.records() if r["run_id"] == own}
    if any(step <= resumed and step not in there for step in steps):
      raise WorkdirError(
        f"{workdir.results} lacks records that {workdir.checkpoints(own)} has behind "
        f"it, at step {resumed}. Without that folder, the same command trains the run "
        "again."
      )
    logs.append(MetricsLog(workdir, own, config.metric, resumed))
    if 0 < resumed < config.total_steps:
      print(f"Resuming {workdir.path} at step {resumed} of {config.total_steps}.")

  def on_eval(at: int, metrics) -> None:
    workdir.check_there()
    found = Evaluation(run, at, metrics, time.perf_counter() - began)
    # Written before its checkpoint; a record that is there already stays.
    record = record_of(setup, found)
    append_records(workdir.results, [record])
    logs[0].events.evaluation(at, metrics)
    if at == config.total_steps:
      logs[0].events.settings(record)

  try:
    with _checkpoints(setup, workdir, own) as checkpoints:
      state = fit(
        state,
        driver,
        evaluate=evaluate,
        checkpoints=checkpoints,
        total_steps=config.total_steps,
        log_every=config.log_every,
        eval_every=config.eval_every,
        # The rule and the ties of `protocol.select`.
        rank=lambda m: validation_score(m, config.selection, config.metric),
        on_log=lambda at, metrics: logs[0].write(at, metrics),
        on_eval=on_eval,
        on_resume=on_resume,
        label=f"{run.trained} -> {run.target}",
        metric=config.metric,
      )
  except TrainingDiverged as error:
    append_diverged(setup, workdir.diverged, {run: f"{run}: {error}"})
    raise
  finally:
    driver.close()
    for log in logs:
      log.close()
  if not (setup.backbones or setup.dataset.on_disk):
    _model(setup, workdir, run, state).save(workdir.path / "model")
  workdir.finish({own: run.trials}, steps)
  return state


def _check_selected(
  setup: Setup, workdir: Workdir, run: str, best: int, newest: int
) -> None:
  """The best of the checkpoints is the best of the records: none was lost."""
  config = setup.config
  records = [r for r in workdir.records() if r["run_id"] == run]
  # A record is written before its checkpoint: the newest may still be in flight.
  records = [r for r in records if r["step"] <= newest]
  rule, metric = config.selection, config.metric
  for record in select(records, rule, metric=metric) if records else []:
    if record["step"] != best:
      missing = workdir.checkpoints(run) / str(record["step"])
      raise CheckpointError(f"Checkpoint {missing} is not there")


def evaluate(setup: Setup, workdir: Workdir) -> dict[str, float]:
  """Evaluates the checkpoint that source validation selects.

  Args:
    setup: Of a config with ``target``.
    workdir: A workdir in which it was trained.

  Returns:
    The metrics; also written to ``evaluation.json``.

  Raises:
    WorkdirError: If there is no checkpoint.
    CheckpointError: If it cannot be read, or is not what was saved.
  """
  run = the_run(setup)
  task, template, _ = _prepare(setup, run)
  best, variables = _selected(setup, workdir, run, template)
  measure = _evaluator(setup, run, task, _arrays(setup))
  metrics = name_sources(measure(variables), setup.folds[run.task].sources)
  null = {k: v if np.isfinite(v) else None for k, v in metrics.items()}  # As records.
  found = {"run_id": run_id(setup, run), "step": best, "metrics": null}
  write_atomic(
    workdir.path / "evaluation.json",
    json.dumps(found, indent=2, allow_nan=False) + "\n",
  )
  return {"step": float(best), **metrics}


def _model(setup: Setup, workdir: Workdir, run: Run, template: TrainState) -> Model:
  """The network that source validation selects, ready to predict."""
  best, variables = _selected(setup, workdir, run, template)
  own = run_id(setup, run)
  (record,) = (r for r in workdir.records() if (r["run_id"], r["step"]) == (own, best))
  held_out = None if run.target == NOBODY else run.target
  split = setup.folds[run.task]
  about = {
    "method": run.method, "seed": run.seed, "held_out": held_out,
    "sources": list(split.sources), "dataset": setup.dataset.name,
    "data_version": setup.dataset.version, "step": best,
    "scores": {k: v for k, v in record["metrics"].items() if k.startswith("val/")},
  }  # fmt: skip
  return Model(
    setup.dataset.specs,
    setup.dataset.class_names,
    vars(settings(setup.config, run.trained)[0]),
    jax.tree.map(np.asarray, variables),
    setup.dataset.in_memory().waveforms,
    about,
  )


def _selected(
  setup: Setup, workdir: Workdir, run: Run, template: TrainState
) -> tuple[int, dict]:
  """Step and ``variables`` of the checkpoint that source validation selects."""
  own = run_id(setup, run)
  # A training may be writing there.
  with _checkpoints(setup, workdir, own, read_only=True) as checkpoints:
    try:
      found = checkpoints.restore_best(template)
      if found is None:
        raise WorkdirError(_NO_CHECKPOINT.format(workdir.path, run))
      best, state, _ = found
      _check_selected(setup, workdir, own, best, max(checkpoints.steps()))
    except CheckpointError as error:
      raise CheckpointError(
        f"{error}. It is, or may be, the one that source validation selects. Without "
        f"{workdir.checkpoints(own)}, --mode=train makes it again."
      ) from error
  return best, evaluated(state, setup.method(run.trained, run.task))
