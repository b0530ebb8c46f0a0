"""Uniform, `uniform`: encoders that never meet; the average of their heads is judged.

``sum_m CE_m`` in the place of the fused loss; the prediction is the mean of the heads'
probabilities over the modalities that are there. No fusion can overfit here: what
another method adds to it is worth of meeting. `late` differs in two things: it has a
joint loss, and it averages log-probabilities. Public baselines of this name average
probabilities or logits.
"""

from mer_dg.methods._parts import accuracy, unimodal_losses
from mer_dg.methods.term import WEIGHT, Spec, Term


def make(task, options):
  del options

  def loss(outputs, batch, ctx):
    del ctx
    parts = unimodal_losses(outputs.unimodal_logits, batch, task.modalities)
    aux = {f"uniform/{m}": value for m, value in parts.items()}
    return sum(parts.values()), aux | {"accuracy": accuracy(outputs, batch)}

  return Term(loss)


SPEC = Spec(
  "uniform",
  make,
  {"weight": WEIGHT},
  recipes={"uniform": {"uniform": {}, "network": {"fusion": "average"}}},
  replaces=("fused",),
  off=None,
)
