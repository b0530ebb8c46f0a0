"""Terms other than entropy and mixing; pure functions of arrays.

Dicts are ``{modality: [B, ...]}``. ``where`` is bool ``[B]``: a masked row counts as a
deleted one, whatever stands in it, and where no row is left a loss is 0. Values and
gradients are finite for every mask, for zero rows and for duplicated rows; sums run in
float32, or in float64 where the inputs are.
"""

from mer_dg.losses.adversarial import gradient_reversal
from mer_dg.losses.alignment import (
  relative_norm_alignment,
  shared_specific_distance,
  translation_distance,
)
from mer_dg.losses.balance import (
  entropy_weights,
  gradient_blending_weights,
  mmpareto_direction,
  modality_dropout_probabilities,
  ogm_coefficients,
)
from mer_dg.losses.classification import (
  cross_entropy,
  masked_mean,
  prototype_cross_entropy,
)
from mer_dg.losses.contrastive import mean_shift_contrastive, supervised_contrastive
from mer_dg.losses.divergence import coral, mmd
from mer_dg.losses.oracle import miro

__all__ = [
  "coral",
  "cross_entropy",
  "entropy_weights",
  "gradient_blending_weights",
  "gradient_reversal",
  "masked_mean",
  "mean_shift_contrastive",
  "miro",
  "mmd",
  "mmpareto_direction",
  "modality_dropout_probabilities",
  "ogm_coefficients",
  "prototype_cross_entropy",
  "relative_norm_alignment",
  "shared_specific_distance",
  "supervised_contrastive",
  "translation_distance",
]
