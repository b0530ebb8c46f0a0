"""DANN (Ganin et al., JMLR 2016), `dann`: no network shall tell the source domains
apart.

The cross-entropy of a domain discriminator behind a gradient reversal on the fused
feature, beside the fused loss; the reversal grows from 0 as ``2 / (1 + exp(-10 p)) -
1`` with p the share of training done, as in the paper. DomainBed instead alternates
steps of discriminator and network with a gradient penalty, without a ramp. The
discriminator has DomainBed's form, two hidden layers of 256. Rows that lack a modality
are left out.
"""

import jax.numpy as jnp

from mer_dg.losses import cross_entropy, gradient_reversal, masked_mean
from mer_dg.methods._parts import needs_domains
from mer_dg.methods.term import WEIGHT, Hyperparameter, Spec, Term, whole_rows
from mer_dg.networks import init_mlp, mlp

_HIDDEN = 256


def make(task, options):
  del options
  needs_domains(task, "dann")

  def init(key, task, params):
    del params
    widths = (task.fused_width, _HIDDEN, _HIDDEN, task.num_domains)
    return {"discriminator": init_mlp(key, widths)}, {}

  def loss(outputs, batch, ctx):
    rows, domain = whole_rows(batch), batch["domain"]
    ramp = 2 / (1 + jnp.exp(-10 * ctx.step / max(task.total_steps, 1))) - 1
    feature = gradient_reversal(outputs.fused, ctx.hyper["reversal"] * ramp)
    logits = mlp(ctx.own["discriminator"], feature)
    told = masked_mean(jnp.argmax(logits, axis=-1) == domain, rows)
    return cross_entropy(logits, domain, where=rows), {"dann/accuracy": told}

  return Term(loss, init)


SPEC = Spec(
  "dann",
  make,
  {
    "weight": WEIGHT,
    "reversal": Hyperparameter(1.0, 0.0, 1e3, search=(0.01, 10.0)),
  },
  recipes={"dann": {"dann": {}}},
)
