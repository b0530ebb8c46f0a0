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
  hyperparameters_of,
  merge_recipes,
  recipes,
  terms_of,
)
from mer_dg.networks import ENCODERS, FUSIONS, encoders
from mer_dg.networks.preparation import TRANSFORMS
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
SEARCH_RULES = ("selection", "leave_one_source_out")
# Plain fusion and what is free: unimodal heads, modality dropout, both, and encoders
# that never meet, which also give every table a network on each modality alone.
# A comparison without them flatters whatever stands beside plain fusion.
BASELINES = ("erm", "heads", "md", "heads+md", "uniform")

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
Width = Annotated[int, _integer(1, 2**16)]  # A square matrix of it has 17 GB.
Rate = Annotated[float, _RATE]
_ENCODER = _named(
  lambda: (*dict.fromkeys(ENCODERS), *encoders.REGISTERED, video_config.ENCODER)
)
SetName = Annotated[str, _named(lambda: (*DATASETS, *datasets.REGISTERED))]
EncoderName = Annotated[str, _ENCODER]
# What is written by name of a method, term or set, as JSON has it.
Group = Annotated[Mapping[str, Any], _GROUP]
_frozen = dataclasses.dataclass(frozen=True, kw_only=True)


@_frozen
class CooccurrenceFields:
  """``config.data.cooccurrence``; the generator checks how they fit each other."""

  num_classes: Annotated[int, _integer(2)] = 4
  num_domains: Annotated[int, _integer(2)] = 4
  # Class separation over noise, one per modality.
  strengths: Annotated[
    tuple[float, ...], _each(_number(0.0), least=2, unique=False)
  ] = (2.0, 2.0)
  # Observed dimensions, one per modality.
  widths: Annotated[tuple[int, ...], _each(_integer(1), least=2, unique=False)] = (
    48,
    32,
  )
  # Probability that the nuisance pairing names the class.
  pairing: Annotated[float, _number(0.0, 1.0)] = 1.0
  # In the target: absent or reversed.
  target_pairing: Annotated[str, _one_of(*TARGET_PAIRINGS)] = "absent"
  nuisance_scale: Annotated[float, _number(0.0)] = 3.0
  # Observation noise, one per modality.
  noise: Annotated[tuple[float, ...], _each(_number(0.0), least=2, unique=False)] = (
    0.1,
    0.1,
  )
  train_per_domain: Count = 400
  val_per_domain: Count = 200
  test_per_domain: Count = 500
  seed: Seed = 0


@_frozen
class DataFields:
  """``config.data``."""

  # npz, av_digits, cooccurrence, epic or hac.
  name: SetName = "npz"
  # The .npz file, or the folder of the set.
  path: Text = ""
  # () is all, in the order of the file.
  modalities: Names = ()
  # npz only: ("M=KIND", ...) for what is read wrongly; --config.data.kinds.M=KIND.
  kinds: Annotated[tuple[str, ...], _each(_KIND)] = ()
  # Of each source domain, where the set brings no split.
  val_fraction: Annotated[float, _number(0.0, 0.9, open_low=True)] = 0.2
  # Drop target rows of classes that no source has.
  drop_unseen_classes: Bool = False
  # Rows that test a target where the set brings a split: test, or all of them.
  target_rows: Annotated[str, _one_of(*TARGET_ROWS)] = "test"
  # epic and hac only: cut video and flow at the same place.
  sync_augment: Bool = False
  # epic and hac only: frames of another size than 256 as a prepared set stores them,
  # after JPEG; False: as they are decoded, which is what the references train on.
  reencode: Bool = True
  # av_digits only: logmel, logmel_resampled or waveform.
  audio: Annotated[str, _one_of(*AUDIO)] = "logmel"
  # cooccurrence only, see mer_dg/data/cooccurrence.py.
  cooccurrence: CooccurrenceFields = CooccurrenceFields()


@_frozen
class NetworkFields:
  """``config.network``, or what a method makes of it."""

  # auto by kind of input; mlp, linear, conv; hust_cnn, sentiment_transformer;
  # backbones.
  encoder: EncoderName = "auto"
  fusion: Annotated[str, _one_of(*FUSIONS)] = "concat"
  # Per modality.
  embedding_dim: Width = 64
  # Of the encoders.
  hidden_dim: Width = 128
  # Common width inside gated, film, lowrank, attention, bottleneck.
  fusion_dim: Width = 128
  # Hidden width behind the fusion.
  classifier_dim: Width = 128
  projector_dim: Width = 128
  projection_dim: Width = 128
  # Of the classifier.
  dropout: Rate = 0.5
  embedding_dropout: Rate = 0.0
  # Largest scaled input, in robust standard deviations.
  input_clip: Annotated[float, _number(0.0, open_low=True)] = 10.0
  # Of vectors and sequences. range: clipped to the range of the sources' training rows;
  # asinh: heavy tails become logarithms.
  input_transform: Annotated[str, _one_of(*TRANSFORMS)] = "none"
  # Or bfloat16; parameters and losses stay float32.
  compute_dtype: Annotated[str, _one_of("float32", "bfloat16")] = "float32"


