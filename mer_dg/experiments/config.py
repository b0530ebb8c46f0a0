"""Checks a config before anything expensive starts; names a config by a hash."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from mer_dg.data.cooccurrence import TARGET_PAIRINGS
from mer_dg.methods import TERMS, MethodError, check_recipe, merge_recipes
from mer_dg.networks import ENCODERS, FUSIONS
from mer_dg.reporting.records import stable_hash
from mer_dg.training.state import SCHEDULES

DATASETS = ("npz", "av_digits", "cooccurrence")
DRIVERS = ("resident", "stream")
METRICS = ("accuracy", "balanced_accuracy")

# Fields that choose runs, not what a run is: two runs that differ in these only
# belong into one table.
_RUN_AXES = ("target", "targets", "method", "methods", "seed", "seeds", "wave",
             "recipes", "search", "driver", "log_every")  # fmt: skip


class ConfigError(ValueError):
  """A config field is wrong; the message names field, value and allowed set."""


Check = Callable[[Any], str]  # "" if the value is fine, else what is allowed.


def _one_of(*allowed) -> Check:
  return lambda v: "" if v in allowed else f"one of {allowed}"


def _integer(low: int) -> Check:
  fine = lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low
  return lambda v: "" if fine(v) else f"an integer of at least {low}"


def _number(low: float, high: float = math.inf, *, open_low=False) -> Check:
  def check(v):
    fine = isinstance(v, (int, float)) and not isinstance(v, bool)
    fine = fine and (low < v if open_low else low <= v) and v <= high
    return "" if fine else f"a number in {'(' if open_low else '['}{low}, {high}]"

  return check


def _each(check: Check, *, least: int = 0) -> Check:
  def check_all(v):
    if not isinstance(v, (tuple, list)) or len(v) < least:
      return f"a tuple of at least {least}, each {check(None) or 'anything'}"
    if len(set(v)) != len(v):
      return "a tuple without repeats"
    return next((f"a tuple, each {check(x)}" for x in v if check(x)), "")

  return check_all


_TEXT: Check = lambda v: "" if isinstance(v, str) else "a string"
_NAMES = _each(_TEXT)
_BOOL: Check = lambda v: "" if isinstance(v, bool) else "True or False"
_ANY: Check = lambda v: ""
_RATE = lambda v: "" if _number(0.0)(v) == "" and v < 1 else "a number in [0, 1)"

SCHEMA: dict[str, Any] = {
  "target": _TEXT,
  "targets": _NAMES,
  "sources": _NAMES,
  "method": _TEXT,
  "methods": _each(_TEXT, least=1),
  "seed": _integer(0),
  "seeds": _each(_integer(0), least=1),
  "split_seed": _integer(0),
  "metric": _one_of(*METRICS),
  "driver": _one_of(*DRIVERS),
  "total_steps": _integer(1),
  "batch_size": _integer(0),
  "log_every": _integer(1),
  "eval_every": _integer(1),
  "wave": _integer(0),
  "data": {
    "name": _one_of(*DATASETS),
    "path": _TEXT,
    "modalities": _NAMES,
    "val_fraction": _number(0.0, 0.9, open_low=True),
    "drop_unseen_classes": _BOOL,
    "audio": _one_of("logmel", "waveform"),
    # The generator checks its own knobs.
    "cooccurrence": {
      "num_classes": _integer(2),
      "num_domains": _integer(2),
      "strengths": _ANY,
      "widths": _ANY,
      "pairing": _number(0.0, 1.0),
      "target_pairing": _one_of(*TARGET_PAIRINGS),
      "nuisance_scale": _number(0.0),
      "noise": _ANY,
      "train_per_domain": _integer(1),
      "val_per_domain": _integer(1),
      "test_per_domain": _integer(1),
      "seed": _integer(0),
    },
  },
  "network": {
    "encoder": _one_of("auto", *(e for e in ENCODERS if e != "auto")),
    "fusion": _one_of(*FUSIONS),
    "embedding_dim": _integer(1),
    "hidden_dim": _integer(1),
    "fusion_dim": _integer(1),
    "classifier_dim": _integer(1),
    "projector_dim": _integer(1),
    "projection_dim": _integer(1),
    "dropout": _RATE,
    "embedding_dropout": _RATE,
    "modality_dropout": _RATE,
    "input_clip": _number(0.0, open_low=True),
    "compute_dtype": _one_of("float32", "bfloat16"),
  },
  "optimizer": {
    "lr": _number(0.0, 10.0, open_low=True),
    "weight_decay": _number(0.0, 10.0),
    "schedule": _one_of(*SCHEDULES),
  },
  "recipes": _ANY,  # Checked by `check_recipe`.
  "search": {"trials": _integer(0), "seeds": _each(_integer(0), least=1),
             "space": _ANY},  # fmt: skip
}


def validate(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config as a plain dict, checked.

  Args:
    config: A ``ConfigDict`` or nested mapping with exactly the fields of
      configs/common.py.

  Returns:
    A JSON-ready dict (tuples become lists).

  Raises:
    ConfigError: For an unknown, missing or wrong field.
  """
  config = as_dict(config)
  _walk(config, SCHEMA, "config")
  for name in {config["method"], *config["methods"]}:
    try:
      recipe = merge_recipes(name, config["recipes"])
      # The modalities are not known yet; per-modality weights wait for the data.
      named = {t: _without_modality_weights(f) for t, f in recipe.items()}
      check_recipe(name, named)
    except MethodError as error:
      raise ConfigError(str(error)) from error
  if config["eval_every"] % config["log_every"]:
    raise ConfigError(
      f"config.log_every={config['log_every']} must divide "
      f"config.eval_every={config['eval_every']}."
    )
  if config["target"] and config["target"] in config["sources"]:
    raise ConfigError(
      f"config.target={config['target']!r} is also one of "
      f"config.sources={config['sources']}."
    )
  _check_search(config)
  return config


