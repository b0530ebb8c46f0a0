"""Learned strength, `mer_learned` (ours): entropy of a modality as long as it helps.

The entropy of `mer` with a factor for each modality, 1 at first, that follows a
hypergradient. A step against the entropy loss of m changes R, the fused loss of the
batch with its modalities re-paired within class, by minus the inner product of both
gradients in encoder m; the log of m's factor moves by ``rate`` times their cosine
(Adam rescales both) and stays within ``log limit`` of 0. R is measured on rows that are
trained on, whole ones of any source domain: no validation and no target rows.

It looks one step ahead, and so undervalues what pays late (Wu et al., Understanding
short-horizon bias in stochastic meta-optimization, ICLR 2018). One more forward and two
more backward passes.
"""

import jax
import jax.numpy as jnp

from mer_dg.contracts import named_key
from mer_dg.losses import cross_entropy
from mer_dg.methods import _entropy, mer
from mer_dg.methods.term import Hyperparameter, Spec, Term, needs_two, whole_rows


def make(task, options):
  needs_two(task, "learned")
  inner, names = mer.make(task, options), task.modalities

  def init(key, task, params):
    del key, task, params
    return {}, {m: jnp.float32(0.0) for m in names}  # Log factors.

  def loss(outputs, batch, ctx):
    both, top = gradients(inner, batch, ctx), jnp.log(ctx.hyper["limit"])
    move = {m: cosine(*both, f"encoder/{m}", ctx.model) for m in names}
    new = {m: ctx.memory[m] + ctx.hyper["rate"] * move[m] for m in names}
    factor = {m: jnp.exp(ctx.memory[m]) for m in names}
    value, aux = inner.loss(outputs, batch, _entropy.strengthened(ctx, factor))
    aux |= {f"learned/{m}": factor[m] for m in names}
    return value, aux | {"log": {m: jnp.clip(new[m], -top, top) for m in names}}

  return Term(loss, init, lambda memory, aux, params, ctx: aux["log"])


def gradients(inner, batch, ctx):
  """Of the entropy loss, and of the fused loss of re-paired rows, in the network."""
  rows, label = whole_rows(batch), batch["label"]

  def losses(net):
    outputs = ctx.model.apply(net, batch, train=True)
    z = within_class(ctx.key, outputs.embeddings, label, rows)
    logits = ctx.model.fuse(net, z, dict.fromkeys(z, rows), train=True)
    entropy, _ = inner.loss(outputs, batch, ctx)
    return entropy, cross_entropy(logits, label, where=rows)

  _, pull = jax.vjp(losses, jax.lax.stop_gradient(ctx.params))
  one, zero = jnp.float32(1.0), jnp.float32(0.0)
  return pull((one, zero))[0], pull((zero, one))[0]


def within_class(key, z, label, rows):
  """Each modality from a random row of its class; the others stay among themselves."""
  group = jnp.where(rows, label, -1)
  home, moved = jnp.argsort(group), {}
  for m, x in z.items():
    drawn = jax.random.uniform(named_key(key, m), label.shape)
    source = jnp.zeros_like(home).at[home].set(jnp.lexsort((drawn, group)))
    moved[m] = x[source]
  return moved


def cosine(a, b, part, model):
  """Of what belongs to a part of the network; 0 where one of them is 0."""
  owner = jax.tree.leaves(model.parts(a))
  leaves = zip(owner, jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  pairs = [leaf[1:] for leaf in leaves if leaf[0] == part]
  dot = lambda i, j: sum(jnp.vdot(pair[i], pair[j]) for pair in pairs)
  return dot(0, 1) / jnp.sqrt(jnp.maximum(dot(0, 0) * dot(1, 1), 1e-20))


def _hyperparameters(options) -> dict[str, Hyperparameter]:
  own = {
    "rate": Hyperparameter(0.05, 0.0, 10.0, search=(0.01, 0.2)),
    "limit": Hyperparameter(10.0, 1.0, 1e3),
  }
  return _entropy.hyperparameters(options) | own


SPEC = Spec(
  "learned",
  make,
  _hyperparameters,
  options=_entropy.OPTIONS | {"queue": (0,)},
  recipes={"mer_learned": {"learned": mer.KDE}},
  per_modality_weight=True,
)
