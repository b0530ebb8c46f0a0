"""SimMMDG (Dong et al., NeurIPS 2023): shared and specific halves, translation.

``0.1 L_translation + 3 SupCon(shared halves) + 0.7 L_split`` beside the fused loss
(methods.md 4.3). Faithful but for two things: projectors have layer instead of batch
normalisation, so that a row's loss does not depend on its batch; and translators and
projectors are as wide as the published 2,048 only where embeddings are (from 512 on),
else 128. The public README tunes epochs, widths and weights per target domain; here
they are hyperparameters like others. Rows that lack a modality are left out.
"""

import itertools

import jax

from mer_dg.contracts import named_key
from mer_dg.losses import (
  shared_specific_distance,
  supervised_contrastive,
  translation_distance,
)
from mer_dg.methods.term import WEIGHT, Number, Spec, Term, needs_two, whole_rows
from mer_dg.networks import init_mlp, mlp

_PROJECTION = 128


def make(task, options):
  del options
  needs_two(task, "simmmdg")
  if odd := {m: d for m, d in task.width.items() if d % 2}:
    raise ValueError(f"simmmdg halves the embeddings; their widths {odd} are odd.")
  hidden = 2048 if max(task.widths) >= 512 else 128
  pairs = list(itertools.permutations(task.modalities, 2))

  def init(key, task, params):
    del params
    own = {}
    for a, b in pairs:
      widths = (task.width[a], hidden, hidden, task.width[b])
      own[f"translate_{a}_{b}"] = init_mlp(named_key(key, f"{a}/{b}"), widths)
    for m, d in task.width.items():
      widths = (d // 2, hidden, hidden, _PROJECTION)
      own[f"project_{m}"] = init_mlp(named_key(key, m), widths)
    return own, {}

  def loss(outputs, batch, ctx):
    z = {m: outputs.embeddings[m] for m in task.modalities}
    rows, own, hyper = whole_rows(batch), ctx.own, ctx.hyper
    translated = {
      (a, b): mlp(
        own[f"translate_{a}_{b}"], z[a], dropout=0.5, key=named_key(ctx.key, f"{a}/{b}")
      )
      for a, b in pairs
    }
    shared = {
      m: _unit(mlp(own[f"project_{m}"], x[:, : x.shape[1] // 2], normalize=True))
      for m, x in z.items()
    }
    contrast = supervised_contrastive(
      shared, batch["label"], temperature=hyper["temperature"], where=rows
    )
    parts = {
      "translation": translation_distance(translated, z, where=rows),
      "contrast": contrast,
      "split": shared_specific_distance(z, where=rows),
    }
    total = sum(hyper[name] * value for name, value in parts.items())
    return total, {f"simmmdg/{name}": value for name, value in parts.items()}

  return Term(loss, init)


def _unit(x):
  square = jax.numpy.sum(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jax.numpy.maximum(square, 1e-12))


SPEC = Spec(
  "simmmdg",
  make,
  {
    "weight": WEIGHT,
    "translation": Number(0.1, 0.0, 1e3, search=(0.01, 1.0)),
    "contrast": Number(3.0, 0.0, 1e3, search=(0.1, 5.0)),
    "split": Number(0.7, 0.0, 1e3, search=(0.01, 1.0)),
    "temperature": Number(0.1, 1e-3, 1e3),
  },
  recipes={"simmmdg": {"simmmdg": {}}},
)
