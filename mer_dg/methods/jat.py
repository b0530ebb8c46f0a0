"""JAT / MDJA (ACM MM 2025), `jat`: adversaries for domain and modality, trusted heads.

Beside the fused loss ``3 sum_m w_m CE_m``, and discriminators behind gradient reversal:
which modality is it (0.1, reversal 0.1), which domain, from each modality and from all
embeddings together (0.5 each, reversal 0.3). ``w_m`` is the softmax over modalities of
the mean entropy of the domain predictions, not detached: who cannot be told the domain
by a modality may trust it. With one source domain the domain terms are off and the
entropy is that of the class predictions, as published (the port for motor data keeps
the domain's). Branches of 512 and dropout 0.5 where embeddings are as wide, else 128;
layer in the place of batch normalisation. The authors train without weight decay: here
every method has the optimiser of its table.
"""

import jax
import jax.numpy as jnp

from mer_dg.contracts import named_key
from mer_dg.losses import cross_entropy, gradient_reversal, masked_mean
from mer_dg.methods import _parts
from mer_dg.methods.term import (
  WEIGHT,
  Hyperparameter,
  Spec,
  Term,
  needs_two,
  whole_rows,
)
from mer_dg.networks import init_mlp, mlp


def make(task, options):
  del options
  needs_two(task, "jat")
  names, domains = task.modalities, task.num_domains > 1

  def init(key, task, params):
    del params
    own = _parts.init_discriminator(key, task, "modality", len(names), deep=False)
    if domains:
      own |= _parts.init_discriminator(key, task, "domain", task.num_domains, deep=True)
      hidden = _parts.branch_width(task)
      widths = (sum(task.widths), hidden, task.num_domains)
      own["all"] = init_mlp(named_key(key, "all"), widths)
    return own, {}

  def loss(outputs, batch, ctx):
    hyper, present, rows = ctx.hyper, batch["present"], whole_rows(batch)
    modality, domain, unsure = [], [], []
    for i, m in enumerate(names):
      z = outputs.embeddings[m]
      back = gradient_reversal(z, hyper["reverse_modality"])
      logits = _parts.discriminate(ctx.own, "modality", m, back, ctx.key)
      target = jnp.full(batch["label"].shape, i)
      modality.append(cross_entropy(logits, target, where=present[m]))
      told = outputs.unimodal_logits[m]
      if domains:
        back = gradient_reversal(z, hyper["reverse_domain"])
        told = _parts.discriminate(ctx.own, "domain", m, back, ctx.key)
        domain.append(cross_entropy(told, batch["domain"], where=present[m]))
      unsure.append(masked_mean(_parts.entropy_of(told), present[m]))
    trust = jax.nn.softmax(jnp.stack(unsure))
    heads = _parts.unimodal_losses(outputs.unimodal_logits, batch, names)
    parts = {
      "heads": sum(trust[i] * heads[m] for i, m in enumerate(names)),
      "modality": jnp.mean(jnp.stack(modality)),
    }
    if domains:
      joined = jnp.concatenate([outputs.embeddings[m] for m in names], axis=1)
      back = gradient_reversal(joined, hyper["reverse_domain"])
      logits = mlp(ctx.own["all"], back, dropout=0.5, key=named_key(ctx.key, "all"))
      everyone = cross_entropy(logits, batch["domain"], where=rows)
      parts["domain"] = jnp.mean(jnp.stack(domain)) + everyone
    total = sum(hyper[name] * value for name, value in parts.items())
    aux = {f"jat/{name}": value for name, value in parts.items()}
    return total, aux | {f"jat/trust/{m}": trust[i] for i, m in enumerate(names)}

  return Term(loss, init)


SPEC = Spec(
  "jat",
  make,
  {
    "weight": WEIGHT,
    "heads": Hyperparameter(3.0, 0.0, 1e3, search=(0.1, 5.0)),
    "modality": Hyperparameter(0.1, 0.0, 1e3, search=(0.01, 1.0)),
    "domain": Hyperparameter(0.5, 0.0, 1e3, search=(0.01, 1.0)),
    "reverse_modality": Hyperparameter(0.1, 0.0, 1e3, search=(0.01, 1.0)),
    "reverse_domain": Hyperparameter(0.3, 0.0, 1e3, search=(0.01, 1.0)),
  },
  recipes={"jat": {"jat": {}}},
)
