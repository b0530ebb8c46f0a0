"""Checks a config before anything expensive starts; names a config by a hash."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import math
from typing import Any

from mer_dg.data import registry as datasets
from mer_dg.data.av_digits import AUDIO
from mer_dg.data.cooccurrence import TARGET_PAIRINGS
from mer_dg.data.dataset import TARGET_ROWS
from mer_dg.data.video.dataset import VIDEO_SETS
from mer_dg.experiments import video_config
from mer_dg.methods import (
  SETTINGS,
  MethodError,
  check_recipe,
  merge_recipes,
  numbers_of,
  terms_of,
)
from mer_dg.networks import ENCODERS, FUSIONS, encoders
from mer_dg.networks.pretrained import BN_MODES, LAYER4_INITS
from mer_dg.networks.pretrained.backbone import TRAINABLE
from mer_dg.protocol import PROTOCOLS, SOURCE_RULES
from mer_dg.protocol.records import stable_hash
from mer_dg.training.state import SCHEDULES

DATASETS = ("npz", "av_digits", "cooccurrence", *VIDEO_SETS)
DRIVERS = ("resident", "stream")
METRICS = ("accuracy", "balanced_accuracy")
# Which sets of modalities a benchmark trains on, see `benchmark.subsets`.
SUBSETS = ("all", "fused", "every")

# What two runs of one table share: who trains and tests on what, how it is judged, and
# the budget. Everything else is the run (method, network, optimiser, seed, domains) or
# how it is run. Where the data lie is neither: records have a hash of their content.
_PROTOCOL = ("protocol", "metric", "split_seed", "total_steps", "batch_size",
             "eval_every")  # fmt: skip
_DATA = ("name", "modalities", "val_fraction", "drop_unseen_classes", "target_rows")
# Fields of ``config.data`` that some sets have.
_DATA_OF = {"av_digits": ("audio",), "cooccurrence": ("cooccurrence",)}
_DATA_OF |= dict.fromkeys(VIDEO_SETS, ("sync_augment",))


class ConfigError(ValueError):
  """A config field is wrong; the message names field, value and allowed set."""


Check = Callable[[Any], str]  # "" if the value is fine, else what is allowed.


def _one_of(*allowed) -> Check:
  return lambda v: "" if v in allowed else f"one of {allowed}"


def _integer(low: int, high: int = 2**31 - 1) -> Check:
  fine = lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high
  return lambda v: "" if fine(v) else f"an integer in [{low}, {high}]"


def _number(low: float, high: float = math.inf, *, open_low=False) -> Check:
  def check(v):
    fine = isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
    fine = fine and (low < v if open_low else low <= v) and v <= high
    return "" if fine else f"a number in {'(' if open_low else '['}{low}, {high}]"

  return check


def _each(check: Check, *, least: int = 0, unique: bool = True) -> Check:
  def check_all(v):
    if not isinstance(v, tuple | list) or len(v) < least:
      return f"a tuple of at least {least}, each {check(None)}"
    if any(check(x) for x in v):
      return f"a tuple, each {check(None)}"
    return "a tuple without repeats" if unique and len(set(v)) != len(v) else ""

  return check_all


def _named(known: Callable[[], tuple[str, ...]]) -> Check:
  """One of names that a user's file may add to."""
  return lambda v: "" if v in known() else f"one of {known()}"


_TEXT: Check = lambda v: "" if isinstance(v, str) else "a string"
_NAMES = _each(_TEXT)
_BOOL: Check = lambda v: "" if isinstance(v, bool) else "True or False"
_GROUP: Check = lambda v: "" if isinstance(v, Mapping) else "a group of fields"
_DEPTHS: Check = lambda v: (
  ""
  if _each(_integer(1), unique=False)(v) == "" and len(v) in (0, 4)
  else "() or 4 >= 1"
)
_ENCODER = {"weights": _TEXT, "depths": _DEPTHS, "width": _integer(8, 1024)}
_GROUPS: Check = lambda v: (
  "groups of fields by name"
  if not isinstance(v, Mapping) or any(map(_GROUP, v.values()))
  else ""
)
_RATE = lambda v: "" if _number(0.0)(v) == "" and v < 1 else "a number in [0, 1)"

