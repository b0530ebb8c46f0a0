"""Modality dropout, `md` (methods.md 4.19): the fused loss on a part of the modalities.

Each modality of a sample is left out of the fusion with probability ``rate``, at least
one stays, nothing is rescaled. It stands in for the plain fused loss; unimodal heads
and entropy see the full input. A strong free baseline, with ``heads`` above all.
"""

import jax
import jax.numpy as jnp

from mer_dg.losses import cross_entropy, masked_mean
from mer_dg.methods.term import WEIGHT, Hyperparameter, Spec, Term


def make(task, options):
  del options

  def loss(outputs, batch, ctx):
    present = jnp.stack([batch["present"][m] for m in task.modalities], axis=1)
    keep = keep_modalities(ctx.key, present, rate=ctx.hyper["rate"])
    kept = {m: keep[:, i] for i, m in enumerate(task.modalities)}
    logits = ctx.model.fuse(ctx.params, outputs.embeddings, kept, train=True)
    correct = jnp.argmax(outputs.logits, axis=-1) == batch["label"]
    return cross_entropy(logits, batch["label"], where=batch["mask"]), {
      "accuracy": masked_mean(correct, batch["mask"]),  # Of the full input.
      "md/kept": masked_mean(jnp.mean(keep, axis=1), batch["mask"]),
    }

  return Term(loss)


def keep_modalities(
  key: jax.Array, present: jax.Array, *, rate: jax.typing.ArrayLike
) -> jax.Array:
  """Which of the modalities that are there stay in the fusion.

  Each is dropped with probability ``rate``, independently; where that would drop all,
  one of them, uniformly at random, stays.

  Args:
    key: Typed key.
    present: bool ``[B, M]``.
    rate: Probability in [0, 1].

  Returns:
    bool ``[B, M]``, a subset of ``present``; empty only where ``present`` is.

  Example:
    >>> present = jnp.array([[True, False]])
    >>> print(keep_modalities(jax.random.key(0), present, rate=0.99))
    [[ True False]]
  """
  u = jnp.where(present, jax.random.uniform(key, present.shape), -1.0)
  # The largest u belongs to a uniformly random present modality.
  last = jax.nn.one_hot(jnp.argmax(u, axis=1), present.shape[1], dtype=bool)
  return present & ((u >= rate) | last)


SPEC = Spec(
  "md",
  make,
  {"weight": WEIGHT, "rate": Hyperparameter(0.3, 0.0, 1.0, search=(0.05, 0.7))},
  recipes={"md": {"md": {}}},
  replaces=("fused",),
  off={"weight": 1.0, "rate": 0.0},
)
