"""Gradient blending (Wang et al., CVPR 2020), `g_blend`: losses weighed by overfitting.

``sum_m w_m CE_m + w_fused CE`` in the place of the fused loss. Over a window of
training ``dG`` is what a head gained on held-out rows and ``dO`` by how much its gap
between held-out and training loss grew; ``w ~ dG / dO^2``, normalised (proposition 1).

The paper trains copies of the network, one per head, to measure; here, as in one public
benchmark, the running heads are measured, on means over rows and not sums over batches.
That benchmark takes the rows that select a model; here a tenth of the source training
rows, chosen by a hash of their stable ids, is never trained on by this term (what is
composed with it may still see them). Both losses are those of the training pass. A
rising held-out loss earns weight 0 (``gain="positive"``); public code takes the
absolute value. Until the second window ends, 0.4 for the fused head and equal shares of
the rest.
"""

import jax
import jax.numpy as jnp

from mer_dg.losses import cross_entropy, gradient_blending_weights
from mer_dg.methods import _parts
from mer_dg.methods.term import SHARE, WEIGHT, Hyperparameter, Spec, Term, needs_two


def make(task, options):
  needs_two(task, "g_blend")
  if task.num_samples < 1:
    raise ValueError("g_blend needs stable sample ids; the task has none.")
  heads = (*task.modalities, "fused")
  size = len(heads)

  def init(key, task, params):
    del key, params
    zero = jnp.zeros((2, size))  # Training rows, held-out rows.
    weights = jnp.full(size, 0.6 / (size - 1), jnp.float32).at[-1].set(0.4)
    before = jnp.full((2, size), jnp.inf, jnp.float32)  # Means of the last window.
    return {}, {"sum": zero, "rows": zero, "before": before, "weights": weights}

  def loss(outputs, batch, ctx):
    held = held_out(batch["index"], ctx.hyper["held_out"])
    here = dict(batch["present"]) | {"fused": batch["mask"]}
    logits = dict(outputs.unimodal_logits) | {"fused": outputs.logits}
    here, logits = (jnp.stack([of[h] for h in heads]) for of in (here, logits))
    rows = jnp.stack([here & ~held[None], here & held[None]])  # [2, heads, B]
    of = lambda values, rows: cross_entropy(values, batch["label"], where=rows)
    nll = jax.vmap(jax.vmap(of), in_axes=(None, 0))(logits, rows)  # [2, heads]
    weights, count = ctx.memory["weights"], jnp.sum(rows, axis=2, dtype=nll.dtype)
    aux = {"nll": jax.lax.stop_gradient(nll), "count": count}
    aux |= {f"g_blend/{h}": weights[i] for i, h in enumerate(heads)}
    return weights @ nll[0], aux | {"accuracy": _parts.accuracy(outputs, batch)}

  def update(memory, aux, params, ctx):
    del params
    total = memory["sum"] + aux["nll"] * aux["count"]
    rows = memory["rows"] + aux["count"]
    window = jnp.maximum(jnp.round(ctx.hyper["window"] * task.total_steps), 1.0)
    ends = jnp.mod(ctx.step + 1.0, window) == 0
    now, before = total / jnp.maximum(rows, 1.0), memory["before"]
    known = jnp.isfinite(before).all()
    named = lambda values: dict(zip(heads, values, strict=True))
    old = jnp.where(known, before, 0.0)
    new = gradient_blending_weights(
      named(now[0]), named(now[1]), named(old[0]), named(old[1]),
      eps=1e-6, gain=options["gain"],
    )  # fmt: skip
    measured = ends & (rows > 0).all()
    weights = jnp.stack([new[h] for h in heads])
    return {
      "sum": jnp.where(ends, 0.0, total),
      "rows": jnp.where(ends, 0.0, rows),
      "before": jnp.where(measured, now, before),
      "weights": jnp.where(measured & known, weights, memory["weights"]),
    }

  return Term(loss, init, update)


def held_out(index: jax.Array, share) -> jax.Array:
  """bool [B]: the same ``share`` of stable ids, always."""
  mixed = index.astype(jnp.uint32) * jnp.uint32(2654435761)
  mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(2246822519)
  return (mixed >> 8).astype(jnp.float32) / 2.0**24 < share


SPEC = Spec(
  "g_blend",
  make,
  {
    "weight": WEIGHT,
    "window": SHARE._replace(default=0.1),  # Of training.
    "held_out": Hyperparameter(0.1, 0.01, 0.9),
  },
  options={"gain": ("positive", "absolute")},
  recipes={"g_blend": {"g_blend": {}}},
  replaces=("fused",),
  off=None,
)