SCHEMA: dict[str, Any] = {
  "target": _TEXT,
  "targets": _NAMES,
  "sources": _NAMES,
  "protocol": _one_of(*PROTOCOLS),
  "method": _TEXT,
  "methods": _each(_TEXT, least=1),
  "seed": _integer(0),
  "seeds": _each(_integer(0), least=1),
  "split_seed": _integer(0),
  "metric": _one_of(*METRICS),
  "selection": _one_of(*SOURCE_RULES),
  "driver": _one_of(*DRIVERS),
  "total_steps": _integer(1),
  "batch_size": _integer(0),
  "log_every": _integer(1),
  "eval_every": _integer(1),
  "wave": _integer(0),
  "data": {
    "name": _named(lambda: (*DATASETS, *datasets.REGISTERED)),
    "path": _TEXT,
    "modalities": _NAMES,
    "val_fraction": _number(0.0, 0.9, open_low=True),
    "drop_unseen_classes": _BOOL,
    "target_rows": _one_of(*TARGET_ROWS),
    "sync_augment": _BOOL,
    "audio": _one_of(*AUDIO),
    # How the knobs must fit each other is checked by the generator.
    "cooccurrence": {
      "num_classes": _integer(2),
      "num_domains": _integer(2),
      "strengths": _each(_number(0.0), least=2, unique=False),
      "widths": _each(_integer(1), least=2, unique=False),
      "pairing": _number(0.0, 1.0),
      "target_pairing": _one_of(*TARGET_PAIRINGS),
      "nuisance_scale": _number(0.0),
      "noise": _each(_number(0.0), least=2, unique=False),
      "train_per_domain": _integer(1),
      "val_per_domain": _integer(1),
      "test_per_domain": _integer(1),
      "seed": _integer(0),
    },
  },
  "network": {
    "encoder": _named(
      lambda: (*dict.fromkeys(ENCODERS), *encoders.REGISTERED, video_config.ENCODER)
    ),
    "fusion": _one_of(*FUSIONS),
    "embedding_dim": _integer(1),
    "hidden_dim": _integer(1),
    "fusion_dim": _integer(1),
    "classifier_dim": _integer(1),
    "projector_dim": _integer(1),
    "projection_dim": _integer(1),
    "dropout": _RATE,
    "embedding_dropout": _RATE,
    "input_clip": _number(0.0, open_low=True),
    "compute_dtype": _one_of("float32", "bfloat16"),
  },
  "backbones": {
    "bn_mode": _one_of(*BN_MODES),
    "audio_layer4": _one_of(*LAYER4_INITS),
    "trainable": _one_of(*TRAINABLE),
    "remat": _BOOL,
    "video": _ENCODER,
    "audio": _ENCODER,
    "flow": _ENCODER,
  },
  "reader": {
    "threads": _integer(0, 1024),
    "workers": _integer(0, 1024),
    "prefetch": _integer(1, 1024),
    "eval_batch": _integer(1, 65536),
  },
  "optimizer": {
    "lr": _number(0.0, open_low=True),
    "weight_decay": _number(0.0, 10.0),
    "schedule": _one_of(*SCHEDULES),
  },
  "recipes": _GROUP,  # Checked by `check_recipe`.
  "benchmark": {
    "datasets": _GROUPS,  # Each merged into the config and checked as one.
    "protocols": _each(_one_of(*PROTOCOLS), least=1),
    "subsets": _one_of(*SUBSETS),
  },
  "search": {
    "trials": _integer(0),
    "seeds": _each(_integer(0), least=1),
    "space": _GROUP,  # Checked by `check_space`.
  },
}


