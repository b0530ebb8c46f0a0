"""MOOSA (Dong et al., ECCV 2024), `moosa`: SimMMDG with puzzles and entropy weighting.

Closed-set part: ``mean_i sum_j w_ij CE_ij`` over unimodal heads and fused classifier,
``w_ij = softmax_j(-H_ij / T)`` with its gradient, in the place of the fused loss; plus
0.001 times the heads' mean entropy, the three losses of SimMMDG with the translators'
inputs masked (entries at random, 0.3), and a jigsaw: embeddings are cut into parts (4
each of two modalities, 2 of more), all are permuted, a network names the permutation
among 128. The fused prediction is evaluated, as the authors do.

The authors show all 128 permutations of every row at every step; here each row is shown
one at random, the same loss in expectation at 1/128 of the work. They enumerate the
permutations of all parts, which bounds their number; here 128 are drawn once. A port
multiplies batch means of w and CE. A head whose modality is missing has no weight; the
losses between modalities need whole rows.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.contracts import named_key
from mer_dg.losses import cross_entropy
from mer_dg.methods import _parts
from mer_dg.methods.term import (
  SHARE,
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
  needs_two(task, "moosa")
  _parts.needs_halves(task, "moosa")
  pieces = 4 if len(task.modalities) == 2 else 2
  if odd := {m: d for m, d in task.width.items() if d % pieces}:
    raise ValueError(f"moosa cuts embeddings into {pieces} parts; it cannot cut {odd}.")
  table = jigsaw_table(task.widths, pieces)

  def init(key, task, params):
    del params
    own = _parts.init_translators(key, task) | _parts.init_projectors(key, task)
    widths = (sum(task.widths), 512, len(table))
    return own | {"jigsaw": init_mlp(named_key(key, "jigsaw"), widths)}, {}

  def loss(outputs, batch, ctx):
    label, draw = batch["label"], lambda name: named_key(ctx.key, name)
    z = {m: outputs.embeddings[m] for m in task.modalities}
    heads = {m: outputs.unimodal_logits[m] for m in z} | {"fused": outputs.logits}
    here = jnp.stack([batch["present"][m] for m in z] + [batch["mask"]], axis=1)
    heat, share = ctx.hyper["head_temperature"], 1 - ctx.hyper["masked"]
    value, entropy = _parts.weighted_heads(heads, label, here, heat)
    keep = lambda m, x: jax.random.bernoulli(draw(f"mask/{m}"), share, x.shape)
    shown = {m: jnp.where(keep(m, x), x, 0) for m, x in z.items()}
    parts = _parts.shared_and_specific(
      ctx.own, z, batch, ctx.key, temperature=ctx.hyper["temperature"], shown=shown
    )
    order = jax.random.randint(draw("jigsaw"), label.shape, 0, len(table))
    joined = jnp.concatenate(list(z.values()), axis=1)
    puzzle = jnp.take_along_axis(joined, jnp.asarray(table)[order], axis=1)
    named = cross_entropy(
      mlp(ctx.own["jigsaw"], puzzle), order, where=whole_rows(batch)
    )
    parts |= {"jigsaw": named, "entropy": entropy}
    value += sum(ctx.hyper[name] * part for name, part in parts.items())
    aux = {f"moosa/{name}": part for name, part in parts.items()}
    return value, aux | {"accuracy": _parts.accuracy(outputs, batch)}

  return Term(loss, init)


def jigsaw_table(widths, pieces: int, size: int = 128) -> np.ndarray:
  """Columns of the joined embeddings in each order of the parts, [size, sum D]."""
  cut = np.split(np.arange(sum(widths)), np.cumsum(widths)[:-1])
  parts = [part for columns in cut for part in np.split(columns, pieces)]
  rng, found = np.random.default_rng(0), {}
  while len(found) < min(size, math.factorial(len(parts))):
    order = tuple(rng.permutation(len(parts)))
    found[order] = np.concatenate([parts[i] for i in order])
  return np.stack(list(found.values()))


SPEC = Spec(
  "moosa",
  make,
  {
    "weight": WEIGHT,
    "head_temperature": Hyperparameter(1.0, 1e-3, 1e3),
    "entropy": Hyperparameter(1e-3, 0.0, 1e3, search=(1e-3, 1.0)),
    "jigsaw": Hyperparameter(1.0, 0.0, 1e3, search=(0.1, 3.0)),
    "masked": SHARE._replace(default=0.3),
    **_parts.SHARED_AND_SPECIFIC,
  },
  recipes={"moosa": {"moosa": {}}},
  replaces=("fused",),
  off=None,
)
