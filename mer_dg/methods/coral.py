"""CORAL (Sun & Saenko, 2016), `coral`: domains agree in mean and covariance of
features.

``mean (mu_s - mu_t)^2 + mean (Sigma_s - Sigma_t)^2`` over pairs of source domains, in
the form of DomainBed (both means elementwise, covariance with n - 1), beside the fused
loss. Faithful. DomainBed knows one feature; here it is the fused one, or each modality
by itself (``features="each"``, their mean). Rows that lack a modality are no part of
the fused form: who lacks what may differ by domain.
"""

from mer_dg.losses import coral
from mer_dg.methods import _parts
from mer_dg.methods.term import WEIGHT, Spec, Term


def make(task, options):
  _parts.needs_domains(task, "coral")
  _parts.needs_rows(task, "coral")
  count, features = task.num_domains, options["features"]

  def loss(outputs, batch, ctx):
    del ctx
    distance = lambda z, rows: coral(z, batch["domain"], num_domains=count, where=rows)
    value = _parts.distance_of_domains(
      distance, features, outputs, batch, task.modalities
    )
    return value, {}

  return Term(loss)


SPEC = Spec(
  "coral",
  make,
  {"weight": WEIGHT._replace(search=(0.1, 10.0))},
  options={"features": ("fused", "each")},
  recipes={"coral": {"coral": {}}},
)
