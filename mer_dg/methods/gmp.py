"""GMP (AAAI 2026), `gmp`: class and domain gradients of each modality, made to agree.

For the encoder and head of each modality, beside the fused loss: ``g_c = k_m grad 3
CE_m`` and ``g_d = p_m grad 0.5 CE(domain)`` through a reversal of 0.3. ``k_m = 1 -
tanh(a_k rho_m)`` where the modality is ahead in classes, ``rho_m = q_m / mean_(j != m)
q_j > 1``, q the mean probability of the label; ``p_m`` the same of ``sigma_m = mean_(j
!= m) delta_j / delta_m`` of the domains. Where the two conflict, the one of the larger
ratio is projected away from the other.

In the public code the discriminators never learn and the order of modalities differs
between training and evaluation; here they learn by the gradient that is not reversed.
One source domain: no domain part, as published. The authors train without weight decay:
here every method has the optimiser of its table.
"""

import jax
import jax.numpy as jnp

from mer_dg.losses import cross_entropy, masked_mean
from mer_dg.methods import _parts
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
  needs_two(task, "gmp")
  names, domains = task.modalities, task.num_domains
  hold_back = lambda ratio, a: jnp.where(ratio > 1, 1 - jnp.tanh(a * ratio), 1.0)

  def init(key, task, params):
    del params
    own = _parts.init_discriminator(key, task, "domain", domains, deep=True)
    return (own if domains > 1 else {}), {}

  def loss(outputs, batch, ctx):
    hyper, label, domain = ctx.hyper, batch["label"], batch["domain"]
    net, own, z, logits = jax.lax.stop_gradient(
      (ctx.params, ctx.own, outputs.embeddings, outputs.unimodal_logits)
    )
    passed = lambda net: ctx.model.apply(net, batch, train=True)
    each = lambda of: jnp.stack([of(m) for m in names])  # [M, B, ...]
    here = each(lambda m: batch["present"][m])

    def told(own, z):
      return each(lambda m: _parts.discriminate(own, "domain", m, z[m], ctx.key))

    def losses(logits, target):
      of = lambda values, rows: cross_entropy(values, target, where=rows)
      return jax.vmap(of)(logits, here)

    def compared(logits, target):
      """Mean probability of the target, and the mean of the other modalities'."""
      of = lambda v, rows: masked_mean(_parts.of_label(jax.nn.softmax(v), target), rows)
      p = jax.vmap(of)(logits, here)
      return p, (p.sum() - p) / (len(names) - 1)

    q, rest = compared(each(lambda m: logits[m]), label)
    rho = q / (rest + 1e-6)
    k = hyper["heads"] * hold_back(rho, hyper["alpha_class"])
    heads = lambda net: each(lambda m: passed(net).unimodal_logits[m])
    found = jax.grad(lambda net: k @ losses(heads(net), label))(net)
    aux, value = {f"gmp/class/{m}": k[i] for i, m in enumerate(names)}, jnp.float32(0.0)
    if domains > 1:
      delta, rest = compared(told(own, z), domain)
      sigma = rest / (delta + 1e-6)
      p = hyper["domain"] * hold_back(sigma, hyper["alpha_domain"])
      fooled = lambda net: p @ losses(told(own, passed(net).embeddings), domain)
      away = jax.tree.map(lambda g: -hyper["reversal"] * g, jax.grad(fooled)(net))
      class_gives = dict(zip(names, rho >= sigma, strict=True))
      found = _parts.agree(found, away, class_gives, ctx.model)
      aux |= {f"gmp/domain/{m}": p[i] for i, m in enumerate(names)}
      # The discriminators' own objective.
      value = hyper["domain"] * losses(told(ctx.own, z), domain).sum()
    return value, aux | {"gradient": found}

  def transform(hyper):
    def update(grads, state, params, *, aux, **_):
      del params
      add = lambda g, extra: g + hyper["weight"] * extra
      return {**grads, "net": jax.tree.map(add, grads["net"], aux["gradient"])}, state

    return transformation(update)

  return Term(loss, init, transform=transform)


SPEC = Spec(
  "gmp",
  make,
  {
    "weight": WEIGHT,
    "heads": Hyperparameter(3.0, 0.0, 1e3, search=(0.1, 5.0)),
    "domain": Hyperparameter(0.5, 0.0, 1e3, search=(0.01, 1.0)),
    "reversal": Hyperparameter(0.3, 0.0, 1e3, search=(0.01, 1.0)),
    "alpha_class": Hyperparameter(0.5, 0.0, 1e3, search=(0.01, 1.0)),
    "alpha_domain": Hyperparameter(0.1, 0.0, 1e3, search=(0.01, 1.0)),
  },
  recipes={"gmp": {"gmp": {}}},
)
