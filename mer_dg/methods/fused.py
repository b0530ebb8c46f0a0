"""Plain fusion, `erm`: the softmax cross-entropy of the fused logits."""

import jax.numpy as jnp

from mer_dg.losses import cross_entropy, masked_mean
from mer_dg.methods.term import WEIGHT, Spec, Term


def make(task, options):
  del task, options

  def loss(outputs, batch, ctx):
    del ctx
    correct = jnp.argmax(outputs.logits, axis=-1) == batch["label"]
    value = cross_entropy(outputs.logits, batch["label"], where=batch["mask"])
    return value, {"accuracy": masked_mean(correct, batch["mask"])}

  return Term(loss)


SPEC = Spec("fused", make, {"weight": WEIGHT}, recipes={"erm": {}}, off={"weight": 1.0})
