"""Fishr (Rame et al., ICML 2022), `fishr`: domains agree in the variance of gradients.

``lambda mean_d |v_d - mean v|^2`` beside the fused loss, with ``v_d`` the variance over
the rows of domain d of their gradients in the weights of a linear classifier, smoothed
over steps (0.95, divided by 0.05 so that smoothing does not weaken the gradient); 1,000
after three tenths of training, nothing before, as in DomainBed, which also starts Adam
anew at that point (not here).

The published network has a linear classifier on one feature. Ours has a deeper one, so
the term owns a linear classifier of the fused feature, trained on it detached:
gradients are ``(p - y) [f, 1]^T`` and their variance takes two matrix products, no
gradient of a row is stored. Rows that lack a modality are left out, and domains with
fewer than two rows in the batch.
"""

import jax
import jax.numpy as jnp

from mer_dg.losses import cross_entropy, masked_mean
from mer_dg.methods import _parts
from mer_dg.methods.term import SHARE, WEIGHT, Hyperparameter, Spec, Term, whole_rows
from mer_dg.networks import init_mlp, mlp


def make(task, options):
  del options
  _parts.needs_domains(task, "fishr")
  _parts.needs_rows(task, "fishr")
  shape = (task.num_domains, task.num_classes, task.fused_width + 1)

  def init(key, task, params):
    del params
    widths = (task.fused_width, task.num_classes)
    return {"classifier": init_mlp(key, widths)}, jnp.zeros(shape)

  def loss(outputs, batch, ctx):
    rows, label, hyper = whole_rows(batch), batch["label"], ctx.hyper
    member = _parts.by_domain(batch, task.num_domains, rows)
    logits = mlp(ctx.own["classifier"], outputs.fused)
    error = jax.nn.softmax(logits) - jax.nn.one_hot(label, task.num_classes)
    now = jax.vmap(lambda where: gradient_variance(outputs.fused, error, where))(member)
    keep, enough = hyper["decay"], member.sum(axis=1) >= 2
    smooth = keep * ctx.memory + (1 - keep) * now
    v = smooth / jnp.maximum(1 - keep, 1e-6)
    count = jnp.maximum(enough.sum(), 1)
    mean = jnp.sum(jnp.where(enough[:, None, None], v, 0), axis=0) / count
    apart = masked_mean(jnp.mean((v - mean[None]) ** 2, axis=(1, 2)), enough)
    start = jnp.round(hyper["start"] * task.total_steps)
    penalty = jnp.where(ctx.step >= start, hyper["penalty"], 0.0) * apart
    detached = mlp(ctx.own["classifier"], jax.lax.stop_gradient(outputs.fused))
    memory = jnp.where(enough[:, None, None], smooth, ctx.memory)
    value = cross_entropy(detached, label, where=rows) + penalty
    return value, {"memory": jax.lax.stop_gradient(memory), "fishr/apart": apart}

  return Term(loss, init, lambda memory, aux, params, ctx: aux["memory"])


def gradient_variance(feature, error, where):
  """Variance over rows of ``error [f, 1]^T``, ``[K, F + 1]``."""
  f = jnp.concatenate([feature, jnp.ones_like(feature[:, :1])], axis=1)
  f, error = (jnp.where(where[:, None], x, 0) for x in (f, error))
  n = jnp.maximum(jnp.sum(where), 1)
  product = lambda a, b: jnp.matmul(a.T, b, precision="highest") / n
  return product(error**2, f**2) - product(error, f) ** 2


SPEC = Spec(
  "fishr",
  make,
  {
    "weight": WEIGHT,
    "penalty": Hyperparameter(1e3, 0.0, 1e6, search=(10.0, 1e4)),
    "decay": Hyperparameter(0.95, 0.0, 0.999),
    "start": SHARE._replace(default=0.3),  # Of training.
  },
  recipes={"fishr": {"fishr": {}}},
)
