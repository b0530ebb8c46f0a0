"""From a checked config to data, network, method and the arrays of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from functools import cached_property
from typing import Any

import jax
import numpy as np

from mer_dg import entropy
from mer_dg.contracts import Network, Task
from mer_dg.data.arrays import Arrays, eval_blocks, put, to_arrays
from mer_dg.data.av_digits import load_av_digits
from mer_dg.data.cooccurrence import Cooccurrence, make_cooccurrence
from mer_dg.data.dataset import Dataset
from mer_dg.data.npz import load_npz
from mer_dg.data.registry import REGISTERED
from mer_dg.data.sampling import Pool, make_pool
from mer_dg.data.splits import Split, in_domain, leave_one_domain_out
from mer_dg.data.video.dataset import VIDEO_SETS, load_video
from mer_dg.evaluation import (
  accuracy,
  balanced_accuracy,
  classification_metrics,
  nll,
  reliability_metrics,
  repair_within_class,
)
from mer_dg.experiments import pretrained
from mer_dg.experiments.config import ConfigError, check_space
from mer_dg.experiments.video_config import ENCODER, make_backbones
from mer_dg.methods import Method, build_method, merge_recipes
from mer_dg.networks import Backbone, make_network
from mer_dg.protocol import Assignment, assignments
from mer_dg.training.state import evaluated, make_hyper, make_state
from mer_dg.training.step import make_summary, make_train_step

# Batch rows over all sources where the config leaves them open (batch_size=0).
_AUTO_BATCH = 96
# Rows per evaluation block: large enough to keep a device busy, small enough
# that a hundred vmapped runs of a conv encoder fit in memory.
EVAL_BLOCK = 256
# Headline metrics, ``(logits, label, where) -> scalar``.
HEADLINE = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy}


def load_dataset(data: Mapping[str, Any]) -> Dataset:
  """The dataset of ``config.data``, restricted to the chosen modalities."""
  if data["name"] in REGISTERED:
    dataset = REGISTERED[data["name"]](data)
  elif data["name"] == "npz":
    if not data["path"]:
      raise ConfigError(
        "config.data.path='' must name a .npz file: --config.data.path=FILE."
      )
    dataset = load_npz(data["path"])
  elif data["name"] == "av_digits":
    dataset = load_av_digits(data["path"], audio=data["audio"])
  elif data["name"] in VIDEO_SETS:
    sync = data["sync_augment"]
    dataset = load_video(data["name"], data["path"], sync_augment=sync)
  else:
    knobs: dict[str, Any] = dict(data["cooccurrence"])
    dataset = make_cooccurrence(Cooccurrence(**knobs))
  dataset = dataclasses.replace(dataset, target_rows=data["target_rows"])
  modalities = tuple(data["modalities"])
  return dataset.select_modalities(modalities) if modalities else dataset


@dataclasses.dataclass(frozen=True)
class Setting:
  """One task as arrays.

  Attributes:
    split: Its rows.
    pool: Training rows per source.
    scaling: Input scaling from the source training rows.
    rows: int32 ``[blocks, block]``, validation rows, then target rows.
    mask: bool, False on padding.
    domain: int32, position of the source; -1 on target rows.
  """

  split: Split
  pool: Pool
  scaling: dict[str, dict[str, np.ndarray]]
  rows: np.ndarray
  mask: np.ndarray
  domain: np.ndarray


class Workbench:
  """What all runs of a config share: data, network, settings, methods.

  Args:
    config: A dict from `validate`.
    dataset: Its dataset, for a caller who has it already.
  """

  def __init__(self, config: Mapping[str, Any], dataset: Dataset | None = None):
    self.config = config
    self.dataset = load_dataset(config["data"]) if dataset is None else dataset
    self.programs: dict[Any, Any] = {}  # Jitted functions that runs may share.
    self._networks: dict[tuple, Network] = {}
    self._splits: dict[Assignment, Split] = {}
    self._settings: dict[Assignment, Setting] = {}

  @cached_property
  def host_arrays(self) -> Arrays:
    """The dataset as the step takes it, on the host.

    Raises:
      DataError: If it does not fit there.
    """
    return to_arrays(self.dataset.in_memory())

  @cached_property
  def arrays(self) -> Arrays:
    """The dataset on the device."""
    return put(self.host_arrays)

  @cached_property
  def backbones(self) -> dict[str, Backbone]:
    """Published encoders by modality; none unless the config asks for them."""
    if self.config["network"]["encoder"] != ENCODER:
      return {}
    return make_backbones(self.config, self.dataset.modalities)

  @cached_property
  def weight_hashes(self) -> dict[str, str]:
    """Hashes of the weights files of `backbones`; see `pretrained.weight_hashes`."""
    return pretrained.weight_hashes(self.config, self.backbones)

  @cached_property
  def words(self) -> dict[str, str]:
    """What records say beside config and method, ``{name: word}``."""
    encoders = pretrained.words(self.backbones, self.weight_hashes)
    return {**self.dataset.tags, **encoders}

  def settings(self, group: str, name: str = "") -> dict[str, Any]:
    """``config.network`` or ``config.optimizer`` with what a method changes in it."""
    changed = merge_recipes(name, self.config["recipes"]).get(group, {}) if name else {}
    return {**self.config[group], **changed}

  @property
  def network(self) -> Network:
    """The network of ``config.network`` for this dataset; see `network_of`."""
    return self.network_of()

  def network_of(self, name: str = "") -> Network:
    """The network of a method: that of the config unless the method changes it.

    Raises:
      ConfigError: If that network does not fit the modalities.
    """
    options = self.settings("network", name)
    key = tuple(options.items())
    if key not in self._networks:
      if self.backbones:
        options["encoder"] = self.backbones
      try:
        self._networks[key] = make_network(
          self.dataset.specs, num_classes=self.dataset.num_classes, **options
        )
      except ValueError as error:
        raise ConfigError(f"config.network does not fit the data: {error}") from error
    return self._networks[key]

  def release(self) -> None:
    """Forgets compiled programs and what is on the device; both are made again."""
    self.programs.clear()
    self.__dict__.pop("arrays", None)

  def targets(self) -> tuple[str, ...]:
    """Domains that the table tests on."""
    return tuple(self.config["targets"]) or self.dataset.domain_names

  def tasks(self) -> tuple[Assignment, ...]:
    """Who trains and who tests, in each task of the table."""
    config, domains = self.config, self.dataset.domain_names
    for field in ("targets", "sources"):
      for name in config[field]:
        self.dataset.domain_id(name)  # Raises, naming the domains there are.
    return assignments(
      config["protocol"], domains, targets=config["targets"], sources=config["sources"]
    )

  def _assign(self, target: str, sources: tuple[str, ...]) -> Assignment:
    inside = self.config["protocol"] == "in_domain"
    default = (target,) if inside else tuple(self.config["sources"])
    return Assignment(target, sources or default)

  def split(self, target: str, sources: tuple[str, ...] = ()) -> Split:
    """Rows of the task that tests on ``target``.

    Args:
      target: The domain.
      sources: Those that train; () is what the protocol and ``config.sources`` say.
    """
    task = self._assign(target, sources)
    if task not in self._splits:
      rows = dict(
        split_seed=self.config["split_seed"],
        val_fraction=self.config["data"]["val_fraction"],
      )
      if self.config["protocol"] == "in_domain":
        self._splits[task] = in_domain(self.dataset, target, **rows)
      else:
        self._splits[task] = leave_one_domain_out(
          self.dataset,
          target,
          sources=task.sources,
          drop_unseen_classes=self.config["data"]["drop_unseen_classes"],
          **rows,
        )
    return self._splits[task]

  def setting(self, target: str, sources: tuple[str, ...] = ()) -> Setting:
    """Arrays of the task that tests on ``target``; see `split`."""
    task = self._assign(target, sources)
    if task not in self._settings:
      split = self.split(target, task.sources)
      self._settings[task] = _make_setting(self.dataset, split)
    return self._settings[task]

  def per_domain(self, split: Split) -> int:
    """Batch rows per source domain.

    Raises:
      ConfigError: If ``config.batch_size`` is not a multiple of the number of
        sources, or asks a source for more rows than it has.
    """
    size, sources = self.config["batch_size"], len(split.sources)
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

  def task(self, name: str, target: str, sources: tuple[str, ...] = ()) -> Task:
    """Static facts for the method ``name``, of the task that tests on ``target``."""
    network = self.network_of(name)
    return Task(
      modalities=self.dataset.modalities,
      num_classes=self.dataset.num_classes,
      num_domains=len(self.split(target, sources).sources),
      num_samples=int(self.dataset.index.max()) + 1,
      total_steps=self.config["total_steps"],
      widths=tuple(network.widths.values()),
      fused_width=network.fused_width,
      projection_width=network.projection_width,
    )

  def method(self, name: str, target: str, sources: tuple[str, ...] = ()) -> Method:
    """The method ``name`` (``"a+b"`` composes recipes) for a task."""
    recipe = merge_recipes(name, self.config["recipes"])
    return build_method(name, recipe, self.task(name, target, sources))

  def check(self) -> None:
    """Raises for anything wrong with data, network, tasks and methods.

    Nothing is compiled, and nothing of it needs the device.

    Raises:
      ConfigError: A field that does not fit the data.
      DataError: Data that do not fit the config.
      MethodError: A method that does not fit the data, or does what it must not.
    """
    config = self.config
    tasks = (Assignment(config["target"]),) if config["target"] else self.tasks()
    methods = (config["method"],) if config["target"] else config["methods"]
    check_space(config, self.dataset.modalities)
    _ = self.network
    pretrained.load(config, self.backbones, jax.random.key(0))  # Raises if it cannot.
    if not tasks:
      raise ConfigError(
        f"config.protocol={config['protocol']!r} leaves no task: targets "
        f"{self.targets()}, sources {tuple(config['sources'])}."
      )
    for task in tasks:
      self.per_domain(self.split(*task))
      for method in methods:
        self.method(method, *task)
    for method in methods:
      self._trace(method, tasks[0])

  def _trace(self, name: str, task: Assignment) -> None:
    """Takes a step of a method, and judges it, on shapes alone."""
    network, method = self.network_of(name), self.method(name, *task)
    optimizer, sources = self.settings("optimizer", name), self.split(*task).sources
    horizon = dict(
      schedule=optimizer["schedule"], total_steps=self.config["total_steps"]
    )
    hyper, key = make_hyper(network, method, optimizer), jax.random.key(0)
    step = make_train_step(network, method, **horizon)

    def first(seed):
      return make_state(network, method, seed=seed, scaling={}, hyper=hyper, **horizon)

    rows = self.per_domain(self.split(*task)) * len(sources)
    like = lambda dtype, *shape: jax.ShapeDtypeStruct((rows, *shape), dtype)
    each = lambda made: {m: made(m) for m in network.modalities}
    specs = self.dataset.specs
    batch = {
      "inputs": each(lambda m: like(np.float32, *specs[m].shape)),
      "present": each(lambda m: like(np.bool_)),
      **{name: like(np.int32) for name in ("label", "domain", "index")},
      "mask": like(np.bool_),
    }
    state = jax.eval_shape(first, np.uint32(0))
    state, _ = jax.eval_shape(lambda s, b: step(s, b, key), state, batch)
    jax.eval_shape(lambda s: evaluated(s, method), state)
    if method.watches:
      logits = like(np.float32, self.dataset.num_classes)
      missing = each(lambda m: logits) if len(network.modalities) > 1 else {}
      measure = make_measure(self.config["metric"], len(sources))
      label, domain, mask = (batch[k] for k in ("label", "domain", "mask"))
      metrics = jax.eval_shape(measure, logits, missing, logits, label, domain, mask)
      jax.eval_shape(method.on_eval, state.memory, metrics)


def _make_setting(dataset: Dataset, split: Split) -> Setting:
  train = list(split.train.values())
  val = list(split.val.values())
  # Shuffled, so that the first block, on which embeddings are inspected, is a sample
  # of all sources. Metrics do not depend on the order.
  order = np.random.default_rng(0).permutation(sum(map(len, val)))
  source = np.repeat(np.arange(len(val)), [len(v) for v in val])
  rows = np.concatenate([np.concatenate(val)[order], split.test])
  domain = np.concatenate([source[order], np.full(len(split.test), -1)])
  blocks, mask = eval_blocks(rows, EVAL_BLOCK)
  padded = np.full(blocks.size, -1, np.int32)
  padded[: len(domain)] = domain
  return Setting(
    split=split,
    pool=make_pool(train),
    scaling=dataset.scaling(np.concatenate(train)),
    rows=blocks,
    mask=mask,
    domain=padded.reshape(blocks.shape),
  )


def make_evaluation(network: Network, metric: str, num_sources: int) -> Callable:
  """The summary (`make_summary`) that every evaluation of a run ends with."""
  modalities = network.modalities

  def repair(label, domain, where):
    # One re-pairing per task: methods, seeds and steps are judged on the same samples.
    return repair_within_class(label, domain, jax.random.key(0), modalities, where)

  measure = make_measure(metric, num_sources)
  return make_summary(network, measure, inspect_embeddings, repair)


def make_measure(metric: str, num_sources: int) -> Callable:
  """Returns ``(logits, missing, repaired, label, domain, where) -> metrics``.

  Source validation (``val/...``, each source too; ``val/re-paired/...`` on modalities
  re-paired within class), target (``target/...``) and target with one modality taken
  away (``target/without_<m>/...``); target rows are those with domain -1. Sources are
  numbered, so that one program serves every held-out domain; `name_sources` puts in
  their names.
  """
  headline = HEADLINE[metric]

  def measure(logits, missing, repaired, label, domain, where):
    source = where & (domain >= 0)
    metrics = {
      f"val/re-paired/{metric}": headline(repaired, label, source),
      "val/re-paired/nll": nll(repaired, label, source),
    }
    for m, rest in missing.items():
      value = headline(rest, label, where & (domain < 0))
      metrics[f"target/without_{m}/{metric}"] = value
    bins = reliability_metrics(logits, label, where & (domain < 0))
    metrics |= {f"target/{k}": v for k, v in bins.items()}
    for name, rows in (("val", domain >= 0), ("target", domain < 0)):
      for k, v in classification_metrics(logits, label, where & rows).items():
        metrics[f"{name}/{k}"] = v
    for i in range(num_sources):
      rows = where & (domain == i)
      metrics[f"val/source{i}/{metric}"] = headline(logits, label, rows)
    return metrics

  return measure


def name_sources(
  metrics: Mapping[str, Any], sources: Sequence[str]
) -> dict[str, float]:
  """Floats, with ``val/source0/...`` as ``val/<name of the source>/...``.

  Means over an empty bin of the reliability diagram are left out.

  Example:
    >>> name_sources({"val/nll": 1, "val/source0/accuracy": 0.5}, ["kitchen"])
    {'val/nll': 1.0, 'val/kitchen/accuracy': 0.5}
  """
  names = {f"source{i}": name for i, name in enumerate(sources)}

  def named(key: str) -> str:
    split, *middle, metric = key.split("/")
    return "/".join([split, *(names.get(part, part) for part in middle), metric])

  empty = lambda key, value: "/reliability/" in key and np.isnan(value)
  return {named(k): float(v) for k, v in metrics.items() if not empty(k, v)}


def inspect_embeddings(embeddings, present) -> dict[str, Any]:
  """Per modality: entropy on the unit sphere, its gap to uniform, effective rank."""
  metrics = {}
  # One run after another: batched LAPACK calls are suspect, see the grid's docstring.
  rank = jax.custom_batching.sequential_vmap(
    lambda z, where: entropy.effective_rank(z, where=where)
  )
  for m, z in embeddings.items():
    here, unit = present[m], entropy.unit_sphere(z)
    metrics[f"entropy/{m}"] = entropy.kde_entropy(unit, bandwidth=0.5, where=here)
    on_sphere = entropy.sphere_entropy(unit, bandwidth=0.5, where=here)
    metrics[f"entropy_gap/{m}"] = on_sphere["gap"]
    metrics[f"effective_rank/{m}"] = rank(z, present[m])
  return metrics
