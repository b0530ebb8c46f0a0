"""MMD (Li et al., CVPR 2018), `mmd`: domains agree in the distribution of features.

The squared maximum mean discrepancy under seven Gaussian kernels, gamma 1e-3 to 1e3,
mean over pairs of source domains, as in DomainBed (biased estimate; the paper's
adversarial autoencoder around it is not there either), beside the fused loss. A public
multimodal port has kernels so wide (gamma 1e-5 on unit rows) that its loss is almost
nothing: not here. ``features`` as for `coral`.
"""

from mer_dg.losses import mmd
from mer_dg.methods import _parts
from mer_dg.methods.term import WEIGHT, Spec, Term


def make(task, options):
  _parts.needs_domains(task, "mmd")
  _parts.needs_rows(task, "mmd")
  count, features = task.num_domains, options["features"]

  def loss(outputs, batch, ctx):
    del ctx
    distance = lambda z, rows: mmd(z, batch["domain"], num_domains=count, where=rows)
    value = _parts.distance_of_domains(
      distance, features, outputs, batch, task.modalities
    )
    return value, {}

  return Term(loss)


SPEC = Spec(
  "mmd",
  make,
  {"weight": WEIGHT._replace(search=(0.1, 10.0))},
  options={"features": ("fused", "each")},
  recipes={"mmd": {"mmd": {}}},
)
