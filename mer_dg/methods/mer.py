"""MER-DG: minus the entropy of each encoder's features (arXiv 2605.01967, ICML 2026).

``mer_kde``, our estimator of choice: kernel density entropy of projections on the unit
sphere, where it has a maximum; under a fixed kernel that of an unbounded layer has
none. ``mer_vmf``: the same with the sphere's own kernel and a width that follows the
data, so that collapsed features are still pulled apart. ``mer_logdet``: the released
form, a variance floor and a log-determinant of raw projections, at the released weight
3. The paper's text takes encoder outputs, its code projections; ``apply_to`` has both.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mer_dg import entropy
from mer_dg.entropy.regularizer import ESTIMATORS, NORMALIZE
from mer_dg.losses import masked_mean
from mer_dg.methods.term import SHARE, WEIGHT, Number, Spec, Term

# Estimators that have a kernel with a width, and those that choose the kernel.
_WIDE = ("kde", "renyi", "mixture")
_KERNELS = ("kde", "renyi")


def make(task, options):
  _check(options)
  estimator, scope = options["estimator"], options["scope"]
  projector, capacity = options["apply_to"] == "projector", options["queue"]
  static = {"estimator": estimator, "normalize": options["normalize"]}
  if estimator in _KERNELS:
    static["kernel"] = options["kernel"]
  if estimator in _WIDE and options["width"] != "fixed":
    static["bandwidth"] = options["width"]  # A constant for the gradient.
  numbers = [n for n in ("bandwidth", *_PARTS) if n in _numbers(options)]

  def init(key, task, params):
    del key, params
    widths = dict.fromkeys(task.modalities, task.projection_width)
    widths = widths if projector else task.width
    return {}, {m: entropy.fifo_init(capacity, widths[m]) for m in widths if capacity}

  def loss(outputs, batch, ctx):
    hyper, total, aux = ctx.hyper, jnp.float32(0.0), {}
    source = outputs.projections if projector else outputs.embeddings
    given = {n: hyper[n] for n in numbers}

    def one_modality(m, where):
      """Loss and nats over the rows in ``where``."""
      memory = {m: ctx.memory[m]} if capacity else None
      value, nats = entropy.entropy_regularizer(
        {m: source[m]}, where=where, memory=memory, **static, **given
      )
      return value, nats[m]

    for m in task.modalities:
      where = batch["present"][m]
      if scope == "batch":
        value, nats = one_modality(m, where)
      else:
        each = jax.vmap(lambda rows, m=m: one_modality(m, rows))
        value, nats = _grouped(each, batch, where, scope, task)
      total += hyper[f"weight_{m}"] * value
      aux[f"entropy/{m}"] = nats
    if capacity:
      aux["rows"] = {m: (source[m], batch["present"][m]) for m in task.modalities}
    # In steps, and a ramp of at least one: a share would round to either side of 0.
    since = ctx.step + 1 - hyper["start"] * task.total_steps
    ramp = since / jnp.maximum(hyper["ramp"] * task.total_steps, 1.0)
    return total * jnp.clip(ramp, 0.0, 1.0), aux

  def update(memory, aux, params, ctx):
    del params, ctx
    rows = aux.get("rows", {})
    return {m: entropy.fifo_push(memory[m], z, where=w) for m, (z, w) in rows.items()}

  return Term(loss, init, update)


def _grouped(each, batch, where, scope: str, task):
  """Mean over groups of at least two rows; of classes, weighted by their rows."""
  domain, label = batch["domain"], batch["label"]
  group, count = {
    "per_domain": (domain, task.num_domains),
    "per_class": (label, task.num_classes),
    "per_class_and_domain": (
      label * task.num_domains + domain,
      task.num_classes * task.num_domains,
    ),
  }[scope]
  rows = (group[None, :] == jnp.arange(count)[:, None]) & where[None, :]  # [G, B]
  size = jnp.sum(rows, axis=-1)
  weight = jnp.where(size >= 2, 1 if scope == "per_domain" else size, 0)
  return jax.tree.map(lambda v: masked_mean(v, weight), each(rows))


def _check(options) -> None:
  """Raises for an option that would be without effect."""
  estimator = options["estimator"]
  if options["kernel"] != "gaussian" and estimator not in _KERNELS:
    raise ValueError(f"kernel={options['kernel']!r} needs one of {_KERNELS}.")
  if options["width"] != "fixed" and estimator not in _WIDE:
    raise ValueError(f"width={options['width']!r} needs one of {_WIDE}.")
  alone = options["scope"] == "batch" and options["normalize"] != "standardize"
  if options["queue"] and not (estimator == "kde" and alone):
    raise ValueError(
      "queue needs estimator='kde', scope='batch' and normalize='unit' or 'none'."
    )


# The two parts of the released loss.
_PARTS = ("marginal_weight", "spectral_weight")


def _numbers(options) -> dict[str, Number]:
  """Each estimator brings its own."""
  numbers = {"weight": Number(0.1, 0.0, 1e4, search=(0.01, 3.0))}
  if options["estimator"] in _WIDE and options["width"] == "fixed":
    # Of the kernel, in units of the (normalised) features.
    numbers["bandwidth"] = Number(0.3, 1e-6, 1e6, search=(0.1, 2.0))
  if options["estimator"] == "logdet":
    numbers |= dict.fromkeys(_PARTS, WEIGHT)
  # Shares of training: before the term starts, and over which it then ramps up.
  return numbers | {"start": SHARE, "ramp": SHARE}


_KDE = dict(estimator="kde", apply_to="projector", normalize="unit")
_LOGDET = dict(estimator="logdet", apply_to="projector", normalize="none", weight=3.0)
SPEC = Spec(
  "mer",
  make,
  _numbers,
  options={
    "estimator": ESTIMATORS,
    "kernel": ("gaussian", "vmf", "student-t"),
    "width": ("fixed", "median", "scott", "silverman"),
    "apply_to": ("embedding", "projector"),
    # "unit": rows to the unit sphere. "standardize": columns over the batch, so that
    # scale cannot buy entropy.
    "normalize": NORMALIZE,
    # The pooled entropy also rewards the distance of domains and of classes.
    "scope": ("batch", "per_domain", "per_class", "per_class_and_domain"),
    "queue": (0, 64, 256, 1024),  # Rows of earlier batches in the density.
  },
  recipes={
    "mer_kde": {"mer": _KDE},
    "mer_vmf": {"mer": {**_KDE, "kernel": "vmf", "width": "median"}},
    "mer_logdet": {"mer": _LOGDET},
  },
  per_modality_weight=True,
)
