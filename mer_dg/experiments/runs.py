"""What one run is: method, target, seed, hyperparameters; and its records."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from mer_dg import protocol
from mer_dg.experiments.config import Config, ConfigError, protocol_hash, settings
from mer_dg.experiments.hosts import device_name
from mer_dg.experiments.setup import Setup, tags
from mer_dg.protocol import Assignment, Record, git_revision, make_record
from mer_dg.training.state import make_hyper

# Asked once, before training: git is another program, and starting one from a
# process in which jax is busy is not safe.
code_revision = functools.cache(git_revision)


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a table.

  Attributes:
    method: Method name.
    target: Held-out domain.
    seed: Seed of weights, data order and noise.
    overrides: ``("term.number" or "optimizer.number", value)`` of a search trial.
    trials: Number of settings that were tried to arrive at this one.
    encoder: That which was chosen for its target; "" is that of method and config.
    sources: Domains that train; () is what the protocol of the config says. Runs that
      differ in ``target`` alone, with sources named, are one training.
  """

  method: str
  target: str
  seed: int
  overrides: tuple[tuple[str, float], ...] = ()
  trials: int = 1
  sources: tuple[str, ...] = ()
  encoder: str = ""

  @property
  def trained(self) -> str:
    """What is trained: the method, with the encoder that was chosen."""
    return f"{self.method}@{self.encoder}" if self.encoder else self.method

  @property
  def task(self) -> Assignment:
    """Who trains and who tests."""
    return Assignment(self.target, self.sources)

  def __str__(self) -> str:
    trained = f", trained on {' + '.join(self.sources)}" if self.sources else ""
    words = [f"{self.trained}, target {self.target}{trained}, seed {self.seed}"]
    return ", ".join(words + [f"{name} {value:.4g}" for name, value in self.overrides])


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Metrics of one run at one step; ``wall_time_s`` is that of the program so far."""

  run: Run
  step: int
  metrics: Mapping[str, float]
  wall_time_s: float


def run_hyper(setup: Setup, run: Run) -> dict[str, dict]:
  """Numeric hyperparameters of a run, as `TrainState` holds them.

  Raises:
    ConfigError: If an override names a number that the method does not have.
  """
  method, network = setup.method(run.trained, run.task), setup.network(run.trained)
  hyper = make_hyper(network, method, vars(settings(setup.config, run.trained)[1]))
  groups = _by_group(hyper)
  for name, value in run.overrides:
    term, _, number = name.partition(".")
    if number not in groups.get(term, {}):
      raise ConfigError(f"override {name}: method {run.method!r} has no such number.")
    groups[term][number] = float(value)
  return hyper


def _by_group(hyper: Mapping[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in hyper.items() if k != "method"} | hyper["method"]


def identity(setup: Setup, run: Run) -> dict[str, Any]:
  """What identifies a run, as `make_record` takes it.

  Network and optimiser (those of the config, with what the method changes in them)
  belong to the run, so that runs of several networks share a workdir.
  """
  config, dataset = setup.config, setup.dataset
  network, optimizer = settings(config, run.trained)
  said = _flat({"network": vars(network), "optimizer": vars(optimizer)})
  said |= _flat(_by_group(run_hyper(setup, run)))
  said |= _flat(setup.method(run.trained, run.task).options)
  is_number = lambda v: isinstance(v, int | float) and not isinstance(v, bool)
  return {
    "method": run.method,
    "target": run.target,
    "sources": list(setup.folds[run.task].sources),
    "modalities": list(dataset.modalities),
    "dataset": dataset.name,
    "data_version": dataset.version,
    "seed": run.seed,
    "split_seed": config.split_seed,
    "hyper": {k: float(v) for k, v in said.items() if is_number(v)},
    "tags": {k: str(v) for k, v in said.items() if not is_number(v)} | tags(setup),
    "config_hash": protocol_hash(config),
  }


def _flat(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  return {f"{g}.{k}": v for g, fields in groups.items() for k, v in fields.items()}


def run_id(setup: Setup, run: Run) -> str:
  """The ``run_id`` that the records of a run have."""
  return protocol.run_id(identity(setup, run))


def record_of(setup: Setup, evaluation: Evaluation) -> Record:
  """The record of an evaluation."""
  run = evaluation.run
  return make_record(
    **identity(setup, run),
    protocol=setup.config.protocol,
    trials=run.trials,
    step=evaluation.step,
    metrics=evaluation.metrics,
    git_revision=code_revision(),
    wall_time_s=evaluation.wall_time_s,
    device=device_name(),
    damaged=setup.dataset.num_damaged,
  )


def evaluation_steps(config: Config) -> list[int]:
  """Steps at which every run is evaluated.

  Example:
    >>> import types
    >>> evaluation_steps(types.SimpleNamespace(total_steps=25, eval_every=10))
    [10, 20, 25]
  """
  total, every = config.total_steps, config.eval_every
  return [*range(every, total, every), total]
