r"""Kernels for density estimation: log profiles, derivatives, normalisers.

Every kernel on :math:`R^d` here is radial: ``K(x) = exp(c_d + phi(|x|^2))`` at unit
bandwidth. Bandwidths are applied by scaling the samples, so a kernel is three small
functions. The von Mises-Fisher kernel lives on the unit sphere; on unit vectors
``kappa q.r = kappa - kappa |q - r|^2 / 2``, i.e. it has the Gaussian profile with
``kappa = 1 / h^2`` and its own normaliser.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mer_dg.entropy import _arrays
from mer_dg.entropy.sphere import vmf_log_normalizer

KERNELS = ("gaussian", "student-t", "vmf")


class Kernel(NamedTuple):
  """A kernel by name; ``df`` (degrees of freedom) is used by ``student-t`` only."""

  name: str
  df: float = 3.0

  @property
  def on_sphere(self) -> bool:
    return self.name == "vmf"

  def log_profile(self, half: jax.Array, d: int) -> jax.Array:
    """``phi``: log kernel without normaliser; ``half = -|x|^2 / 2``, in bandwidths."""
    if self.name == "student-t":
      return -0.5 * (self.df + d) * jnp.log1p(-2 * half / self.df)
    return half

  def slope(self, half: jax.Array, d: int) -> jax.Array | float:
    """``d phi / d half``: by how much a pair pulls, relative to the Gaussian."""
    return (self.df + d) / (self.df - 2 * half) if self.name == "student-t" else 1.0

  def log_normalizer(self, d: int, bandwidth: jax.Array) -> jax.Array:
    """Log of the factor in front of ``exp(phi)``, bandwidth (a scalar) included."""
    if self.on_sphere:
      return vmf_log_normalizer(d, 1 / bandwidth**2, scaled=True)
    unit = -0.5 * d * math.log(2 * math.pi)
    if self.name == "student-t":
      unit = math.lgamma((self.df + d) / 2) - math.lgamma(self.df / 2)
      unit -= 0.5 * d * math.log(self.df * math.pi)
    return unit - d * jnp.log(bandwidth)


def get_kernel(kernel: str | Kernel) -> Kernel:
  """Looks a kernel up by name; a ``Kernel`` passes through."""
  if isinstance(kernel, Kernel):
    _arrays.check_choice("kernel.name", kernel.name, KERNELS)
    if not kernel.df > 0:
      raise ValueError(f"kernel.df must be > 0, got {kernel.df}.")
    return kernel
  _arrays.check_choice("kernel", kernel, KERNELS)
  return Kernel(kernel)


def student_t(df: float) -> Kernel:
  """Student-t kernel with ``df`` degrees of freedom (``"student-t"`` has 3).

  Example:
    >>> student_t(1.0).name
    'student-t'
  """
  return get_kernel(Kernel("student-t", float(df)))