def _without_modality_weights(fields: Mapping) -> dict:
  return {k: v for k, v in fields.items() if not k.startswith("weight_")}


def _check_search(config) -> None:
  search = config["search"]
  shared = set(search["seeds"]) & {config["seed"], *config["seeds"]}
  if search["trials"] and shared:
    raise ConfigError(
      f"config.search.seeds={search['seeds']} and config.seeds share {sorted(shared)}: "
      "the seeds of the table must be fresh."
    )
  for method, space in search["space"].items():
    for name, bounds in space.items():
      field = f"config.search.space.{method}[{name!r}]"
      term, _, number = name.partition(".")
      known = term == "optimizer" and number in ("lr", "weight_decay")
      known = known or (term in TERMS and number in TERMS[term].numeric)
      if not known:
        raise ConfigError(
          f"{field}: no such number; terms are {tuple(TERMS)}, or optimizer.lr, "
          "optimizer.weight_decay."
        )
      if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
        raise ConfigError(f"{field}={bounds} must be (low, high) with 0 < low <= high.")


def _walk(config, schema, path: str) -> None:
  for name in config:
    if name not in schema:
      raise ConfigError(f"{path}.{name} is not a field; {path} has {tuple(schema)}.")
  for name, check in schema.items():
    field = f"{path}.{name}"
    if name not in config:
      raise ConfigError(f"{field} is missing.")
    if isinstance(check, Mapping):
      if not isinstance(config[name], Mapping):
        raise ConfigError(f"{field}={config[name]!r} must be a group of fields.")
      _walk(config[name], check, field)
      continue
    wrong = check(config[name])
    if wrong:
      raise ConfigError(f"{field}={config[name]!r} must be {wrong}.")


def as_dict(config) -> dict[str, Any]:
  """Nested dicts and lists of JSON values."""
  if hasattr(config, "items"):
    return {str(k): as_dict(v) for k, v in config.items()}
  if isinstance(config, (tuple, list)):
    return [as_dict(v) for v in config]
  return config


def protocol_hash(config: Mapping[str, Any]) -> str:
  """Hash of all that two runs of one table share (not methods, seeds, targets)."""
  return stable_hash({k: v for k, v in as_dict(config).items() if k not in _RUN_AXES})
