"""MER-DG: minus the entropy of each encoder's features (arXiv 2605.01967, ICML 2026).

``mer_kde``, our estimator of choice: kernel density entropy of projections on the unit
sphere, where it has a maximum; under a fixed kernel that of an unbounded layer has
none. ``mer_vmf``: the same with the sphere's own kernel and a width that follows the
data, so that collapsed features are still pulled apart. ``mer_logdet``: the released
form, a variance floor and a log-determinant of raw projections, at the released weight
3. The paper's text takes encoder outputs, its code projections; ``apply_to`` has both.

The pooled entropy also rewards the distance of domains and of classes, and so helps or
fights the classifier. Ours: ``mer_per_domain``, ``mer_per_class`` and
``mer_per_class_and_domain``, the mean entropy over such groups of a batch.
"""

import jax.numpy as jnp

from mer_dg import entropy
from mer_dg.methods import _entropy, _parts
from mer_dg.methods.term import Spec, Term


def make(task, options):
  static, scope = _entropy.static_options(options), options["scope"]
  if "domain" in scope:
    _parts.needs_rows(task, f"mer with scope={scope!r}")
  projector, capacity = options["apply_to"] == "projector", options["queue"]
  known = _entropy.hyperparameters(options)
  numbers = [n for n in ("bandwidth", *_entropy.PARTS) if n in known]

  def init(key, task, params):
    del key, params
    widths = dict.fromkeys(task.modalities, task.projection_width)
    widths = widths if projector else task.width
    return {}, {m: entropy.fifo_init(capacity, widths[m]) for m in widths if capacity}

  def loss(outputs, batch, ctx):
    hyper, total, aux = ctx.hyper, jnp.float32(0.0), {}
    source = outputs.projections if projector else outputs.embeddings
    given = static | {n: hyper[n] for n in numbers}
    for m in task.modalities:
      memory = {m: ctx.memory[m]} if capacity else None
      one = lambda where, m=m, memory=memory: entropy.entropy_regularizer(
        {m: source[m]}, where=where, memory=memory, **given
      )
      value, nats = _parts.over_groups(one, batch, batch["present"][m], scope, task)
      total += hyper[f"weight_{m}"] * value
      aux[f"entropy/{m}"] = nats[m]
    if capacity:
      aux["rows"] = {m: (source[m], batch["present"][m]) for m in task.modalities}
    return total * _parts.ramp(ctx, task), aux

  def update(memory, aux, params, ctx):
    del params, ctx
    rows = aux.get("rows", {})
    return {m: entropy.fifo_push(memory[m], z, where=w) for m, (z, w) in rows.items()}

  return Term(loss, init, update)


KDE = dict(estimator="kde", apply_to="projector", normalize="unit")
_LOGDET = KDE | dict(estimator="logdet", normalize="none", weight=3.0)
SPEC = Spec(
  "mer",
  make,
  _entropy.hyperparameters,
  options=_entropy.OPTIONS,
  recipes={
    "mer_kde": {"mer": KDE},
    "mer_vmf": {"mer": {**KDE, "kernel": "vmf", "width": "median"}},
    "mer_logdet": {"mer": _LOGDET},
    **{f"mer_{s}": {"mer": KDE | {"scope": s}} for s in _parts.SCOPES[1:]},
  },
  per_modality_weight=True,
)
