"""Network on rows -> metrics: one forward pass, and evaluators that look at it.

The encoders run once over the rows. What else is asked of a network (a modality taken
away, modalities re-paired) is another fusion of the same embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg import entropy
from mer_dg.contracts import Batch, Network
from mer_dg.data.arrays import Arrays, gather_batch
from mer_dg.evaluation.cooccurrence import re_pair_within_class, re_paired_logits
from mer_dg.evaluation.metrics import (
  accuracy,
  balanced_accuracy,
  classification_metrics,
  margin,
  nll,
  reliability_metrics,
)
from mer_dg.evaluation.missing import (
  Fuse,
  mean_embeddings,
  missing_modalities,
  withhold,
)
from mer_dg.evaluation.probe import linear_probe

Metrics = dict[str, jax.Array]
# Headline metrics, ``(logits, label, where) -> scalar``.
HEADLINE = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy}
# Rows whose embeddings `_inside` looks at: kernels cost their square.
_INSPECTED = 256


class Seen(NamedTuple):
  """One forward pass over ``n`` rows, in evaluation mode.

  Attributes:
    logits: ``[n, K]``.
    embeddings: ``{m: [n, D_m]}``, in the order of the config.
    present: ``{m: bool [n]}``.
    label: int32 ``[n]``.
    domain: int32 ``[n]``, position of the source; -1 on target rows.
    where: bool ``[n]``, False on padding.
    train: bool ``[n]``, rows that trained; evaluations of checkpoints alone have any.
  """

  logits: jax.Array
  embeddings: dict[str, jax.Array]
  present: dict[str, jax.Array]
  label: jax.Array
  domain: jax.Array
  where: jax.Array
  train: jax.Array

  @property
  def val(self) -> jax.Array:
    """Which rows are source validation."""
    return self.where & ~self.train & (self.domain >= 0)

  @property
  def target(self) -> jax.Array:
    """Which rows are of the target."""
    return self.where & ~self.train & (self.domain < 0)


class Evaluator(NamedTuple):
  """One thing that is asked of a network.

  Attributes:
    name: What.
    when: ``evaluation``: at every one; ``checkpoint``: of the final network, on demand.
    fn: ``(seen, fuse) -> metrics``, pure; ``fuse`` is that of the network, on all rows.
  """

  name: str
  when: str
  fn: Callable[[Seen, Fuse], Metrics]


def evaluators(
  metric: str, num_sources: int, num_classes: int
) -> tuple[Evaluator, ...]:
  """All there are.

  Args:
    metric: Headline metric.
    num_sources: Sources are numbered, so that one program serves every held-out domain;
      `name_sources` puts in their names.
    num_classes: K.
  """
  of = lambda fn, *more: functools.partial(fn, metric, *more)
  return (
    Evaluator("prediction", "evaluation", of(_prediction, num_sources)),
    Evaluator("one modality missing", "evaluation", of(_one_missing)),
    Evaluator("one modality alone", "evaluation", of(_one_alone)),
    Evaluator("re-paired validation", "evaluation", of(_re_paired_validation)),
    Evaluator("inside the embeddings", "evaluation", _inside),
    Evaluator("modalities missing", "checkpoint", of(_missing)),
    Evaluator("re-paired target", "checkpoint", of(_re_paired_target)),
    Evaluator("probes", "checkpoint", of(_probes, num_classes)),
  )


def _prediction(metric: str, num_sources: int, seen: Seen, fuse: Fuse) -> Metrics:
  """``val/...``, ``val/source0/<metric>``; ``target/...`` with its reliability."""
  del fuse
  logits, label = seen.logits, seen.label
  bins = reliability_metrics(logits, label, seen.target)
  found = {f"target/{k}": v for k, v in bins.items()}
  for name, rows in (("val", seen.val), ("target", seen.target)):
    for k, v in classification_metrics(logits, label, rows).items():
      found[f"{name}/{k}"] = v
  for i in range(num_sources):
    rows = seen.val & (seen.domain == i)
    found[f"val/source{i}/{metric}"] = HEADLINE[metric](logits, label, rows)
  return found


def _one_missing(metric: str, seen: Seen, fuse: Fuse) -> Metrics:
  """``target/without_<m>/<metric>``."""
  found, names = {}, tuple(seen.embeddings)
  for m in names if len(names) > 1 else ():
    kept = tuple(name for name in names if name != m)
    logits = fuse(*withhold(seen.embeddings, seen.present, kept))
    value = HEADLINE[metric](logits, seen.label, seen.target)
    found[f"target/without_{m}/{metric}"] = value
  return found


def _one_alone(metric: str, seen: Seen, fuse: Fuse) -> Metrics:
  """``val/only_<m>/<metric>`` and of the target: all other modalities taken away.

  Of encoders that never meet (the method ``uniform``) these are the scores of networks
  that are trained on one modality each.
  """
  found, names = {}, tuple(seen.embeddings)
  for m in names if len(names) > 1 else ():
    logits = fuse(*withhold(seen.embeddings, seen.present, (m,)))
    for split, rows in (("val", seen.val), ("target", seen.target)):
      value = HEADLINE[metric](logits, seen.label, rows)
      found[f"{split}/only_{m}/{metric}"] = value
  return found


def _missing(metric: str, seen: Seen, fuse: Fuse) -> Metrics:
  """``target/without_<a>+<b>/<metric>``; ``mean_for_``, the mean of training rows."""
  found = {}
  if len(seen.embeddings) < 2:
    return found
  fill = mean_embeddings(seen.embeddings, seen.present, seen.train)
  for prefix, mean in (("without_", None), ("mean_for_", fill)):
    scores = missing_modalities(
      fuse, seen.embeddings, seen.present, seen.label, seen.target, fill=mean
    )
    for name, value in scores.items():
      subset, _, of = name.partition("/")
      if of == metric and subset != "all":
        of_subset = prefix + subset.removeprefix("without_")
        found[f"target/{of_subset}/{metric}"] = value
  return found


def _re_paired(
  seen: Seen, where: jax.Array, fuse: Fuse, *, within: bool = False
) -> jax.Array:
  """Logits of rows whose modalities come from others of the class (and domain)."""
  names = tuple(seen.embeddings)
  if len(names) == 1:
    return seen.logits
  label, domain = seen.label, seen.domain
  if within:  # Pairs of class and domain take the place of classes.
    label = label * (jnp.max(domain) + 2) + domain + 1
    domain = jnp.zeros_like(domain)
  # One re-pairing per task: methods, seeds and steps are judged on the same samples.
  rows = re_pair_within_class(label, domain, jax.random.key(0), names, where)
  return re_paired_logits(fuse, seen.embeddings, seen.present, rows)


def _re_paired_validation(metric: str, seen: Seen, fuse: Fuse) -> Metrics:
  """``val/re-paired/...`` across domains, ``val/re-paired_within/...`` inside each."""
  found = {"val/margin": margin(seen.logits, seen.label, seen.val)}
  for name, within in (("re-paired", False), ("re-paired_within", True)):
    logits = _re_paired(seen, seen.val, fuse, within=within)
    for of, fn in ((metric, HEADLINE[metric]), ("nll", nll), ("margin", margin)):
      found[f"val/{name}/{of}"] = fn(logits, seen.label, seen.val)
  return found


def _re_paired_target(metric: str, seen: Seen, fuse: Fuse) -> Metrics:
  logits = _re_paired(seen, seen.target, fuse)
  return {
    f"target/re-paired/{metric}": HEADLINE[metric](logits, seen.label, seen.target)
  }


def _probes(metric: str, num_classes: int, seen: Seen, fuse: Fuse) -> Metrics:
  """``probe/<m>/<side>/<metric>``: of each modality, and of ``all`` side by side."""
  del fuse
  found = {}
  for probed in (*seen.embeddings, "all"):
    names = tuple(seen.embeddings) if probed == "all" else (probed,)
    z = jnp.concatenate([seen.embeddings[m] for m in names], axis=1)
    judged = linear_probe(
      z,
      seen.label,
      {side: (z, seen.label, getattr(seen, side)) for side in ("val", "target")},
      num_classes=num_classes,
      train_where=seen.train,
    )
    for side in ("val", "target"):
      found[f"probe/{probed}/{side}/{metric}"] = judged[f"{side}/{metric}"]
  return found


def _inside(seen: Seen, fuse: Fuse) -> Metrics:
  """Per modality: entropy on the unit sphere, its gap to uniform, effective rank."""
  del fuse
  metrics: Metrics = {}
  # One run after another: batched LAPACK calls are suspect, see the grid's docstring.
  rank = jax.custom_batching.sequential_vmap(
    lambda z, where: entropy.effective_rank(z, where=where)
  )
  for m, z in seen.embeddings.items():
    z, here = z[:_INSPECTED], (seen.present[m] & seen.val)[:_INSPECTED]
    unit = entropy.unit_sphere(z)
    metrics[f"entropy/{m}"] = entropy.kde_entropy(unit, bandwidth=0.5, where=here)
    on_sphere = entropy.sphere_entropy(unit, bandwidth=0.5, where=here)
    metrics[f"entropy_gap/{m}"] = on_sphere["gap"]
    metrics[f"effective_rank/{m}"] = rank(z, here)
  return metrics


def make_forward(
  network: Network, inputs: Callable[[Any], Any] = lambda batch: batch["inputs"]
) -> Callable[[Any, Batch], Seen]:
  """Returns ``(variables, batch) -> Seen``.

  Args:
    network: A network.
    inputs: ``batch -> inputs`` of the network.
  """

  def forward(variables, batch: Batch) -> Seen:
    present, mask = batch["present"], batch["mask"]
    outputs, _ = network.apply(variables, inputs(batch), present, train=False, key=None)
    return Seen(
      outputs.logits, outputs.embeddings, present, batch["label"], batch["domain"],
      mask, jnp.zeros_like(mask),
    )  # fmt: skip

  return forward


def make_look(network: Network):
  """Returns ``(arrays, rows, domain, mask, variables) -> Seen``.

  ``rows``, ``domain``, ``mask`` and all that comes back are ``[blocks, block]``.
  Embeddings of all rows are held at once.
  """
  forward = make_forward(network)

  def look(arrays: Arrays, rows, domain, mask, variables) -> Seen:
    one = lambda place: forward(variables, gather_batch(arrays, *place))
    return jax.lax.map(one, (rows, domain, mask))

  return look


def make_judge(network: Network, asked: Sequence[Evaluator]):
  """Returns ``(variables, seen) -> metrics``, seen with axes ``[blocks, block]``."""

  def judge(variables, seen: Seen) -> Metrics:
    blocks = seen.label.shape
    flat = lambda a: a.reshape(-1, *a.shape[2:])

    def fuse(embeddings, present):
      # In blocks, like the encoders: a fusion may be wide.
      cut = lambda a: a.reshape(*blocks, *a.shape[1:])
      one = lambda block: network.fuse(variables, *block)
      return flat(jax.lax.map(one, jax.tree.map(cut, (embeddings, present))))

    rows = jax.tree.map(flat, seen)
    # jit sorts by name; of encoders trained alone one may be lacking.
    ordered = lambda of: {m: of[m] for m in network.modalities if m in of}
    rows = rows._replace(
      embeddings=ordered(rows.embeddings), present=ordered(rows.present)
    )
    metrics: Metrics = {}
    for evaluator in asked:
      metrics |= evaluator.fn(rows, fuse)
    return metrics

  return judge


def make_evaluate(network: Network, asked: Sequence[Evaluator]):
  """Returns ``(arrays, rows, domain, mask, variables) -> metrics`` for a set of rows.

  Args:
    network: A network.
    asked: What is asked of it.

  Returns:
    The evaluation of data that lies on the device, see `make_look`.
  """
  look, judge = make_look(network), make_judge(network, asked)

  def evaluate(arrays: Arrays, rows, domain, mask, variables) -> Metrics:
    return judge(variables, look(arrays, rows, domain, mask, variables))

  return evaluate


def _gathered(arrays: Arrays, rows, domain, mask):
  return (
    gather_batch(arrays, *block) for block in zip(rows, domain, mask, strict=True)
  )


def make_streamed_evaluate(
  network: Network,
  asked: Sequence[Evaluator],
  *,
  batches: Callable[..., Iterable[Any]] = _gathered,
  inputs: Callable[[Any], Any] = lambda batch: batch["inputs"],
):
  """`make_evaluate` for data that stays on the host; same arguments and metrics.

  Not to be jitted: one block at a time goes to the device.

  Args:
    network: A network.
    asked: What is asked of it.
    batches: ``(data, rows, domain, mask) -> batches``, one per block; ``data`` is
      the first argument of the evaluation.
    inputs: ``batch -> inputs`` of the network, run on the device.
  """
  forward, judge = (
    jax.jit(make_forward(network, inputs)),
    jax.jit(make_judge(network, asked)),
  )

  def evaluate(data, rows, domain, mask, variables) -> Metrics:
    # The batch's own mask: a row that could not be read drops out.
    seen = [forward(variables, b) for b in batches(data, rows, domain, mask)]
    return judge(variables, jax.tree.map(lambda *blocks: jnp.stack(blocks), *seen))

  return evaluate


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
