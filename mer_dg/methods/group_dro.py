"""Group DRO (Sagawa et al., ICLR 2020), `group_dro`: the worst source domain counts
most.

``sum_d q_d R_d`` with ``q_d`` growing by ``exp(eta R_d)`` every step, normalised; it
stands in for the plain fused loss. As in DomainBed, domains are the groups, ``eta`` is
0.01, and the new q weighs the step that it comes from. A domain without a row in the
batch keeps its q and counts for nothing in that step.
"""

import jax
import jax.numpy as jnp

from mer_dg.methods._parts import accuracy, domain_risks, needs_domains
from mer_dg.methods.term import WEIGHT, Hyperparameter, Spec, Term


def make(task, options):
  del options
  needs_domains(task, "group_dro")

  def init(key, task, params):
    del key, params
    return {}, jnp.zeros(task.num_domains)  # log q, up to a constant.

  def loss(outputs, batch, ctx):
    risk, some = domain_risks(outputs.logits, batch, task.num_domains)
    log_q = jax.nn.log_softmax(
      ctx.memory + ctx.hyper["eta"] * jax.lax.stop_gradient(risk)
    )
    q = jnp.where(some, jnp.exp(log_q), 0.0)
    value = jnp.sum(q * risk) / jnp.maximum(jnp.sum(q), 1e-12)
    aux = {"log_q": log_q, "accuracy": accuracy(outputs, batch)}
    return value, aux | {f"group_dro/q{d}": q[d] for d in range(task.num_domains)}

  return Term(loss, init, lambda memory, aux, params, ctx: aux["log_q"])


SPEC = Spec(
  "group_dro",
  make,
  {"weight": WEIGHT, "eta": Hyperparameter(0.01, 0.0, 1e3, search=(1e-3, 0.1))},
  recipes={"group_dro": {"group_dro": {}}},
  replaces=("fused",),
  off=None,
)
