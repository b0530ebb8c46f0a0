"""Contrast across modalities, `cmc` (Tian et al., ECCV 2020, as the MER-DG paper has
it).

``3 SupCon`` of unit projections with the modalities as views, beside the fused loss:
the row "CMC" of the MER-DG tables, no translation and no split. The original contrasts
samples without labels and pairs of modalities; that row, and this, classes. Projections
are the network's, the ones that MER acts on, as in the released code. Rows that lack a
modality are left out.
"""

from mer_dg.entropy import unit_sphere
from mer_dg.losses import supervised_contrastive
from mer_dg.methods.term import Hyperparameter, Spec, Term, needs_two, whole_rows


def make(task, options):
  del options
  needs_two(task, "cmc")

  def loss(outputs, batch, ctx):
    projections = {m: unit_sphere(outputs.projections[m]) for m in task.modalities}
    value = supervised_contrastive(
      projections,
      batch["label"],
      temperature=ctx.hyper["temperature"],
      where=whole_rows(batch),
    )
    return value, {}

  return Term(loss)


SPEC = Spec(
  "cmc",
  make,
  {
    "weight": Hyperparameter(3.0, 0.0, 1e4, search=(0.1, 5.0)),
    "temperature": Hyperparameter(0.1, 1e-3, 1e3),
  },
  recipes={"cmc": {"cmc": {}}},
)
