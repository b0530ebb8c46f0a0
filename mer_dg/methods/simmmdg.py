"""SimMMDG (Dong et al., NeurIPS 2023): shared and specific halves, translation.

``0.1 L_translation + 3 SupCon(shared halves) + 0.7 L_split`` beside the fused loss
(methods.md 4.3). Faithful but for two things: projectors have layer instead of batch
normalisation, so that a row's loss does not depend on its batch; and translators and
projectors are as wide as the published 2,048 only where embeddings are (from 512 on),
else 128. The public README tunes epochs, widths and weights per target domain; here
they are hyperparameters like others. Rows that lack a modality are left out.
"""

from mer_dg.methods import _parts
from mer_dg.methods.term import WEIGHT, Spec, Term, needs_two


def make(task, options):
  del options
  needs_two(task, "simmmdg")
  _parts.needs_halves(task, "simmmdg")

  def init(key, task, params):
    del params
    translators = _parts.init_translators(key, task)
    return translators | _parts.init_projectors(key, task), {}

  def loss(outputs, batch, ctx):
    z = {m: outputs.embeddings[m] for m in task.modalities}
    parts = _parts.shared_and_specific(
      ctx.own, z, batch, ctx.key, temperature=ctx.hyper["temperature"]
    )
    total = sum(ctx.hyper[name] * value for name, value in parts.items())
    return total, {f"simmmdg/{name}": value for name, value in parts.items()}

  return Term(loss, init)


SPEC = Spec(
  "simmmdg",
  make,
  {"weight": WEIGHT, **_parts.SHARED_AND_SPECIFIC},
  recipes={"simmmdg": {"simmmdg": {}}},
)