@_frozen
class EncoderFields:
  """One published encoder of ``config.backbones``."""

  # From data_prep.convert_checkpoint; "" is random initial weights.
  weights: Text = ""
  # Blocks of layer1..layer4; () is the published depth.
  depths: Annotated[tuple[int, ...], _DEPTHS] = ()
  # Channels of the stem; 64 is the published width.
  width: Annotated[int, _integer(8, 1024)] = 64


@_frozen
class BackboneFields:
  """``config.backbones``."""

  # frozen, layer4, or batch as the reference code has it.
  bn_mode: Annotated[str, _one_of(*BN_MODES)] = "frozen"
  # Or random, as in most reference code.
  audio_layer4: Annotated[str, _one_of(*LAYER4_INITS)] = "pretrained"
  # layer4, or all.
  trainable: Annotated[str, _one_of(*TRAINABLE)] = "layer4"
  # Recompute residual blocks in the backward pass.
  remat: Bool = False
  video: EncoderFields = EncoderFields()
  audio: EncoderFields = EncoderFields()
  flow: EncoderFields = EncoderFields()

  def encoder(self, modality: str) -> EncoderFields:
    """Of one modality of a video set."""
    return {"video": self.video, "audio": self.audio, "flow": self.flow}[modality]


@_frozen
class ReaderFields:
  """``config.reader``."""

  # 0 reads in the training thread.
  threads: Annotated[int, _integer(0, 1024)] = 8
  # Processes beside this one, each with its own threads.
  workers: Annotated[int, _integer(0, 1024)] = 0
  # Batches read ahead, per process; at least the threads.
  prefetch: Annotated[int, _integer(1, 1024)] = 8
  # Rows per evaluation batch of epic and hac.
  eval_batch: Annotated[int, _integer(1, 65536)] = 8
  # Share of the clips that may be unreadable and are left out.
  max_damaged: Annotated[float, _number(0.0, 1.0)] = 0.01


@_frozen
class OptimizerFields:
  """``config.optimizer``, or what a method makes of it."""

  lr: Annotated[float, _number(0.0, 1e30, open_low=True)] = 1e-3
  weight_decay: Annotated[float, _number(0.0, 10.0)] = 1e-4
  schedule: Annotated[str, _one_of(*SCHEDULES)] = "cosine"


@_frozen
class BenchmarkFields:
  """``config.benchmark``; a table is checked with its ``datasets`` merged in."""

  # {name: fields that differ from this config, in groups}; none is config.data alone.
  datasets: Annotated[Mapping[str, Any], _GROUPS] = dataclasses.field(
    default_factory=dict
  )
  protocols: Annotated[tuple[str, ...], _each(_one_of(*PROTOCOLS), least=1)] = (
    "leave_one_domain_out",
  )
  # fused: every two or more modalities; every: single ones, too.
  subsets: Annotated[str, _one_of(*SUBSETS)] = "all"


@_frozen
class SearchFields:
  """``config.search``; `check_space` looks at ``space``."""

  # Search before the table: the default, weight 0, and settings that fill the space
  # evenly; 0 trials is none, fewer than 16 say little.
  trials: Annotated[int, _integer(0)] = 0
  # Of the settings.
  seed: Seed = 0
  # Fresh seeds (of the config) are used for the table.
  seeds: Seeds = (100, 101)
  # What settings are chosen by: selection, as checkpoints (config.selection); or
  # leave_one_source_out: every source is left out in turn, and judges.
  rule: Annotated[str, _one_of(*SEARCH_RULES)] = "selection"
  # What config.network.encoder=auto is chosen from: every target's sources, each left
  # out in turn, choose by the first method, for all methods. Another one only where it
  # is three points better than the first. () is the rule by kind of input.
  encoders: Annotated[tuple[str, ...], _each(_ENCODER)] = ()
  # {method: {term, "network" or "optimizer": {number: (low, high)}}}, drawn
  # log-uniformly; a method that is not named takes the ranges of its terms.
  space: Group = dataclasses.field(default_factory=dict)


