"""NEL (Neurocomputing 658, 2025), `nel`: embeddings that are not polarised, two views.

``CE + 0.7 L_unc + 0.3 L_con + beta L_nee`` in the place of the fused loss:
cross-entropy and supervised contrast (T 0.1) over both views of every sample, the
mean-shift contrast between them (`losses.mean_shift_contrastive`, k 8, T 0.25), and
minus the von Neumann entropy of the fused feature, uncentred. Contrasts act on
projections of the shared halves. beta is one over the rows of the batch, times a factor
here. The overall 1/2 of the paper is left out, so that the weights of other terms keep
their meaning.

The paper augments clips; here the second view is the input plus normal noise, in parts
of each channel's deviation over the batch, and the first is the input (our choice: no
data has to bring its own augmentation). The entropy is that of the small Gram matrix,
the same spectrum as the published covariance. The contrasts and the entropy need whole
rows.
"""

import jax
import jax.numpy as jnp

from mer_dg.contracts import named_key
from mer_dg.entropy import von_neumann_entropy
from mer_dg.losses import cross_entropy, mean_shift_contrastive, supervised_contrastive
from mer_dg.methods import _parts
from mer_dg.methods.term import (
  SHARE,
  WEIGHT,
  Hyperparameter,
  Spec,
  Term,
  needs_two,
  whole_rows,
)


def make(task, options):
  needs_two(task, "nel")
  _parts.needs_halves(task, "nel")

  def init(key, task, params):
    del params
    return _parts.init_projectors(key, task), {}

  def loss(outputs, batch, ctx):
    hyper, rows, mask = ctx.hyper, whole_rows(batch), batch["mask"]
    view = second_view(ctx.key, batch, task.modalities, hyper["noise"])
    key = named_key(ctx.key, "dropout")
    other = ctx.model.apply(ctx.params, view, key, train=True)
    both = lambda a, b: jnp.concatenate([a, b])
    twice = lambda a: jnp.concatenate([a, a])
    first, second = (
      _parts.project_shared(ctx.own, {m: o.embeddings[m] for m in task.modalities})
      for o in (outputs, other)
    )
    label, fused = twice(batch["label"]), both(outputs.fused, other.fused)
    views = {m: both(first[m], second[m]) for m in first}
    contrast = supervised_contrastive(
      views, label, temperature=hyper["temperature"], where=twice(rows)
    )
    shift = mean_shift_contrastive(
      first,
      second,
      neighbours=options["neighbours"],
      temperature=hyper["shift_temperature"],
      where=rows,
    )
    polarised = -von_neumann_entropy(fused, where=twice(rows))
    beta = hyper["entropy"] / jnp.maximum(jnp.sum(mask), 1)
    value = cross_entropy(both(outputs.logits, other.logits), label, where=twice(mask))
    value += hyper["alpha"] * shift + (1 - hyper["alpha"]) * contrast + beta * polarised
    aux = {"nel/contrast": contrast, "nel/shift": shift, "nel/entropy": -polarised}
    return value, aux | {"accuracy": _parts.accuracy(outputs, batch)}

  return Term(loss, init)


def second_view(key, batch, modalities, noise):
  """The batch with noise on its inputs, in parts of each channel's deviation."""
  inputs = {}
  for m in modalities:
    x, here = batch["inputs"][m].astype(jnp.float32), batch["present"][m]
    here = jnp.broadcast_to(here.reshape(-1, *(1,) * (x.ndim - 1)), x.shape)
    x = jnp.where(here, x, 0)  # What stands there may be NaN.
    axes = tuple(range(x.ndim - 1))
    spread = jnp.std(x, axis=axes, keepdims=True, where=here)  # NaN without a row.
    spread = jnp.where(jnp.any(here), spread, 0)
    drawn = jax.random.normal(named_key(key, m), x.shape)
    inputs[m] = x + noise * spread * drawn
  return {**batch, "inputs": inputs}


SPEC = Spec(
  "nel",
  make,
  {
    "weight": WEIGHT,
    "alpha": SHARE._replace(default=0.7, search=(0.1, 1.0)),
    "entropy": Hyperparameter(1.0, 0.0, 1e3, search=(0.1, 10.0)),
    "temperature": Hyperparameter(0.1, 1e-3, 1e3),
    "shift_temperature": Hyperparameter(0.25, 1e-3, 1e3),
    "noise": Hyperparameter(0.1, 0.0, 1e3, search=(0.01, 1.0)),
  },
  options={"neighbours": (8, 4, 12, 16)},
  recipes={"nel": {"nel": {}}},
  replaces=("fused",),
  off=None,
)
