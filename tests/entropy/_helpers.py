"""Float64 that compiles quickly, random rows, and every estimator by name."""

import contextlib

import jax
import numpy as np

from mer_dg import entropy

ALL = {
  "kde": entropy.kde_entropy,
  "kde_fixed": lambda z, **k: entropy.kde_entropy(z, bandwidth=0.7, **k),
  "kde_median": lambda z, **k: entropy.kde_entropy(
    z, bandwidth="median", bandwidth_gradient=True, **k
  ),
  "kde_tiled": lambda z, **k: entropy.kde_entropy(z, dense=False, **k),
  "kde_student": lambda z, **k: entropy.kde_entropy(z, kernel="student-t", **k),
  "kde_vmf": lambda z, **k: entropy.kde_entropy(z, kernel="vmf", bandwidth=0.5, **k),
  "vmf_median": lambda z, **k: entropy.sphere_entropy(z, **k)["entropy"],
  "bounds": lambda z, **k: sum(entropy.mixture_entropy_bounds(z, bandwidth=1.0, **k)),
  "gaussian": entropy.gaussian_entropy,
  "gaussian_shrunk": lambda z, **k: entropy.gaussian_entropy(z, shrinkage=0.2, **k),
  "knn": entropy.knn_entropy,
  "renyi": entropy.renyi_entropy,
  "renyi_matrix": lambda z, **k: entropy.renyi_entropy(
    z, alpha=1.5, form="matrix", **k
  ),
  "renyi_matrix_2": lambda z, **k: entropy.renyi_entropy(z, form="matrix", **k),
  "spacing": entropy.marginal_entropy,
  "marginal_kde": lambda z, **k: entropy.marginal_entropy(z, estimator="kde", **k),
  "marginal_gaussian": lambda z, **k: entropy.marginal_entropy(
    z, estimator="gaussian", **k
  ),
  "mer": entropy.mer_loss,
  "logdet": entropy.logdet_entropy,
  "effective_rank": entropy.effective_rank,
  "von_neumann": entropy.von_neumann_entropy,
}


@contextlib.contextmanager
def float64():
  """Float64, compiled quickly rather than well: formulas do not mind."""
  name = "jax_disable_most_optimizations"
  before = jax.config.read(name)
  jax.config.update(name, True)
  try:
    with jax.enable_x64(True):
      yield
  finally:
    jax.config.update(name, before)


def normal(seed, *shape, dtype=np.float64):
  return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