@_frozen
class Config:
  """A checked config, from `validate`; configs/common.py says what the fields mean."""

  # The held-out domain of one run with checkpoints, set by the config argument after
  # the colon; without one every target x method x seed is trained and tabled.
  target: Text = ""
  # Held-out domains of the table; () is every domain.
  targets: Names = ()
  # Source domains; () is every domain but the target.
  sources: Names = ()
  # leave_one_domain_out; single_source: all ordered pairs of a source and a target;
  # target_alone: train on rows of the target itself and nothing else; with_target: on
  # the sources, too, the upper bound.
  protocol: Annotated[str, _one_of(*PROTOCOLS)] = "leave_one_domain_out"
  # Of a single run; "a+b" composes two recipes, "a@mlp" is a with that encoder.
  method: Text = "mer_kde"
  # Of the table; the first is what the others are compared with.
  methods: Annotated[tuple[str, ...], _each(_TEXT, least=1)] = (
    *BASELINES,
    "mer_kde",
    "mer_logdet",
  )
  # Of a single run: initial weights, data order, noise in the step.
  seed: Seed = 0
  # Of the table.
  seeds: Seeds = (0, 1, 2, 3, 4)
  # What a table may take, by the speed of the runs that choose its encoder: of a longer
  # one the first seeds alone are trained, and it says so. 0: no limit.
  minutes: Annotated[float, _number(0.0)] = 0.0
  # Train/validation split; the same for every method.
  split_seed: Seed = 0
  # Headline: accuracy or balanced_accuracy.
  metric: Annotated[str, _one_of(*METRICS)] = "accuracy"
  # What chooses checkpoints and, in a search, settings: source_val; re-paired_val, on
  # validation rows with modalities re-paired within class (docs/evaluation.md).
  selection: Annotated[str, _one_of(*SOURCE_RULES)] = "source_val"
  # Of a single run: resident (data on device) or stream.
  driver: Annotated[str, _one_of(*DRIVERS)] = "resident"
  total_steps: Count = 1_000
  # Rows over all sources; 0 is about 96, padded for tiny domains.
  batch_size: Annotated[int, _integer(0)] = 0
  # Steps; divides eval_every.
  log_every: Count = 50
  # Steps between evaluations, records and checkpoints.
  eval_every: Count = 250
  # Runs trained at once by the table; 0 picks by device.
  wave: Annotated[int, _integer(0)] = 0
  data: DataFields = DataFields()
  network: NetworkFields = NetworkFields()
  backbones: BackboneFields = BackboneFields()
  reader: ReaderFields = ReaderFields()
  optimizer: OptimizerFields = OptimizerFields()
  # Which terms a method has beside the fused cross-entropy, and how; "a+b" is the terms
  # of both. mer_dg/methods has a page each.
  recipes: Group = dataclasses.field(default_factory=recipes)
  benchmark: BenchmarkFields = BenchmarkFields()
  search: SearchFields = SearchFields()


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
        recipe = recipe_of(config, name)
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


def recipe_of(config: Config, method: str) -> dict[str, dict]:
  """The recipe of a method: ``a+b`` composes two, ``a@mlp`` is a with that encoder.

  Raises:
    MethodError: As `merge_recipes`.
  """
  name, _, encoder = method.partition("@")
  recipe = merge_recipes(name, config.recipes)
  if encoder:
    recipe["network"] = recipe.get("network", {}) | {"encoder": encoder}
  return recipe


def settings(config: Config, method: str = "") -> tuple[NetworkFields, OptimizerFields]:
  """Network and optimiser of a method: those of the config, unless it changes them."""
  recipe = recipe_of(config, method) if method else {}
  network = dataclasses.replace(config.network, **recipe.get("network", {}))
  return network, dataclasses.replace(config.optimizer, **recipe.get("optimizer", {}))


def _check_protocol(config: Config) -> None:
  protocol, sources = config.protocol, config.sources
  if protocol == "target_alone" and sources:
    raise ConfigError(
      f"config.sources={sources} must be () with config.protocol='target_alone': every "
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
  if (search.trials or search.encoders) and shared:
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
      recipe = terms_of(recipe_of(config, method))
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
    return {"lr": (0.0, 1e30), "weight_decay": (0.0, 10.0)}
  if term == "network":
    return {"dropout": (0.0, 0.99), "embedding_dropout": (0.0, 0.99)}
  numeric = hyperparameters_of(term, recipe[term], modalities)
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
