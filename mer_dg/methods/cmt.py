"""Cross-modal translation, `cmt_mlp` and `cmt_l2` (methods.md 4.13).

``cmt_mlp`` is the translation of SimMMDG by itself: networks between all ordered pairs
of modalities, Euclidean distance of unit rows, the target not detached, weight 0.1.
``cmt_l2`` is what a public benchmark calls by that name: no translator, the distance of
unit projections, ``0.05 (distance + 3 SupCon)`` (its weight for late fusion; 2 for
early fusion). Without the contrast the distance has a trivial minimum, one point. Rows
that lack a modality are left out.
"""

import itertools

from mer_dg.losses import translation_distance
from mer_dg.methods import _parts
from mer_dg.methods.term import Hyperparameter, Spec, Term, needs_two, whole_rows


def make(task, options):
  needs_two(task, "cmt")

  def init(key, task, params):
    del params
    return _parts.init_translators(key, task), {}

  def loss(outputs, batch, ctx):
    z = {m: outputs.embeddings[m] for m in task.modalities}
    translated = _parts.translate(ctx.own, z, ctx.key)
    return translation_distance(translated, z, where=whole_rows(batch)), {}

  def plain_loss(outputs, batch, ctx):
    del ctx
    r = {m: outputs.projections[m] for m in task.modalities}
    pairs = {(a, b): r[a] for a, b in itertools.combinations(r, 2)}
    return translation_distance(pairs, r, where=whole_rows(batch)), {}

  return Term(loss, init) if options["translator"] == "mlp" else Term(plain_loss)


SPEC = Spec(
  "cmt",
  make,
  {"weight": Hyperparameter(0.1, 0.0, 1e4, search=(0.01, 1.0))},
  options={"translator": ("mlp", "none")},
  recipes={
    "cmt_mlp": {"cmt": {"translator": "mlp"}},
    "cmt_l2": {
      "cmt": {"translator": "none", "weight": 0.05},
      "cmc": {"weight": 0.15},
    },
  },
)
