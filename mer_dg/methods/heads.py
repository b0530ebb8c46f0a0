"""Unimodal heads, `heads`: the sum over modalities of their cross-entropies.

A strong free baseline: every encoder has to know the class by itself. `late` is
decision fusion of such heads: mean log-probabilities instead of a classifier behind all
embeddings.
"""

from mer_dg.losses import cross_entropy
from mer_dg.methods.term import Hyperparameter, Spec, Term


def make(task, options):
  del options

  def loss(outputs, batch, ctx):
    del ctx
    parts = {
      m: cross_entropy(
        outputs.unimodal_logits[m], batch["label"], where=batch["present"][m]
      )
      for m in task.modalities
    }
    return sum(parts.values()), {f"unimodal/{m}": v for m, v in parts.items()}

  return Term(loss)


SPEC = Spec(
  "unimodal",
  make,
  {"weight": Hyperparameter(0.5, 0.0, 1e4, search=(0.1, 1.0))},
  recipes={
    "heads": {"unimodal": {}},
    "late": {"unimodal": {}, "network": {"fusion": "late"}},
  },
)
