"""V-REx (Krueger et al., ICML 2021), `vrex`: equal risks in all source domains.

``beta Var_d(R_d)`` with ``R_d`` the fused cross-entropy in domain d and the variance
divided by their number, beside the fused loss; weights as in DomainBed, 10 after a
tenth of training and a tenth of that before. DomainBed starts Adam anew at that point:
not here.
"""

import jax.numpy as jnp

from mer_dg.losses import masked_mean
from mer_dg.methods._parts import domain_risks, needs_domains
from mer_dg.methods.term import SHARE, Hyperparameter, Spec, Term


def make(task, options):
  del options
  needs_domains(task, "vrex")

  def loss(outputs, batch, ctx):
    risk, some = domain_risks(outputs.logits, batch, task.num_domains)
    variance = masked_mean((risk - masked_mean(risk, some)) ** 2, some)
    start = jnp.round(ctx.hyper["start"] * task.total_steps)
    factor = jnp.where(ctx.step < start, ctx.hyper["early"], 1.0)
    return factor * variance, {"vrex/variance": variance}

  return Term(loss)


SPEC = Spec(
  "vrex",
  make,
  {
    "weight": Hyperparameter(10.0, 0.0, 1e5, search=(0.1, 1e4)),
    "start": SHARE._replace(default=0.1),  # Of training, where the full weight begins.
    "early": SHARE._replace(default=0.1),  # Part of the weight before.
  },
  recipes={"vrex": {"vrex": {}}},
)
