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
from mer_dg.methods.term import WEIGHT, Number, Spec, Term, needs_two, transformation


def make(task, options):
  del options
  needs_two(task, "gmp")
  names, domains = task.modalities, task.num_domains

  def init(key, task, params):
    del params
    if domains < 2:
      return {}, {}
    return _parts.init_discriminator(key, task, "domain", domains, deep=True), {}

  def loss(outputs, batch, ctx):
    hyper, present = ctx.hyper, batch["present"]
    net, own, z, logits = jax.lax.stop_gradient(
      (ctx.params, ctx.own, outputs.embeddings, outputs.unimodal_logits)
    )
    passed = lambda net: ctx.model.apply(net, batch, train=True)

    def told(own, z):
      see = lambda m: _parts.discriminate(own, "domain", m, z[m], ctx.key)
      return {m: see(m) for m in names}

    def summed(logits, target, factor):
      each = lambda m: cross_entropy(logits[m], target, where=present[m])
      return sum(factor[m] * each(m) for m in names)

    def factors(logits, target, alpha, power):
      """Lead over the mean of the others (to the power of 1 or -1), and its factor."""
      p = {m: _parts.of_label(jax.nn.softmax(logits[m]), target) for m in names}
      p = {m: masked_mean(p[m], present[m]) for m in names}
      rest = {m: (sum(p.values()) - p[m]) / (len(names) - 1) for m in names}
      top, bottom = (p, rest) if power > 0 else (rest, p)
      lead = {m: top[m] / (bottom[m] + 1e-6) for m in names}
      hold = lambda r: jnp.where(r > 1, 1 - jnp.tanh(alpha * r), 1.0)
      return lead, {m: hold(lead[m]) for m in names}

    label, domain, value = batch["label"], batch["domain"], jnp.float32(0.0)
    rho, k = factors(logits, label, hyper["alpha_class"], 1)
    aux = {f"gmp/class/{m}": k[m] for m in names}
    k = {m: hyper["heads"] * k[m] for m in names}
    by_class = lambda net: summed(passed(net).unimodal_logits, label, k)
    found = jax.grad(by_class)(net)
    if domains > 1:
      sigma, p = factors(told(own, z), domain, hyper["alpha_domain"], -1)
      aux |= {f"gmp/domain/{m}": p[m] for m in names}
      p = {m: -hyper["reversal"] * hyper["domain"] * p[m] for m in names}
      by_domain = lambda net: summed(told(own, passed(net).embeddings), domain, p)
      found = agree(found, jax.grad(by_domain)(net), rho, sigma, ctx.model)
      # The discriminators' own objective.
      value = summed(told(ctx.own, z), domain, dict.fromkeys(names, hyper["domain"]))
    return value, aux | {"gradient": found}

  def transform(hyper):
    def update(grads, state, params, *, aux, **_):
      del params
      add = lambda g, extra: g + hyper["weight"] * extra
      return {**grads, "net": jax.tree.map(add, grads["net"], aux["gradient"])}, state

    return transformation(update)

  return Term(loss, init, transform=transform)


def agree(c, d, rho, sigma, model):
  """``c + d``; where a modality's conflict, that of the larger ratio is projected."""
  parts = jax.tree.leaves(model.parts(c))
  leaves, tree = jax.tree.flatten(jax.tree.map(jnp.add, c, d))
  c, d = jax.tree.leaves(c), jax.tree.leaves(d)
  for m in rho:
    place = [i for i, p in enumerate(parts) if p in (f"encoder/{m}", f"head/{m}")]
    cd, cc, dd = _dot(c, d, place), _dot(c, c, place), _dot(d, d, place)
    conflict, first = jnp.minimum(cd, 0.0), rho[m] >= sigma[m]
    of_c = jnp.where(first, 0.0, conflict / jnp.maximum(cc, 1e-12))
    of_d = jnp.where(first, conflict / jnp.maximum(dd, 1e-12), 0.0)
    for i in place:
      leaves[i] -= of_c * c[i] + of_d * d[i]
  return jax.tree.unflatten(tree, leaves)


def _dot(a, b, place):
  return sum(jnp.vdot(a[i], b[i]) for i in place)


SPEC = Spec(
  "gmp",
  make,
  {
    "weight": WEIGHT,
    "heads": Number(3.0, 0.0, 1e3, search=(0.1, 5.0)),
    "domain": Number(0.5, 0.0, 1e3, search=(0.01, 1.0)),
    "reversal": Number(0.3, 0.0, 1e3, search=(0.01, 1.0)),
    "alpha_class": Number(0.5, 0.0, 1e3, search=(0.1, 1.0)),
    "alpha_domain": Number(0.1, 0.0, 1e3, search=(0.1, 1.0)),
  },
  recipes={"gmp": {"gmp": {}}},
)
