"""RNA-Net, `rna` (Planamente et al., WACV 2022): equal mean norms of the embeddings.

Two modalities a, b: ``(n_a / n_b - 1)^2`` with ``n_m`` the batch mean of ``|z^m|``;
three: the mean over pairs, in the order of the public benchmark code. Faithful; rows
that lack a modality are left out.
"""

from mer_dg.losses import relative_norm_alignment
from mer_dg.methods.term import WEIGHT, Spec, Term, needs_two, whole_rows


def make(task, options):
  del options
  needs_two(task, "rna")

  def loss(outputs, batch, ctx):
    del ctx
    z = {m: outputs.embeddings[m] for m in task.modalities}
    return relative_norm_alignment(z, where=whole_rows(batch)), {}

  return Term(loss)


SPEC = Spec(
  "rna",
  make,
  {"weight": WEIGHT._replace(search=(0.1, 3.0))},
  recipes={"rna": {"rna": {}}},
)
