"""A config: checked once at the door, frozen inside, named by a hash."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
from typing import Annotated, Any, get_type_hints

from mer_dg.data import registry as datasets
from mer_dg.data.av_digits import AUDIO
from mer_dg.data.cooccurrence import TARGET_PAIRINGS
from mer_dg.data.dataset import ARRAY_KINDS, TARGET_ROWS
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
from mer_dg.networks.published import BN_MODES, LAYER4_INITS
from mer_dg.networks.published.backbone import TRAINABLE
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
_DATA = (
  "name",
  "modalities",
  "kinds",
  "val_fraction",
  "drop_unseen_classes",
  "target_rows",
)
# Fields of ``config.data`` that some sets have.
_DATA_OF: dict[str, tuple[str, ...]] = {
  "av_digits": ("audio",),
  "cooccurrence": ("cooccurrence",),
  **dict.fromkeys(VIDEO_SETS, ("sync_augment", "reencode")),
}


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
_BOOL: Check = lambda v: "" if isinstance(v, bool) else "True or False"
_GROUP: Check = lambda v: "" if isinstance(v, Mapping) else "a group of fields"
_DEPTHS: Check = lambda v: (
  ""
  if _each(_integer(1), unique=False)(v) == "" and len(v) in (0, 4)
  else "() or 4 >= 1"
)
_GROUPS: Check = lambda v: (
  "groups of fields by name"
  if not isinstance(v, Mapping) or any(map(_GROUP, v.values()))
  else ""
)
_KIND: Check = lambda v: (
  ""
  if isinstance(v, str) and v.rpartition("=")[0] and v.rpartition("=")[2] in ARRAY_KINDS
  else f"'MODALITY=KIND' with a kind out of {ARRAY_KINDS}"
)
_RATE = lambda v: "" if _number(0.0)(v) == "" and v < 1 else "a number in [0, 1)"

# A field's type, and the check of its value.
Text = Annotated[str, _TEXT]
Names = Annotated[tuple[str, ...], _each(_TEXT)]
Bool = Annotated[bool, _BOOL]
Seed = Annotated[int, _integer(0)]
Seeds = Annotated[tuple[int, ...], _each(_integer(0), least=1)]
Count = Annotated[int, _integer(1)]
Rate = Annotated[float, _RATE]
SetName = Annotated[str, _named(lambda: (*DATASETS, *datasets.REGISTERED))]
EncoderName = Annotated[
  str,
  _named(
    lambda: (*dict.fromkeys(ENCODERS), *encoders.REGISTERED, video_config.ENCODER)
  ),
]
# What is written by name of a method, term or set, as JSON has it.
Group = Annotated[Mapping[str, Any], _GROUP]
_frozen = dataclasses.dataclass(frozen=True, kw_only=True)


@_frozen
class CooccurrenceFields:
  """``config.data.cooccurrence``; the generator checks how they fit each other."""

  num_classes: Annotated[int, _integer(2)]
  num_domains: Annotated[int, _integer(2)]
  strengths: Annotated[tuple[float, ...], _each(_number(0.0), least=2, unique=False)]
  widths: Annotated[tuple[int, ...], _each(_integer(1), least=2, unique=False)]
  pairing: Annotated[float, _number(0.0, 1.0)]
  target_pairing: Annotated[str, _one_of(*TARGET_PAIRINGS)]
  nuisance_scale: Annotated[float, _number(0.0)]
  noise: Annotated[tuple[float, ...], _each(_number(0.0), least=2, unique=False)]
  train_per_domain: Count
  val_per_domain: Count
  test_per_domain: Count
  seed: Seed


@_frozen
class DataFields:
  """``config.data``."""

  name: SetName
  path: Text
  modalities: Names
  kinds: Annotated[tuple[str, ...], _each(_KIND)]
  val_fraction: Annotated[float, _number(0.0, 0.9, open_low=True)]
  drop_unseen_classes: Bool
  target_rows: Annotated[str, _one_of(*TARGET_ROWS)]
  sync_augment: Bool
  reencode: Bool
  audio: Annotated[str, _one_of(*AUDIO)]
  cooccurrence: CooccurrenceFields


@_frozen
class NetworkFields:
  """``config.network``, or what a method makes of it."""

  encoder: EncoderName
  fusion: Annotated[str, _one_of(*FUSIONS)]
  embedding_dim: Count
  hidden_dim: Count
  fusion_dim: Count
  classifier_dim: Count
  projector_dim: Count
  projection_dim: Count
  dropout: Rate
  embedding_dropout: Rate
  input_clip: Annotated[float, _number(0.0, open_low=True)]
  compute_dtype: Annotated[str, _one_of("float32", "bfloat16")]


@_frozen
class EncoderFields:
  """One published encoder of ``config.backbones``."""

  weights: Text
  depths: Annotated[tuple[int, ...], _DEPTHS]
  width: Annotated[int, _integer(8, 1024)]


@_frozen
class BackboneFields:
  """``config.backbones``."""

  bn_mode: Annotated[str, _one_of(*BN_MODES)]
  audio_layer4: Annotated[str, _one_of(*LAYER4_INITS)]
  trainable: Annotated[str, _one_of(*TRAINABLE)]
  remat: Bool
  video: EncoderFields
  audio: EncoderFields
  flow: EncoderFields

  def encoder(self, modality: str) -> EncoderFields:
    """Of one modality of a video set."""
    return {"video": self.video, "audio": self.audio, "flow": self.flow}[modality]


@_frozen
class ReaderFields:
  """``config.reader``."""

  threads: Annotated[int, _integer(0, 1024)]
  workers: Annotated[int, _integer(0, 1024)]
  prefetch: Annotated[int, _integer(1, 1024)]
  eval_batch: Annotated[int, _integer(1, 65536)]
  max_damaged: Annotated[float, _number(0.0, 1.0)]


@_frozen
class OptimizerFields:
  """``config.optimizer``, or what a method makes of it."""

  lr: Annotated[float, _number(0.0, open_low=True)]
  weight_decay: Annotated[float, _number(0.0, 10.0)]
  schedule: Annotated[str, _one_of(*SCHEDULES)]


@_frozen
class BenchmarkFields:
  """``config.benchmark``; a table is checked with its ``datasets`` merged in."""

  datasets: Annotated[Mapping[str, Any], _GROUPS]
  protocols: Annotated[tuple[str, ...], _each(_one_of(*PROTOCOLS), least=1)]
  subsets: Annotated[str, _one_of(*SUBSETS)]


@_frozen
class SearchFields:
  """``config.search``; `check_space` looks at ``space``."""

  trials: Annotated[int, _integer(0)]
  seed: Annotated[int, _integer(0)]
  seeds: Seeds
  space: Group


@_frozen
class Config:
  """A checked config, from `validate`; configs/common.py says what the fields mean."""

  target: Text
  targets: Names
  sources: Names
  protocol: Annotated[str, _one_of(*PROTOCOLS)]
  method: Text
  methods: Annotated[tuple[str, ...], _each(_TEXT, least=1)]
  seed: Seed
  seeds: Seeds
  split_seed: Seed
  metric: Annotated[str, _one_of(*METRICS)]
  selection: Annotated[str, _one_of(*SOURCE_RULES)]
  driver: Annotated[str, _one_of(*DRIVERS)]
  total_steps: Count
  batch_size: Annotated[int, _integer(0)]
  log_every: Count
  eval_every: Count
  wave: Annotated[int, _integer(0)]
  data: DataFields
  network: NetworkFields
  backbones: BackboneFields
  reader: ReaderFields
  optimizer: OptimizerFields
  recipes: Group  # Checked by `check_recipe`.
  benchmark: BenchmarkFields
  search: SearchFields


@functools.cache
def fields_of(kind: type) -> dict[str, Any]:
  """``{field: its check, or the class of its group}``, in order."""
  hints = get_type_hints(kind, include_extras=True)
  return {name: getattr(h, "__metadata__", (h,))[0] for name, h in hints.items()}


def validate(config: Mapping[str, Any] | Config) -> Config:
  """A config, checked.

  Args:
    config: A ``ConfigDict`` or nested mapping with exactly the fields of
      configs/common.py.

  Returns:
    The frozen config. Where ``log_every`` does not divide ``eval_every`` it is the
    largest smaller number that does.

  Raises:
    ConfigError: For an unknown, missing or wrong field.
  """
  fields = as_dict(config)
  _walk(fields, Config, "config")
  config = _made(Config, fields)
  try:
    # Modalities are not known yet; `check` looks again with their names.
    for name, recipe in config.recipes.items():
      check_recipe(name, recipe)
  except MethodError as error:
    raise ConfigError(str(error)) from error
  for field, names in (("method", (config.method,)), ("methods", config.methods)):
    for name in names:
      try:
        recipe = merge_recipes(name, config.recipes)
        check_recipe(name, recipe)
      except MethodError as error:
        raise ConfigError(f"config.{field}={fields[field]!r}: {error}") from error
      for group, kind in _SETTINGS.items():
        changed = fields[group] | recipe.get(group, {})
        _walk(changed, kind, f"config.recipes.{name}.{group}")
  log_every = min(config.log_every, config.eval_every)
  while config.eval_every % log_every:
    log_every -= 1  # It ends at 1.
  config = dataclasses.replace(config, log_every=log_every)
  wrong = video_config.problem(config)
  if wrong:
    raise ConfigError(wrong)
  _check_protocol(config)
  if config.driver == "stream" and not config.target:
    raise ConfigError(
      "config.driver='stream' trains one run: name the held-out domain after the "
      "config file (configs/x.py:DOMAIN); the table is 'resident'."
    )
  _check_seeds(config)
  check_space(config)
  return config


# Groups of the config that a method may change.
_SETTINGS = {"network": NetworkFields, "optimizer": OptimizerFields}


def _made(kind: type, fields: Mapping[str, Any]) -> Any:
  """Checked fields as their class; lists of a field become tuples."""
  made = {}
  for name, check in fields_of(kind).items():
    value = fields[name]
    if dataclasses.is_dataclass(check):
      value = _made(check, value)
    made[name] = tuple(value) if isinstance(value, list) else value
  return kind(**made)


def settings(config: Config, method: str = "") -> tuple[NetworkFields, OptimizerFields]:
  """Network and optimiser of a method: those of the config, unless it changes them."""
  recipe = merge_recipes(method, config.recipes) if method else {}
  network = dataclasses.replace(config.network, **recipe.get("network", {}))
  return network, dataclasses.replace(config.optimizer, **recipe.get("optimizer", {}))


def _check_protocol(config: Config) -> None:
  protocol, sources = config.protocol, config.sources
  if protocol == "in_domain" and sources:
    raise ConfigError(
      f"config.sources={sources} must be () with config.protocol='in_domain': every "
      "target trains on rows of its own."
    )
  if protocol == "single_source" and config.target and len(sources) != 1:
    raise ConfigError(
      f"config.sources={sources} must name the one source of a single run with "
      "config.protocol='single_source'."
    )
  if protocol == "single_source" and not config.target:
    return  # Pairs of a domain with itself are left out.
  field = "target" if config.target else "targets"
  for target in (config.target,) if config.target else config.targets:
    if target in sources:
      raise ConfigError(
        f"config.{field}: {target!r} is also one of config.sources={sources}."
      )


def _check_seeds(config: Config) -> None:
  search = config.search
  shared = set(search.seeds) & {config.seed, *config.seeds}
  if search.trials and shared:
    raise ConfigError(
      f"config.search.seeds={search.seeds} and config.seeds share {sorted(shared)}: "
      "the seeds of the table must be fresh."
    )


def check_space(config: Config, modalities: Sequence[str] | None = None) -> None:
  """Checks ``config.search.space``, ``{method: {term: {number: (low, high)}}}``.

  Args:
    config: The config.
    modalities: Names of the modalities; None while they are not known lets any
      ``weight_<modality>`` pass.

  Raises:
    ConfigError: A method, term or number that does not exist, or bounds that are
      none; the message names the field.
  """
  for method, terms in config.search.space.items():
    where = f"config.search.space.{method}"
    try:
      recipe = terms_of(merge_recipes(method, config.recipes))
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
        if term == "network" and not vars(settings(config, method)[0])[number]:
          raise ConfigError(
            f"{field}: config.network.{number}=0 of the method leaves that dropout out "
            "of its network; a rate that is searched must not be 0."
          )
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


def _walk(config: Mapping[str, Any], kind: type, path: str) -> None:
  schema = fields_of(kind)
  for name in config:
    if name not in schema:
      raise ConfigError(f"{path}.{name} is not a field; {path} has {tuple(schema)}.")
  for name, check in schema.items():
    field = f"{path}.{name}"
    if name not in config:
      raise ConfigError(f"{field} is missing.")
    if dataclasses.is_dataclass(check):
      if not isinstance(config[name], Mapping):
        raise ConfigError(f"{field}={config[name]!r} must be a group of fields.")
      _walk(config[name], check, field)
      continue
    wrong = check(config[name])
    if wrong:
      raise ConfigError(f"{field}={config[name]!r} must be {wrong}.")


def as_dict(config: Any) -> Any:
  """Nested dicts and lists of JSON values."""
  if dataclasses.is_dataclass(config):
    config = vars(config)
  if hasattr(config, "items"):
    return {str(k): as_dict(v) for k, v in config.items()}
  if isinstance(config, tuple | list):
    return [as_dict(v) for v in config]
  return config


def protocol_of(config: Mapping[str, Any] | Config) -> dict[str, Any]:
  """The fields of a config that the rows of one table share, ``{"data.name": ...}``.

  A field that is off (False, 0, empty) is left out, so that one which a later version
  adds, off, makes no other protocol.
  """
  stored = as_dict(config)  # Of an older version, perhaps, with other fields.
  data = stored.get("data", {})
  fields = {name: stored.get(name) for name in _PROTOCOL}
  for name in (*_DATA, *_DATA_OF.get(data.get("name"), ())):
    fields |= _flat(f"data.{name}", data.get(name))
  return {name: value for name, value in fields.items() if value}


def _flat(name: str, value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    return {name: value}
  groups = (_flat(f"{name}.{k}", v) for k, v in value.items())
  return {k: v for group in groups for k, v in group.items()}


def protocol_hash(config: Mapping[str, Any] | Config) -> str:
  """Hash of all that two runs of one table share, `protocol_of`."""
  return stable_hash(protocol_of(config))
