"""Metrics and diagnostics of networks."""

from mer_dg.evaluation.cooccurrence import (
  cooccurrence_reliance,
  re_pair_within_class,
)
from mer_dg.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from mer_dg.evaluation.metrics import (
  NUM_BINS,
  accuracy,
  adaptive_ece,
  balanced_accuracy,
  brier,
  classification_metrics,
  confusion,
  ece,
  msp,
  nll,
  per_class_recall,
  reliability_metrics,
)
from mer_dg.evaluation.missing import mean_embeddings, missing_modalities
from mer_dg.evaluation.probe import Probe, fit_probe, linear_probe, probe_logits
from mer_dg.evaluation.representation import (
  class_means,
  domain_probe,
  domain_similarity,
  linear_cka,
  procrustes,
)

__all__ = [
  "CORRUPTIONS",
  "NUM_BINS",
  "SEVERITIES",
  "Probe",
  "accuracy",
  "adaptive_ece",
  "balanced_accuracy",
  "brier",
  "class_means",
  "classification_metrics",
  "confusion",
  "cooccurrence_reliance",
  "corrupt",
  "domain_probe",
  "domain_similarity",
  "ece",
  "fit_probe",
  "linear_cka",
  "linear_probe",
  "mean_embeddings",
  "missing_modalities",
  "msp",
  "nll",
  "per_class_recall",
  "probe_logits",
  "procrustes",
  "re_pair_within_class",
  "reliability_metrics",
]
