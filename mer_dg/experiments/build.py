"""From a checked config to data, network, method and the arrays of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg import entropy
from mer_dg.data.arrays import Arrays, eval_blocks, fit_scaling, put, to_arrays
from mer_dg.data.av_digits import load_av_digits
from mer_dg.data.cooccurrence import Cooccurrence, make_cooccurrence
from mer_dg.data.dataset import Dataset
from mer_dg.data.npz import load_npz
from mer_dg.data.sampling import Pool, make_pool
from mer_dg.data.splits import Split, leave_one_domain_out
from mer_dg.evaluation import (
  accuracy,
  balanced_accuracy,
  classification_metrics,
  reliability_metrics,
)
from mer_dg.experiments.config import ConfigError, check_space
from mer_dg.methods import Method, Task, build_method, merge_recipes
from mer_dg.networks import InputSpec, Network, make_network

# Batch rows over all sources where the config leaves them open (batch_size=0).
_AUTO_BATCH = 96
# Rows per evaluation block: large enough to keep a device busy, small enough
# that a hundred vmapped runs of a conv encoder fit in memory.
EVAL_BLOCK = 256
# Headline metrics, ``(logits, label, where) -> scalar``.
HEADLINE = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy}


def load_dataset(data: Mapping[str, Any]) -> Dataset:
  """The dataset of ``config.data``, restricted to the chosen modalities."""
  if data["name"] == "npz":
    if not data["path"]:
      raise ConfigError(
        "config.data.path='' must name a .npz file: --config.data.path=FILE."
      )
    dataset = load_npz(data["path"])
  elif data["name"] == "av_digits":
    dataset = load_av_digits(data["path"], audio=data["audio"])
  else:
    knobs: dict[str, Any] = dict(data["cooccurrence"])
    dataset = make_cooccurrence(Cooccurrence(**knobs))
  modalities = tuple(data["modalities"])
  return dataset.select_modalities(modalities) if modalities else dataset


@dataclasses.dataclass(frozen=True)
class Setting:
  """One leave-one-domain-out task as arrays.

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
    self._splits: dict[str, Split] = {}
    self._settings: dict[str, Setting] = {}

  @cached_property
  def host_arrays(self) -> Arrays:
    """The dataset as the step takes it, on the host."""
    return to_arrays(self.dataset)

  @cached_property
  def arrays(self) -> Arrays:
    """The dataset on the device."""
    return put(self.host_arrays)

  @cached_property
  def network(self) -> Network:
    """The network of ``config.network`` for this dataset.

    Raises:
      ConfigError: If that network does not fit the modalities.
    """
    try:
      return make_network(
        input_specs(self.dataset),
        num_classes=self.dataset.num_classes,
        **self.config["network"],
      )
    except ValueError as error:
      raise ConfigError(f"config.network does not fit the data: {error}") from error

  def targets(self) -> tuple[str, ...]:
    """Held-out domains of the table."""
    return tuple(self.config["targets"]) or self.dataset.domain_names

  def split(self, target: str) -> Split:
    """Rows of the task that holds ``target`` out."""
    if target not in self._splits:
      self._splits[target] = leave_one_domain_out(
        self.dataset,
        target,
        split_seed=self.config["split_seed"],
        val_fraction=self.config["data"]["val_fraction"],
        sources=tuple(self.config["sources"]),
        drop_unseen_classes=self.config["data"]["drop_unseen_classes"],
      )
    return self._splits[target]

  def setting(self, target: str) -> Setting:
    """Arrays of the task that holds ``target`` out."""
    if target not in self._settings:
      self._settings[target] = _make_setting(self.dataset, self.split(target))
    return self._settings[target]

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

  def task(self, target: str) -> Task:
    """Static facts for the method, of the task that holds ``target`` out."""
    return Task(
      modalities=self.dataset.modalities,
      num_classes=self.dataset.num_classes,
      num_domains=len(self.split(target).sources),
      num_samples=int(self.dataset.index.max()) + 1,
      total_steps=self.config["total_steps"],
    )

  def method(self, name: str, target: str) -> Method:
    """The method ``name`` (``"a+b"`` composes recipes) for a target."""
    recipe = merge_recipes(name, self.config["recipes"])
    return build_method(name, recipe, self.task(target))

  def check(self) -> None:
    """Raises for anything wrong with data, network, tasks and methods.

    Nothing is compiled, and nothing of it needs the device.
    """
    config = self.config
    targets = (config["target"],) if config["target"] else self.targets()
    methods = (config["method"],) if config["target"] else config["methods"]
    check_space(config, self.dataset.modalities)
    _ = self.network
    for target in targets:
      self.per_domain(self.split(target))
      for method in methods:
        self.method(method, target)


def input_specs(dataset: Dataset) -> dict[str, InputSpec]:
  """What the network has to know of each modality."""
  specs = {}
  for m, x in dataset.inputs.items():
    shape, masked = x.shape[1:], m in dataset.lengths
    if masked:  # `to_arrays` appends the validity channel.
      shape = (*shape[:-1], shape[-1] + 1)
    specs[m] = InputSpec(dataset.kinds[m], shape, masked=masked)
  return specs


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
    scaling=fit_scaling(dataset, np.concatenate(train)),
    rows=blocks,
    mask=mask,
    domain=padded.reshape(blocks.shape),
  )


def make_measure(metric: str, num_sources: int) -> Callable:
  """Returns ``(logits, missing, label, domain, where) -> metrics`` for `make_summary`.

  Source validation (``val/...``, each source too), target (``target/...``) and target
  with one modality taken away (``target/without_<m>/...``); target rows are those with
  domain -1. Sources are numbered, so that one program serves every held-out domain;
  `name_sources` puts in their names.
  """
  headline = HEADLINE[metric]

  def measure(logits, missing, label, domain, where):
    metrics = {}
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
  """Entropy (kernel, unit sphere, nats) and effective rank of each modality."""
  metrics = {}
  # One run after another: batched LAPACK calls are suspect, see the grid's docstring.
  rank = jax.custom_batching.sequential_vmap(
    lambda z, where: entropy.effective_rank(z, where=where)
  )
  for m, z in embeddings.items():
    square = jnp.sum(z * z, axis=-1, keepdims=True)
    unit = z / jnp.sqrt(jnp.maximum(square, 1e-12))
    metrics[f"entropy/{m}"] = entropy.kde_entropy(unit, bandwidth=0.5, where=present[m])
    metrics[f"effective_rank/{m}"] = rank(z, present[m])
  return metrics
