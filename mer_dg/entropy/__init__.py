"""Differentiable entropy estimators: pure functions from samples to nats."""

from mer_dg.entropy.gaussian import gaussian_entropy
from mer_dg.entropy.kde import kde_entropy, mixture_entropy_bounds, sphere_entropy
from mer_dg.entropy.kernels import Kernel, student_t
from mer_dg.entropy.knn import knn_entropy
from mer_dg.entropy.marginal import marginal_entropy
from mer_dg.entropy.mer import (
  logdet_entropy,
  marginal_entropy_loss,
  mer_loss,
  spectral_entropy_loss,
)
from mer_dg.entropy.queue import FifoQueue, fifo_init, fifo_push
from mer_dg.entropy.regularizer import entropy_regularizer
from mer_dg.entropy.renyi import renyi_entropy
from mer_dg.entropy.spectrum import effective_rank, von_neumann_entropy
from mer_dg.entropy.sphere import sphere_log_area, unit_sphere, vmf_log_normalizer

__all__ = [
  "FifoQueue",
  "Kernel",
  "effective_rank",
  "entropy_regularizer",
  "fifo_init",
  "fifo_push",
  "gaussian_entropy",
  "kde_entropy",
  "knn_entropy",
  "logdet_entropy",
  "marginal_entropy",
  "marginal_entropy_loss",
  "mer_loss",
  "mixture_entropy_bounds",
  "renyi_entropy",
  "spectral_entropy_loss",
  "sphere_entropy",
  "sphere_log_area",
  "student_t",
  "unit_sphere",
  "vmf_log_normalizer",
  "von_neumann_entropy",
]
