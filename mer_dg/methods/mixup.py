"""Mixup across domains (Zhang et al., ICLR 2018, as DomainBed has it).

Every row is mixed with one of another source domain, all its modalities with the same
share ``lambda ~ Beta(alpha, alpha)`` of its domain, and judged against both labels. It
stands in for the plain fused loss. DomainBed pairs whole mini-batches; here every row
draws its partner. A modality that only one of the two has is taken as it is.
"""

import jax
import jax.numpy as jnp

from mer_dg.losses import cross_entropy
from mer_dg.methods.term import WEIGHT, Hyperparameter, Spec, Term


def make(task, options):
  del options

  def loss(outputs, batch, ctx):
    del outputs
    pair_key, share_key = jax.random.split(ctx.key)
    partner = draw_partners(pair_key, batch["domain"], batch["mask"])
    alpha = jnp.maximum(ctx.hyper["alpha"], 1e-3)
    share = jax.random.beta(share_key, alpha, alpha, (task.num_domains,))
    share = share[batch["domain"]]
    mixed = dict(batch) | {"inputs": {}, "present": {}}
    for m in task.modalities:
      x, here = batch["inputs"][m].astype(jnp.float32), batch["present"][m]
      wide = (-1, *(1,) * (x.ndim - 1))
      x = jnp.where(here.reshape(wide), x, 0)  # What stands there may be NaN.
      there = here[partner]
      own = jnp.where(here & there, share, here.astype(jnp.float32))
      own = own.reshape(wide)
      mixed["inputs"][m] = own * x + (1 - own) * x[partner]
      mixed["present"][m] = (here | there) & batch["mask"]
    logits = ctx.model.apply(ctx.params, mixed, train=True).logits
    one_hot = jax.nn.one_hot(batch["label"], task.num_classes)
    target = share[:, None] * one_hot + (1 - share)[:, None] * one_hot[partner]
    return cross_entropy(logits, target, where=batch["mask"]), {}

  return Term(loss)


def draw_partners(key: jax.Array, domain: jax.Array, mask: jax.Array) -> jax.Array:
  """A random row of another domain for each row; of any, where there is no other.

  Args:
    key: Typed key.
    domain: int ``[B]``.
    mask: bool ``[B]``; other rows are nobody's partner, and are their own.

  Returns:
    int ``[B]``.

  Example:
    >>> domain = jnp.array([0, 0, 1])
    >>> print(draw_partners(jax.random.key(0), domain, jnp.ones(3, bool))[:2])
    [2 2]
  """
  n = domain.shape[0]
  other = (domain[:, None] != domain[None, :]) & mask[None, :]
  allowed = jnp.where(other.any(axis=1, keepdims=True), other, mask[None, :])
  score = jnp.where(allowed, jax.random.uniform(key, (n, n)), -1.0)
  return jnp.where(mask, jnp.argmax(score, axis=1), jnp.arange(n))


SPEC = Spec(
  "mixup",
  make,
  {"weight": WEIGHT, "alpha": Hyperparameter(0.2, 1e-3, 1e3, search=(0.1, 2.0))},
  recipes={"mixup": {"mixup": {}}},
  replaces=("fused",),
  off=None,
)
