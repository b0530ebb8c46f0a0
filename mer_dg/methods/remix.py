"""Data Remixing (Ma et al., ICML 2025), `remix`: each sample trains its weakest
modality.

After a sixth of training with ``CE + 0.5 sum_m CE_m`` every sample is given to the
modality whose head is least sure (smallest KL from uniform), the others are left out of
the fusion, and batches hold samples of one modality: ``CE + CE_m``. It stands in for
the fused loss.

The authors assign once an epoch, in evaluation mode, and train the modalities' batches
one modality after the other. Here a step assigns the rows of its batch by its own
predictions and trains on those of one modality, drawn as often as rows are given to it;
so batches are smaller and no extra pass is made (our choice). A modality that is
missing is given nothing.
"""

import jax
import jax.numpy as jnp

from mer_dg.contracts import named_key
from mer_dg.losses import cross_entropy
from mer_dg.methods import _parts
from mer_dg.methods.term import SHARE, WEIGHT, Hyperparameter, Spec, Term, needs_two


def make(task, options):
  del options
  needs_two(task, "remix")

  def loss(outputs, batch, ctx):
    label, present, hyper = batch["label"], batch["present"], ctx.hyper
    logits = {m: outputs.unimodal_logits[m] for m in task.modalities}
    here = jnp.stack([present[m] for m in task.modalities], axis=1)
    given = weakest(logits, here)
    key = named_key(ctx.key, "turn")
    drawn = jnp.where(here.any(axis=1), jax.random.uniform(key, label.shape), -1.0)
    turn = given[jnp.argmax(drawn)]
    warm = ctx.step < jnp.round(hyper["warmup"] * task.total_steps)
    kept, heads = {}, jnp.float32(0.0)
    for i, m in enumerate(task.modalities):
      kept[m] = present[m] & (warm | ((given == i) & (turn == i)))
      factor = jnp.where(warm, hyper["unimodal"], hyper["specific"])
      heads += factor * cross_entropy(logits[m], label, where=kept[m])
    rows = batch["mask"] & (warm | jnp.any(jnp.stack(list(kept.values())), axis=0))
    fused = ctx.model.fuse(ctx.params, outputs.embeddings, kept, train=True)
    share = {
      f"remix/{m}": jnp.sum((given == i) & here[:, i])
      / jnp.maximum(here.any(1).sum(), 1)
      for i, m in enumerate(task.modalities)
    }
    value = cross_entropy(fused, label, where=rows) + heads
    return value, share | {"accuracy": _parts.accuracy(outputs, batch)}

  return Term(loss)


def weakest(logits, here: jax.Array) -> jax.Array:
  """int [B]: the modality of largest entropy among those that are ``here`` [B, M]."""
  entropy = jnp.stack([_parts.entropy_of(v) for v in logits.values()], axis=1)
  return jnp.argmax(jnp.where(here, jax.lax.stop_gradient(entropy), -1.0), axis=1)


SPEC = Spec(
  "remix",
  make,
  {
    "weight": WEIGHT,
    "warmup": SHARE._replace(default=1 / 6),
    # Of heads in the warm-up, then of the head.
    "unimodal": Hyperparameter(0.5, 0.0, 1e3, search=(0.1, 1.0)),
    "specific": Hyperparameter(1.0, 0.0, 1e3, search=(0.1, 3.0)),
  },
  recipes={"remix": {"remix": {}}},
  replaces=("fused",),
  off={"weight": 1.0, "warmup": 1.0, "unimodal": 0.0},
)