def validate(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config as a plain dict, checked.

  Args:
    config: A ``ConfigDict`` or nested mapping with exactly the fields of
      configs/common.py.

  Returns:
    A JSON-ready dict (tuples become lists). Where ``log_every`` does not divide
    ``eval_every`` it is the largest smaller number that does.

  Raises:
    ConfigError: For an unknown, missing or wrong field.
  """
  config = as_dict(config)
  _walk(config, SCHEMA, "config")
  try:
    # Modalities are not known yet; the workbench checks again with their names.
    for name, recipe in config["recipes"].items():
      check_recipe(name, recipe)
  except MethodError as error:
    raise ConfigError(str(error)) from error
  for field, names in (("method", [config["method"]]), ("methods", config["methods"])):
    for name in names:
      try:
        recipe = merge_recipes(name, config["recipes"])
        check_recipe(name, recipe)
      except MethodError as error:
        raise ConfigError(f"config.{field}={config[field]!r}: {error}") from error
      for group in SETTINGS:
        changed = {**config[group], **recipe.get(group, {})}
        _walk(changed, SCHEMA[group], f"config.recipes.{name}.{group}")
  config["log_every"] = min(config["log_every"], config["eval_every"])
  while config["eval_every"] % config["log_every"]:
    config["log_every"] -= 1  # It ends at 1.
  wrong = video_config.problem(config)
  if wrong:
    raise ConfigError(wrong)
  _check_protocol(config)
  if config["driver"] == "stream" and not config["target"]:
    raise ConfigError(
      "config.driver='stream' trains one run: name the held-out domain after the "
      "config file (configs/x.py:DOMAIN); the table is 'resident'."
    )
  _check_seeds(config)
  check_space(config)
  return config


def _check_protocol(config) -> None:
  protocol, sources = config["protocol"], config["sources"]
  if protocol == "in_domain" and sources:
    raise ConfigError(
      f"config.sources={sources} must be () with config.protocol='in_domain': every "
      "target trains on rows of its own."
    )
  if protocol == "single_source" and config["target"] and len(sources) != 1:
    raise ConfigError(
      f"config.sources={sources} must name the one source of a single run with "
      "config.protocol='single_source'."
    )
  if protocol == "single_source" and not config["target"]:
    return  # Pairs of a domain with itself are left out.
  field = "target" if config["target"] else "targets"
  for target in [config["target"]] if config["target"] else config["targets"]:
    if target in sources:
      raise ConfigError(
        f"config.{field}: {target!r} is also one of config.sources={sources}."
      )


def _check_seeds(config) -> None:
  search = config["search"]
  shared = set(search["seeds"]) & {config["seed"], *config["seeds"]}
  if search["trials"] and shared:
    raise ConfigError(
      f"config.search.seeds={search['seeds']} and config.seeds share {sorted(shared)}: "
      "the seeds of the table must be fresh."
    )


def check_space(config: Mapping[str, Any], modalities=None) -> None:
  """Checks ``config.search.space``, ``{method: {term: {number: (low, high)}}}``.

  Args:
    config: The config as a dict.
    modalities: Names of the modalities; None while they are not known lets any
      ``weight_<modality>`` pass.

  Raises:
    ConfigError: A method, term or number that does not exist, or bounds that are
      none; the message names the field.
  """
  for method, terms in config["search"]["space"].items():
    where = f"config.search.space.{method}"
    try:
      recipe = terms_of(merge_recipes(method, config["recipes"]))
    except MethodError as error:
      raise ConfigError(f"{where}: {error}") from error
    if not isinstance(terms, Mapping):
      raise ConfigError(f"{where}={terms!r} must be a group of terms.")
    for term, numbers in terms.items():
      if term not in recipe and term not in SETTINGS:
        raise ConfigError(
          f"{where}.{term} is no term of the method; it has {(*recipe, *SETTINGS)}."
        )
      if not isinstance(numbers, Mapping):
        raise ConfigError(f"{where}.{term}={numbers!r} must be a group of numbers.")
      named = [n.removeprefix("weight_") for n in numbers if n.startswith("weight_")]
      allowed = _searchable(recipe, term, named if modalities is None else modalities)
      for number, bounds in numbers.items():
        field = f"{where}.{term}.{number}"
        if number not in allowed:
          raise ConfigError(f"{field} is not one of {tuple(allowed)}.")
        low, high = allowed[number]
        fine = isinstance(bounds, tuple | list) and len(bounds) == 2
        fine = fine and not any(_number(low, high)(b) for b in bounds)
        if not fine or not 0 < bounds[0] <= bounds[1]:
          raise ConfigError(
            f"{field}={bounds!r} must be (low, high), 0 < low <= high, within "
            f"[{low}, {high}]."
          )


def _searchable(recipe, term: str, modalities) -> dict[str, tuple[float, float]]:
  if term == "optimizer":
    return {"lr": (0.0, math.inf), "weight_decay": (0.0, 10.0)}
  if term == "network":
    return {"dropout": (0.0, 0.99), "embedding_dropout": (0.0, 0.99)}
  numeric = numbers_of(term, recipe[term], modalities)
  return {name: (number.low, number.high) for name, number in numeric.items()}


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


def as_dict(config) -> Any:
  """Nested dicts and lists of JSON values."""
  if hasattr(config, "items"):
    return {str(k): as_dict(v) for k, v in config.items()}
  if isinstance(config, tuple | list):
    return [as_dict(v) for v in config]
  return config


def protocol_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a config that the rows of one table share, ``{"data.name": ...}``.

  A field that is off (False, 0, empty) is left out, so that one which a later version
  adds, off, makes no other protocol.
  """
  config = as_dict(config)
  data = config.get("data", {})
  fields = {name: config.get(name) for name in _PROTOCOL}
  for name in (*_DATA, *_DATA_OF.get(data.get("name"), ())):
    fields |= _flat(f"data.{name}", data.get(name))
  return {name: value for name, value in fields.items() if value}


def _flat(name: str, value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    return {name: value}
  groups = (_flat(f"{name}.{k}", v) for k, v in value.items())
  return {k: v for group in groups for k, v in group.items()}


def protocol_hash(config: Mapping[str, Any]) -> str:
  """Hash of all that two runs of one table share, `protocol_of`."""
  return stable_hash(protocol_of(config))
