"""MMPareto (Wei & Hu, ICML 2024), `mmpareto`: one direction from two gradients.

Every encoder has the gradient g_f of the fused loss and g_u of its own head. Where they
agree their sum is taken, else their shortest convex combination, which ascends neither,
brought back to the length of the sum; times 1.5 (`losses.mmpareto_direction`). Heads
and fusion take the plain sum. Faithful to the authors' code; one public benchmark
computes the combination and does not use it. g_f is the gradient of all other terms, so
that an entropy or a mix that is added counts with the fused loss.
"""

import jax
import jax.numpy as jnp

from mer_dg.losses import mmpareto_direction
from mer_dg.methods._parts import unimodal_losses
from mer_dg.methods.term import (
  WEIGHT,
  Hyperparameter,
  Spec,
  Term,
  needs_two,
  transformation,
)


def make(task, options):
  del options
  needs_two(task, "mmpareto")

  def loss(outputs, batch, ctx):
    del ctx
    parts = unimodal_losses(outputs.unimodal_logits, batch, task.modalities)
    return sum(parts.values()), {f"mmpareto/{m}": v for m, v in parts.items()}

  def transform(hyper):
    def update(grads, state, params, *, gradient, grad_fn, model, **_):
      own = grad_fn(params, only=("mmpareto",))
      parts = jax.tree.leaves(model.parts(gradient["net"]))
      fused, tree = jax.tree.flatten(gradient["net"])
      single = jax.tree.leaves(own["net"])
      # What comes on top of the fused gradient; earlier transformations stay.
      extra = list(single)
      for m in task.modalities:
        place = [i for i, part in enumerate(parts) if part == f"encoder/{m}"]
        f, u = [fused[i] for i in place], [single[i] for i in place]
        for i, g in zip(
          place, mmpareto_direction(f, u, gamma=hyper["gamma"]), strict=True
        ):
          extra[i] = g - fused[i]
      net = jax.tree.map(jnp.add, grads["net"], jax.tree.unflatten(tree, extra))
      return {**grads, "net": net}, state

    return transformation(update)

  return Term(loss, transform=transform, joint=False)


SPEC = Spec(
  "mmpareto",
  make,
  {
    "weight": WEIGHT,  # Of the unimodal losses.
    "gamma": Hyperparameter(1.5, 0.0, 1e3, search=(1.0, 3.0)),
  },
  recipes={"mmpareto": {"mmpareto": {}}},
  off=None,
)
