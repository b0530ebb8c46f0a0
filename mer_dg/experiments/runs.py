"""What one run is: method, target, seed, hyperparameters; and its records."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from mer_dg.experiments.build import Workbench
from mer_dg.experiments.config import ConfigError, protocol_hash
from mer_dg.experiments.hosts import device_name
from mer_dg.protocol import Assignment, Record, git_revision, make_record
from mer_dg.training.state import make_hyper

# Asked once, before training: git is another program, and starting one from a
# process in which jax is busy is not safe.
_git_revision = functools.cache(git_revision)


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a table.

  Attributes:
    method: Method name.
    target: Held-out domain.
    seed: Seed of weights, data order and noise.
    overrides: ``("term.number" or "optimizer.number", value)`` of a search trial.
    trials: Number of settings that were tried to arrive at this one.
    sources: Domains that train; () is what the protocol of the config says. Runs that
      differ in ``target`` alone, with sources named, are one training.
  """

  method: str
  target: str
  seed: int
  overrides: tuple[tuple[str, float], ...] = ()
  trials: int = 1
  sources: tuple[str, ...] = ()

  @property
  def task(self) -> Assignment:
    """Who trains and who tests."""
    return Assignment(self.target, self.sources)

  def __str__(self) -> str:
    trained = f", trained on {' + '.join(self.sources)}" if self.sources else ""
    words = [f"{self.method}, target {self.target}{trained}, seed {self.seed}"]
    return ", ".join(words + [f"{name} {value:.4g}" for name, value in self.overrides])


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Metrics of one run at one step; ``wall_time_s`` is that of the program so far."""

  run: Run
  step: int
  metrics: Mapping[str, float]
  wall_time_s: float


def run_hyper(bench: Workbench, run: Run) -> dict[str, dict]:
  """Numeric hyperparameters of a run, as `TrainState` holds them.

  Raises:
    ConfigError: If an override names a number that the method does not have.
  """
  method = bench.method(run.method, *run.task)
  network = bench.network_of(run.method)
  hyper = make_hyper(network, method, bench.settings("optimizer", run.method))
  groups = {k: v for k, v in hyper.items() if k != "method"} | hyper["method"]
  for name, value in run.overrides:
    term, _, number = name.partition(".")
    if number not in groups.get(term, {}):
      raise ConfigError(
        f"override {name}: method {run.method!r} has no such number (a rate of dropout "
        "that is searched must not be 0 in the config)."
      )
    groups[term][number] = float(value)
  return hyper


def record_of(bench: Workbench, evaluation: Evaluation) -> Record:
  """The record of an evaluation."""
  run, config, dataset = evaluation.run, bench.config, bench.dataset
  return make_record(
    method=run.method,
    target=run.target,
    sources=bench.split(*run.task).sources,
    modalities=dataset.modalities,
    dataset=dataset.name,
    data_version=dataset.version,
    seed=run.seed,
    split_seed=config["split_seed"],
    hyper=_flat(bench, run),
    config_hash=protocol_hash(config),
    protocol=config["protocol"],
    trials=run.trials,
    step=evaluation.step,
    metrics=evaluation.metrics,
    git_revision=_git_revision(),
    wall_time_s=evaluation.wall_time_s,
    device=device_name(),
  )


def run_id(bench: Workbench, run: Run) -> str:
  """The ``run_id`` that the records of a run have."""
  return record_of(bench, Evaluation(run, 0, {}, 0.0))["run_id"]


def _flat(bench: Workbench, run: Run) -> dict[str, Any]:
  """``{"term.number": value}``, and 1 for every ``"term.option=word"``.

  With the words, equal ids mean equal methods, also across workdirs in whose
  configs one name stands for two recipes.
  """
  hyper = run_hyper(bench, run)
  groups = {k: v for k, v in hyper.items() if k != "method"} | hyper["method"]
  flat = {f"{g}.{k}": v for g, numbers in groups.items() for k, v in numbers.items()}
  for term, words in bench.method(run.method, *run.task).options.items():
    flat |= {f"{term}.{option}={word}": 1.0 for option, word in words.items()}
  return flat | bench.words
