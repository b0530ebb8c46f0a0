"""Modality-mix learning: recombine the modalities of different samples.

Pure functions of arrays and keys, for use inside any compiled step. The source
(Lu, Tan and Han, IEEE TNNLS 2026, doi 10.1109/tnnls.2026.3677806) is public only
as an abstract; what it leaves open is a *reconstruction* here and named so.
"""

from mer_dg.mixing.confidence import (
  ConfidenceTable,
  init_confidence_table,
  prediction_strength,
  select_confident,
  update_confidence_table,
)
from mer_dg.mixing.exploration import (
  Exploration,
  exploration_score,
  init_exploration,
  route_gradients,
)
from mer_dg.mixing.mix import Mixed, modality_mix
from mer_dg.mixing.objective import modality_mix_loss, target_kl
from mer_dg.mixing.schedule import Stage, mix_stage

__all__ = (
  "ConfidenceTable",
  "Exploration",
  "Mixed",
  "Stage",
  "exploration_score",
  "init_confidence_table",
  "init_exploration",
  "mix_stage",
  "modality_mix",
  "modality_mix_loss",
  "prediction_strength",
  "route_gradients",
  "select_confident",
  "target_kl",
  "update_confidence_table",
)
