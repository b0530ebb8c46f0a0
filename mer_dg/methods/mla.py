"""MLA (Zhang et al., CVPR 2024), `mla`: one head, taken by the modalities in turn.

No fused loss: each encoder is trained through a head that all share, in a fixed order.
So that a modality does not undo what the head has learnt of those before, its gradient
there is projected away from their features: ``W' -> P W'``, with ``P <- P - P h h^T P /
(a + h^T P h)`` after each modality, h its mean feature over the batch (recursive least
squares, P starts as the identity). Decision fusion is evaluated.

The shared head is the mean of the network's heads, which stands in each of them when it
is evaluated. The authors take one optimiser step per modality; encoders share nothing,
so here one step sums what their turns give (our choice: every method has the same
number of steps). Their public code updates P with the modality's own feature before
projecting, has an outer product where ``h^T P h`` belongs, divides P by its norm, and
lets ``a`` fall from 0.1 to 0.01 within an epoch; one public port adds the projection to
the gradient. They weigh the heads by entropy or by hand when they evaluate: here they
count alike.
"""

import jax
import jax.numpy as jnp

from mer_dg.losses import cross_entropy
from mer_dg.methods._parts import accuracy
from mer_dg.methods.term import WEIGHT, Hyperparameter, Spec, Term, needs_two


def make(task, options):
  del options
  needs_two(task, "mla")
  if len(set(task.widths)) > 1:
    raise ValueError(f"mla shares one head; the widths {task.width} differ.")

  def init(key, task, params):
    del key
    return {}, {"P": jnp.eye(task.widths[0]), "evaluated": params}

  def loss(outputs, batch, ctx):
    label, projection = batch["label"], ctx.memory["P"]
    shared = share_heads(ctx.params, ctx.model)
    fixed = jax.lax.stop_gradient(shared)
    value, aux = jnp.float32(0.0), {}
    for m in task.modalities:
      z, rows = outputs.embeddings[m], batch["present"][m]
      feature = jax.lax.stop_gradient(z)
      through = ctx.model.heads(shared, {m: feature @ projection})[m]
      # The value and the encoder's gradient are those of z; the head sees P z.
      logits = ctx.model.heads(fixed, {m: z})[m] + (
        through - jax.lax.stop_gradient(through)
      )
      nll = cross_entropy(logits, label, where=rows)
      value, aux = value + nll, aux | {f"mla/{m}": nll}
      count = jnp.maximum(jnp.sum(rows), 1)
      mean = jnp.sum(jnp.where(rows[:, None], feature, 0), axis=0) / count
      projection = away(projection, mean, ctx.hyper["alpha"])
    return value, aux | {"P": projection, "accuracy": accuracy(outputs, batch)}

  def update(memory, aux, params, ctx):
    del memory
    return {"P": aux["P"], "evaluated": share_heads(params, ctx.model)}

  evaluated = lambda params, memory: memory["evaluated"]
  return Term(loss, init, update, eval_params=evaluated)


def away(projection: jax.Array, h: jax.Array, alpha) -> jax.Array:
  """``P - P h h^T P / (alpha + h^T P h)``; a zero h changes nothing."""
  k = jnp.matmul(projection, h, precision="highest")
  return projection - k[:, None] * k[None, :] / (alpha + h @ k)


def share_heads(params, model):
  """``params`` with the mean of all heads in each of them."""
  leaves, tree = jax.tree.flatten(params)
  heads: dict[str, list[int]] = {}
  for i, part in enumerate(jax.tree.leaves(model.parts(params))):
    if part.startswith("head/"):
      heads.setdefault(part, []).append(i)
  for same in zip(*heads.values(), strict=True):
    mean = jnp.mean(jnp.stack([leaves[i] for i in same]), axis=0)
    for i in same:
      leaves[i] = mean
  return jax.tree.unflatten(tree, leaves)


SPEC = Spec(
  "mla",
  make,
  {"weight": WEIGHT, "alpha": Hyperparameter(0.1, 1e-6, 1e3, search=(0.01, 1.0))},
  recipes={"mla": {"mla": {}, "network": {"fusion": "late"}}},
  replaces=("fused",),
  off=None,
)
