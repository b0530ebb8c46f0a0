"""From a checked config to what its runs share: data, networks, folds, methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from mer_dg.contracts import Network, Task
from mer_dg.data.arrays import eval_blocks
from mer_dg.data.av_digits import load_av_digits
from mer_dg.data.cooccurrence import Cooccurrence, make_cooccurrence
from mer_dg.data.dataset import DataError, Dataset
from mer_dg.data.npz import load_npz
from mer_dg.data.registry import REGISTERED
from mer_dg.data.sampling import Pool, make_pool
from mer_dg.data.splits import (
  Split,
  leave_one_domain_out,
  target_alone,
  with_target,
)
from mer_dg.data.video.dataset import VIDEO_SETS, load_video
from mer_dg.data.video.reader import MAX_DAMAGED
from mer_dg.evaluation.evaluators import (
  Evaluator,
  evaluators,
  make_forward,
  make_judge,
)
from mer_dg.experiments import pretrained
from mer_dg.experiments.config import (
  Config,
  ConfigError,
  DataFields,
  NetworkFields,
  as_dict,
  check_space,
  recipe_of,
  settings,
)
from mer_dg.experiments.video_config import ENCODER, make_backbones
from mer_dg.methods import Method, build_method
from mer_dg.networks import Backbone, make_network
from mer_dg.protocol import Assignment, assignments
from mer_dg.training.state import TrainState, evaluated, make_hyper, make_state
from mer_dg.training.step import Step, make_train_step

# Batch rows over all sources where the config leaves them open (batch_size=0).
# Up to so many domains judge encoders one by one, more in so many groups.
SINGLE, _GROUPS = 6, 4
_AUTO_BATCH = 96


def load_dataset(data: DataFields, max_damaged: float = MAX_DAMAGED) -> Dataset:
  """The dataset of ``config.data``, restricted to the chosen modalities.

  Args:
    data: ``config.data``.
    max_damaged: ``config.reader.max_damaged``.
  """
  if data.kinds and data.name != "npz":
    raise ConfigError(f"config.data.kinds={data.kinds!r} needs config.data.name='npz'.")
  if data.name in REGISTERED:
    dataset = REGISTERED[data.name](as_dict(data))
  elif data.name == "npz":
    if not data.path:
      raise ConfigError(
        "config.data.path='' must name a .npz file: --config.data.path=FILE."
      )
    kinds = dict(word.rpartition("=")[::2] for word in data.kinds)
    dataset = load_npz(data.path, kinds=kinds)
  elif data.name == "av_digits":
    dataset = load_av_digits(data.path, audio=data.audio)
  elif data.name in VIDEO_SETS:
    dataset = load_video(
      data.name,
      data.path,
      reencode=data.reencode,
      sync_augment=data.sync_augment,
      max_damaged=max_damaged,
    )
  else:
    dataset = make_cooccurrence(Cooccurrence(**vars(data.cooccurrence)))
  dataset = dataclasses.replace(dataset, target_rows=data.target_rows)
  return dataset.select_modalities(data.modalities) if data.modalities else dataset


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
  """What all runs of a config share; from `make_setup`.

  Attributes:
    config: The config.
    dataset: Its dataset.
    backbones: Published encoders by modality; none unless the config asks for them.
    weights: Hash of the weights file of each of them, see `pretrained.weight_hashes`.
    networks: Of the config, and of the methods that change it.
    tasks: Who trains and who tests, in the order of the table; one task for
      ``config.target``.
    folds: The rows of every task, and of those that leave out one more source where
      the config has them choose.
  """

  config: Config
  dataset: Dataset
  backbones: Mapping[str, Backbone]
  weights: Mapping[str, str]
  networks: Mapping[NetworkFields, Network]
  tasks: tuple[Assignment, ...]
  folds: Mapping[Assignment, Split]

  @property
  def splits(self) -> list[Split]:
    """The rows of the tasks."""
    return [self.folds[task] for task in self.tasks]

  def inner(self, task: Assignment) -> tuple[Assignment, ...]:
    """The tasks in which each source of a task is left out in turn; of one none."""
    sources = self.folds[task].sources
    inner = () if task.target in sources else _inner(sources)
    return tuple(task for task in inner if task in self.folds)

  def judges(self, task: Assignment) -> tuple[Assignment, ...]:
    """The tasks whose targets, sources of a task, judge encoders for it.

    See `_judges`; none where a source would judge itself or no batch could be drawn.
    """
    names, sources = self.dataset.domain_names, self.folds[task].sources
    made = [] if task.target in sources else _judges(task.target, sources, names)
    made = tuple(judge for judge in made if judge in self.folds)
    try:
      for judge in made:
        self.per_domain(judge)
    except ConfigError:
      return ()
    return made

  def network(self, method: str = "") -> Network:
    """The network of a method: that of the config unless the method changes it."""
    return self.networks[settings(self.config, method)[0]]

  def facts(self, method: str, task: Assignment) -> Task:
    """What a method is told of a task; runs that share it share programs."""
    network = self.network(method)
    return Task(
      modalities=self.dataset.modalities,
      num_classes=self.dataset.num_classes,
      num_domains=len(self.folds[task].sources),
      num_samples=int(self.dataset.index.max()) + 1,
      total_steps=self.config.total_steps,
      widths=tuple(network.widths.values()),
      fused_width=network.fused_width,
      projection_width=network.projection_width,
      domain_rows=self.per_domain(task),
    )

  def method(self, name: str, task: Assignment) -> Method:
    """The method ``name`` (``"a+b"`` composes recipes) for a task."""
    recipe = recipe_of(self.config, name)
    return build_method(name, recipe, self.facts(name, task))

  def per_domain(self, task: Assignment) -> int:
    """Batch rows per source domain.

    Raises:
      ConfigError: If ``config.batch_size`` is not a multiple of the number of
        sources, or asks a source for more rows than it has.
    """
    split = self.folds[task]
    size, sources = self.config.batch_size, len(split.sources)
    if size == 0:
      return max(_AUTO_BATCH // sources, 2)
    if size % sources:
      raise ConfigError(
        f"config.batch_size={size} must be a multiple of the {sources} source domains "
        f"{split.sources}."
      )
    share = size // sources
    for name, rows in split.train.items():
      if len(rows) < share:
        raise ConfigError(
          f"config.batch_size={size} takes {share} rows from each source, but "
          f"{name!r} has {len(rows)} training rows. Use a batch size of at most "
          f"{len(rows) * sources}, or 0, which pads small domains."
        )
    return share


def make_setup(
  config: Config,
  dataset: Dataset | None = None,
  folds: Mapping[Assignment, Split] | None = None,
) -> Setup:
  """Loads the data of a config, makes its networks and splits.

  Args:
    config: From `validate`.
    dataset: Its dataset, for a caller who has it already.
    folds: The splits of its tasks, for a caller whose tasks are no protocol's.

  Raises:
    ConfigError: A network that does not fit the data, or no task.
    DataError: Data that do not fit the config.
  """
  if dataset is None:
    dataset = load_dataset(config.data, config.reader.max_damaged)
  if folds is None:
    folds = _folds(config, dataset)
  backbones = {}
  if config.network.encoder == ENCODER:
    backbones = make_backbones(config, dataset.modalities)
  methods = (config.method,) if config.target else config.methods
  chooses = chooses_encoder(config) and not config.target
  chosen = config.search.encoders if chooses else ()
  names = ("", *methods, *(f"{m}@{encoder}" for m in methods for encoder in chosen))
  networks = {}
  for fields in dict.fromkeys(settings(config, name)[0] for name in names):
    options: dict[str, Any] = vars(fields) | (
      {"encoder": backbones} if backbones else {}
    )
    try:
      networks[fields] = make_network(
        dataset.specs, num_classes=dataset.num_classes, **options
      )
    except ValueError as error:
      raise ConfigError(f"config.network does not fit the data: {error}") from error
  return Setup(
    config,
    dataset,
    backbones,
    pretrained.weight_hashes(config, backbones),
    networks,
    tuple(folds),
    _with_inner(config, dataset, folds),
  )


def _folds(config: Config, dataset: Dataset) -> dict[Assignment, Split]:
  """The tasks of the protocol, and the rows of each."""
  targets = (config.target,) if config.target else config.targets
  for name in (*targets, *config.sources):
    dataset.domain_id(name)  # Raises, naming the domains there are.
  tasks = assignments(
    config.protocol, dataset.domain_names, targets=targets, sources=config.sources
  )
  if not tasks:
    raise ConfigError(
      f"config.protocol={config.protocol!r} leaves no task: targets "
      f"{targets or dataset.domain_names}, sources {config.sources}."
    )
  rows = _split_options(config)
  if config.protocol == "target_alone":
    return {task: target_alone(dataset, task.target, **rows) for task in tasks}
  if config.protocol == "with_target":
    own = lambda task: with_target(dataset, task.target, sources=task.sources, **rows)
    return {task: own(task) for task in tasks}
  drop = config.data.drop_unseen_classes
  return {task: _left_out(dataset, task, drop, rows) for task in tasks}


def _with_inner(config: Config, dataset: Dataset, folds: Mapping[Assignment, Split]):
  """The rows of the tasks and, where the sources choose, of those inside them."""
  found, rows = dict(folds), _split_options(config)
  # Not of a target that trains, too: see `Setup.inner`.
  away = [task for task, split in folds.items() if task.target not in split.sources]
  tasks = () if config.target else away
  # With a domain less a class may be gone; it cannot judge. Two targets share a task.
  for task in tasks if searches_by_sources(config) else ():
    for inner in _inner(folds[task].sources):
      if inner not in found:
        found[inner] = _left_out(dataset, inner, True, rows)
  for task in tasks if chooses_encoder(config) else ():
    for judge in _judges(task.target, folds[task].sources, dataset.domain_names):
      # A default must not stop a table: such a source has no say on the encoder.
      with contextlib.suppress(DataError):
        if judge not in found:
          found[judge] = _left_out(dataset, judge, True, rows)
  return found


def _split_options(config: Config) -> dict[str, Any]:
  return {"split_seed": config.split_seed, "val_fraction": config.data.val_fraction}


def _left_out(dataset: Dataset, task: Assignment, drop: bool, rows) -> Split:
  return leave_one_domain_out(
    dataset, task.target, sources=task.sources, drop_unseen_classes=drop, **rows
  )


def _inner(sources: Sequence[str]) -> tuple[Assignment, ...]:
  """The tasks in which each of several sources is left out in turn."""
  if len(sources) < 2:
    return ()
  others = lambda source: tuple(s for s in sources if s != source)
  return tuple(Assignment(source, others(source)) for source in sources)


def _judges(target: str, sources: Sequence[str], domains: Sequence[str]):
  """The tasks in which sources judge encoders.

  More than six domains are put in four groups: that of the target neither trains nor
  judges, each other one is left out in turn. So a table needs six trainings for an
  encoder, however many domains it has (fifteen at most below), and none that chooses
  for a target has seen it.

  Example:
    >>> [tuple(task) for task in _judges("a", "bc", "abc")]
    [('b', ('c',)), ('c', ('b',))]
    >>> [task.sources for task in _judges("a", "bcdefgh", "abcdefgh")][:2]
    [('c', 'd', 'g', 'h'), ('b', 'd', 'f', 'h')]
  """
  groups = _GROUPS if len(domains) > SINGLE else len(domains)
  group = {name: i % groups for i, name in enumerate(domains)}
  own, made = group.get(target), []
  for source in sources:
    away = (own, group[source])
    others = tuple(s for s in sources if group[s] not in away)
    if group[source] != own and others:
      made.append(Assignment(source, others))
  return made


def chooses_encoder(config: Config) -> bool:
  """Whether the sources choose the encoder."""
  return config.network.encoder == "auto" and bool(config.search.encoders)


def searches_by_sources(config: Config) -> bool:
  """Whether sources that are left out choose the settings of methods."""
  return bool(config.search.trials) and config.search.rule == "leave_one_source_out"


def check(setup: Setup) -> None:
  """Raises for anything wrong with sizes, weights and methods.

  Nothing is compiled, and nothing of it needs the device.

  Raises:
    ConfigError: A field that does not fit the data.
    MethodError: A method that does not fit the data, or does what it must not.
  """
  config, tasks = setup.config, setup.tasks
  methods = (config.method,) if config.target else config.methods
  check_space(config, setup.dataset.modalities)
  pretrained.load(config, setup.backbones, jax.random.key(0))  # Raises if it cannot.
  few = [task.target for task in tasks if not setup.inner(task)]
  if few and searches_by_sources(config):
    raise ConfigError(
      f"config.search.rule='leave_one_source_out' needs two sources or more; target "
      f"{few[0]!r} has {list(setup.folds[tasks[0]].sources)}."
    )
  for task in setup.folds if searches_by_sources(config) else tasks:
    setup.per_domain(task)
    for method in methods:
      setup.method(method, task)
  for method in methods:
    _trace(setup, method, tasks[0])


def _trace(setup: Setup, name: str, task: Assignment) -> None:
  """Takes a step of a method, and judges it, on shapes alone."""
  network, method = setup.network(name), setup.method(name, task)
  state = jax.eval_shape(lambda: first_state(setup, name, task))
  step, sources = step_of(setup, name, task), setup.folds[task].sources
  rows = setup.per_domain(task) * len(sources)
  like = lambda dtype, *shape: jax.ShapeDtypeStruct((rows, *shape), dtype)
  each = lambda made: {m: made(m) for m in network.modalities}
  specs = setup.dataset.specs
  batch = {
    "inputs": each(lambda m: like(np.float32, *specs[m].shape)),
    "present": each(lambda m: like(np.bool_)),
    **{name: like(np.int32) for name in ("label", "domain", "index")},
    "mask": like(np.bool_),
  }
  key = jax.random.key(0)
  state, _ = jax.eval_shape(lambda s, b: step(s, b, key), state, batch)
  jax.eval_shape(lambda s: evaluated(s, method), state)
  if method.watches:
    forward, judge = (
      make_forward(network),
      make_judge(network, asked(setup, task, "evaluation")),
    )
    one_block = lambda v, b: jax.tree.map(lambda a: a[None], forward(v, b))
    metrics = jax.eval_shape(
      lambda v, b: judge(v, one_block(v, b)), state.variables, batch
    )
    jax.eval_shape(method.on_eval, state.memory, metrics)


def step_of(setup: Setup, method: str, task: Assignment) -> Step:
  """The training step of a method for a task."""
  return make_train_step(
    setup.network(method), setup.method(method, task), **_horizon(setup, method)
  )


def first_state(setup: Setup, method: str, task: Assignment, **how: Any) -> TrainState:
  """The state before the first step, `make_state`; traced or not.

  Args:
    setup: The setup.
    method: Name of the method.
    task: Who trains and who tests.
    **how: ``seed``, ``scaling``, ``hyper`` and ``variables`` of `make_state`; by
      default 0, none, those of the method, and the network's own.
  """
  network, built = setup.network(method), setup.method(method, task)
  hyper = make_hyper(network, built, vars(settings(setup.config, method)[1]))
  given = {"seed": np.uint32(0), "scaling": {}, "hyper": hyper} | how
  return make_state(network, built, **given, **_horizon(setup, method))


def _horizon(setup: Setup, method: str) -> dict[str, Any]:
  schedule = settings(setup.config, method)[1].schedule
  return {"schedule": schedule, "total_steps": setup.config.total_steps}


def asked(setup: Setup, task: Assignment, when: str) -> tuple[Evaluator, ...]:
  """What networks of a task are asked, see `Evaluator`."""
  sources, classes = len(setup.folds[task].sources), setup.dataset.num_classes
  found = evaluators(setup.config.metric, sources, classes)
  return tuple(e for e in found if e.when == when)


def tags(setup: Setup) -> dict[str, str]:
  """What records say beside config and method, ``{name: what}``."""
  encoders = pretrained.tags(setup.backbones, setup.weights)
  return {**setup.dataset.tags, **encoders}


class TaskArrays(NamedTuple):
  """One task as arrays.

  Attributes:
    pool: Training rows per source.
    scaling: Input scaling from the source training rows.
    rows: int32 ``[blocks, block]``, validation rows, then target rows.
    domain: int32, position of the source; -1 on target rows.
    mask: bool, False on padding.
  """

  pool: Pool
  scaling: dict[str, dict[str, np.ndarray]]
  rows: np.ndarray
  domain: np.ndarray
  mask: np.ndarray


def task_arrays(setup: Setup, task: Assignment) -> TaskArrays:
  """The arrays of a task; made anew by every call."""
  split = setup.folds[task]
  train = list(split.train.values())
  val = list(split.val.values())
  # Shuffled, so that the first block, on which embeddings are inspected, is a sample
  # of all sources. Metrics do not depend on the order.
  order = np.random.default_rng(0).permutation(sum(map(len, val)))
  source = np.repeat(np.arange(len(val)), [len(v) for v in val])
  rows = np.concatenate([np.concatenate(val)[order], split.test])
  domain = np.concatenate([source[order], np.full(len(split.test), -1)])
  blocks, mask = eval_blocks(rows)
  padded = np.full(blocks.size, -1, np.int32)
  padded[: len(domain)] = domain
  return TaskArrays(
    pool=make_pool(train),
    scaling=setup.dataset.scaling(np.concatenate(train)),
    rows=blocks,
    domain=padded.reshape(blocks.shape),
    mask=mask,
  )
