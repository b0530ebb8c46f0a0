"""MBCD (AAAI 2026), `mbcd`: unimodal steps before fusion, adaptive dropout, a teacher.

The fused loss is taken at encoders after a gradient step of their own heads' losses
(first order), with the modality that is ahead dropped at random
(`losses.modality_dropout_probabilities`); beside it ``sum_m CE_m`` at the encoders as
they are, and the divergences of the fused and the unimodal predictions from those of a
teacher, the moving average of the weights, which is evaluated.

Authors: the teacher's beta is plain 0.999 from the initial weights, which a short
training never leaves; here it has a bias warm-up. The statistics that they disturb in
the inner pass (DSU, around the last convolution stage) and the normalised heads belong
to their network: left out. A row is not left without any modality. Scores are means
over the rows that have the modality.
"""

import jax
import jax.numpy as jnp

from mer_dg.losses import cross_entropy, masked_mean, modality_dropout_probabilities
from mer_dg.methods import _parts
from mer_dg.methods.term import SHARE, WEIGHT, Hyperparameter, Spec, Term, needs_two

_PARTS = ("heads", "distill", "distill_heads")


def make(task, options):
  del options
  needs_two(task, "mbcd")
  names = task.modalities

  def init(key, task, params):
    del key, task
    return {}, params

  def loss(outputs, batch, ctx):
    mask, present, hyper = batch["mask"], batch["present"], ctx.hyper
    heads = lambda logits: sum(_parts.unimodal_losses(logits, batch, names).values())
    passed = lambda net: ctx.model.apply(net, batch, train=True)
    slope = jax.grad(lambda net: heads(passed(net).unimodal_logits))(
      jax.lax.stop_gradient(ctx.params)
    )
    length = hyper["inner_lr"]
    ahead = jax.tree.map(
      lambda part, p, g: p - length * g if part.startswith("encoder/") else p,
      ctx.model.parts(ctx.params), ctx.params, slope,
    )  # fmt: skip
    there = passed(ahead)
    sure = jax.lax.stop_gradient(
      {m: jax.nn.softmax(there.unimodal_logits[m]).max(axis=1) for m in names}
    )
    scores = {m: masked_mean(p, present[m]) for m, p in sure.items()}
    rates = modality_dropout_probabilities(scores, base=hyper["base"])
    here = jnp.stack([present[m] for m in names], axis=1)
    keep = drop(ctx.key, here, jnp.stack([rates[m] for m in names]))
    kept = {m: keep[:, i] for i, m in enumerate(names)}
    fused = ctx.model.fuse(ahead, there.embeddings, kept, train=True)
    teacher = ctx.model.apply(ctx.memory, batch).logits
    target = jax.nn.softmax(teacher)

    def divergence(logits, rows):
      entropy = cross_entropy(teacher, target, where=rows)
      return cross_entropy(logits, target, where=rows) - entropy

    value = cross_entropy(fused, batch["label"], where=mask)
    own = outputs.unimodal_logits
    alone = sum(divergence(own[m], present[m]) for m in names)
    parts = zip(_PARTS, (heads(own), divergence(fused, mask), alone), strict=True)
    aux = {f"mbcd/{name}": part for name, part in parts}
    value += sum(hyper[name] * aux[f"mbcd/{name}"] for name in _PARTS)
    aux |= {f"mbcd/drop/{m}": rate for m, rate in rates.items()}
    return value, aux | {"accuracy": _parts.accuracy(outputs, batch)}

  def update(mean, aux, params, ctx):
    del aux
    return _parts.average(mean, params, _parts.ema_share(ctx.hyper["beta"], ctx.step))

  return Term(loss, init, update, eval_params=lambda params, mean: mean)


def drop(key: jax.Array, here: jax.Array, rates: jax.Array) -> jax.Array:
  """``here`` [B, M] with columns dropped at rates [M]; as it is where all would go."""
  keep = here & (jax.random.uniform(key, here.shape) >= rates[None, :])
  return jnp.where(keep.any(axis=1, keepdims=True), keep, here)


SPEC = Spec(
  "mbcd",
  make,
  {
    "weight": WEIGHT,
    **dict.fromkeys(_PARTS, Hyperparameter(1.0, 0.0, 1e3, search=(0.1, 2.0))),
    "base": SHARE,  # Least rate of a modality that is ahead.
    "inner_lr": Hyperparameter(1e-4, 0.0, 1e3, search=(1e-4, 0.1)),
    "beta": Hyperparameter(0.999, 0.0, 1.0),
  },
  recipes={"mbcd": {"mbcd": {}}},
  replaces=("fused",),
  off=None,
)
