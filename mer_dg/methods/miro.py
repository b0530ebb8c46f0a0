"""MIRO (Cha et al., ECCV 2022), `miro`: features keep telling what the first ones were.

``0.1 sum_m 1/2 mean [(z^m - z0^m)^2 / s^2 + log s^2]`` beside the fused loss, with z0
the embeddings of the network as it was before training, frozen and without dropout, and
one learnt variance ``softplus(b) + 1e-5`` per channel that starts at 0.1. The mean
encoder is the identity and losses of layers are summed, as the authors do; the layers
here are the modalities' embeddings, and the variances learn at the rate of the rest
(authors: ten times faster).

It is meant for published weights: with encoders that start from noise it keeps what the
noise made of the data. One public port takes the features of the network in training
for z0, which makes the term almost constant.
"""

import math

import jax
import jax.numpy as jnp

from mer_dg.losses import miro
from mer_dg.methods.term import Hyperparameter, Spec, Term

_START, _LEAST = 0.1, 1e-5


def make(task, options):
  del options

  def init(key, task, params):
    del key
    b = math.log(math.expm1(_START - _LEAST))
    return {m: jnp.full(d, b, jnp.float32) for m, d in task.width.items()}, params

  def loss(outputs, batch, ctx):
    first = ctx.model.apply(ctx.memory, batch).embeddings
    parts = {
      m: miro(
        outputs.embeddings[m],
        first[m],
        jnp.zeros(()),  # The identity.
        jax.nn.softplus(ctx.own[m]) + _LEAST,
        where=batch["present"][m],
      )
      for m in task.modalities
    }
    return sum(parts.values()), {f"miro/{m}": value for m, value in parts.items()}

  return Term(loss, init)


SPEC = Spec(
  "miro",
  make,
  {"weight": Hyperparameter(0.1, 0.0, 1e4, search=(0.01, 1.0))},
  recipes={"miro": {"miro": {}}},
)
