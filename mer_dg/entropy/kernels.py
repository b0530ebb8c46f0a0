r"""Kernels for density estimation: log profiles, derivatives, normalisers.

Every kernel on :math:`R^d` here is radial: ``K(x) = exp(c_d + phi(|x|^2))`` at unit
bandwidth. Bandwidths are applied by scaling the samples, so a kernel is three small
functions. The von Mises-Fisher kernel lives on the unit sphere; on unit vectors
``kappa q.r = kappa - kappa |q - r|^2 / 2``, i.e. it has the Gaussian profile with
``kappa = 1 / h^2`` and its own normaliser.
"""

from __future__ import annotations

from fractions import Fraction
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.entropy import _arrays


class Kernel(NamedTuple):
  """A kernel by name; ``df`` (degrees of freedom) is used by ``student-t`` only."""

  name: str
  df: float = 3.0

  @property
  def on_sphere(self) -> bool:
    return self.name == "vmf"

  @property
  def has_unit_slope(self) -> bool:
    """Gaussian profile: ``-2 phi' = 1``, which saves work."""
    return self.name in ("gaussian", "vmf")

  def log_profile(self, sq: jax.Array, d: int) -> jax.Array:
    """``phi(sq)``: log kernel without normaliser at squared distance ``sq``."""
    if self.has_unit_slope:
      return -0.5 * sq
    if self.name == "laplace":
      return -_arrays.safe_sqrt(sq)
    if self.name == "student-t":
      return -0.5 * (self.df + d) * jnp.log1p(sq / self.df)
    return _arrays.safe_log(jnp.maximum(1 - sq, 0))

  def slope(self, sq: jax.Array, d: int) -> jax.Array:
    """``-2 phi'(sq)``, so that grad_q log K(q - r) = -slope * (q - r)."""
    if self.has_unit_slope:
      return jnp.ones_like(sq)
    if self.name == "laplace":
      # The cusp at 0 gets subgradient 0 (the kernel is symmetric there).
      root = jnp.sqrt(jnp.where(sq > 0, sq, 1))
      return jnp.where(sq > 0, 1 / root, 0 * sq)
    if self.name == "student-t":
      return (self.df + d) / (self.df + sq)
    inside = sq < 1
    return jnp.where(inside, 2 / jnp.where(inside, 1 - sq, 1), 0 * sq)

  def log_normalizer(self, d: int, bandwidth: jax.Array) -> jax.Array:
    """``c``: log of the factor in front of ``exp(phi)``, bandwidth included.

    Args:
      d: Dimension of the samples.
      bandwidth: Scalar or ``[d]``.
    """
    bandwidth = jnp.asarray(bandwidth)
    if self.name == "vmf":
      return vmf_log_normalizer(d, 1 / bandwidth**2, scaled=True)
    log_h = jnp.log(bandwidth)
    log_det = jnp.sum(log_h) if log_h.ndim else d * log_h
    return self._log_unit(d) - log_det

  def _log_unit(self, d: int) -> float:
    half = d / 2
    if self.name == "gaussian":
      return -half * math.log(2 * math.pi)
    if self.name == "laplace":  # exp(-|x|): surface of S^{d-1} times Gamma(d)
      return math.lgamma(half) - math.log(2) - half * math.log(math.pi) - math.lgamma(d)
    if self.name == "student-t":
      return (
        math.lgamma((self.df + d) / 2)
        - math.lgamma(self.df / 2)
        - half * math.log(self.df * math.pi)
      )
    return math.log((d + 2) / 2) - log_unit_ball(d)  # epanechnikov


KERNELS = ("gaussian", "laplace", "student-t", "epanechnikov", "vmf")


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


def log_unit_ball(d: int) -> float:
  """Log volume of the unit ball in ``R^d``."""
  return 0.5 * d * math.log(math.pi) - math.lgamma(d / 2 + 1)


# --- von Mises-Fisher normaliser ------------------------------------------------------

# The uniform expansion is used from this order on; smaller orders recur down from it.
_OLVER_ORDER = 40
_OLVER_TERMS = 8  # truncation about 40^-8 = 1.5e-13, relative


@functools.cache
def _olver_polynomials() -> tuple[np.ndarray, ...]:
  """Coefficients (ascending) of U_k(p), k = 1 .. terms - 1 (DLMF 10.41.9)."""
  polys = [[Fraction(1)]]
  for _ in range(_OLVER_TERMS - 1):
    u = polys[-1]
    out = [Fraction(0)] * (len(u) + 3)
    for power, c in enumerate(u):
      # U_{k+1} = p^2 (1 - p^2) U_k' / 2 + 1/8 int_0^p (1 - 5 t^2) U_k dt
      out[power + 1] += c * power / 2 + c / (8 * (power + 1))
      if power + 3 < len(out):
        out[power + 3] -= c * power / 2 + 5 * c / (8 * (power + 3))
    polys.append(out)
  return tuple(np.array([float(c) for c in u]) for u in polys[1:])


def _log_scaled_bessel_large(order: float, kappa: jax.Array) -> jax.Array:
  """``log(I_order(kappa) kappa^-order e^-kappa)`` for order >= 40 (DLMF 10.41.3)."""
  root = jnp.sqrt(order**2 + kappa**2)
  p = order / root
  series = 0.0
  for k, coefficients in reversed(list(enumerate(_olver_polynomials(), start=1))):
    value = jnp.zeros_like(kappa)
    for c in coefficients[::-1]:
      value = value * p + float(c)
    series = series + value / order**k
  return (
    order**2 / (root + kappa)  # root - kappa without cancellation
    - order * jnp.log(order + root)
    - 0.5 * jnp.log(2 * jnp.pi * root)
    + jnp.log1p(series)
  )


def log_scaled_bessel(order: float, kappa: jax.Array) -> jax.Array:
  r"""``log( I_order(kappa) kappa^{-order} exp(-kappa) )``, finite down to kappa = 0.

  Olver's uniform asymptotic expansion for order >= 40; below that, the order is raised
  to at least 40 and Miller's backward recurrence brings it down, which is stable for
  ``I``: with ``t_k = I_{k+1} / (kappa I_k)`` it reads
  ``t_{k-1} = 1 / (2k + kappa^2 t_k)``, all terms positive.

  Args:
    order: Real order >= -1/2, static.
    kappa: Argument >= 0, any shape, floating.

  Returns:
    Same shape and dtype as ``kappa``. Relative error about 1e-13 in float64.

  Raises:
    ValueError: If ``order < -1/2``.

  References:
    DLMF 10.41.3 and 10.29.1.

  Example:
    >>> print(f"{log_scaled_bessel(0.5, jnp.array(1.0)):.4f}")
    -1.0644
  """
  if order < -0.5:
    raise ValueError(f"order must be >= -0.5, got {order}.")
  kappa = jnp.asarray(kappa)
  raised = max(0, math.ceil(_OLVER_ORDER - order))
  if raised == 0:
    return _log_scaled_bessel_large(order, kappa)
  top = order + raised
  value = _log_scaled_bessel_large(top, kappa)
  t = jnp.exp(_log_scaled_bessel_large(top + 1, kappa) - value)
  for step in range(raised):
    # From orders (k, k + 1) to (k - 1, k): I_k kappa^-k = t_{k-1} I_{k-1} kappa^-(k-1).
    k = top - step
    t = 1 / (2 * k + kappa**2 * t)
    value = value - jnp.log(t)
  return value


def vmf_log_normalizer(d: int, kappa, *, scaled: bool = False) -> jax.Array:
  r"""Log normaliser of the von Mises-Fisher density on the unit sphere of ``R^d``.

  .. math:: \log C_d(\kappa) = (d/2-1)\log\kappa - (d/2)\log 2\pi
            - \log I_{d/2-1}(\kappa)

  with respect to surface area, so that ``C_d(kappa) exp(kappa mu.x)`` integrates to 1.

  Args:
    d: Dimension of the ambient space, >= 1.
    kappa: Concentration >= 0, any shape.
    scaled: Add ``kappa``: the log density at the mode, which stays moderate where
      ``log C`` and ``kappa`` cancel.

  Returns:
    Shape of ``kappa``. At ``kappa = 0`` it is minus the log surface area.

  Raises:
    ValueError: If ``d < 1``.

  References:
    Mardia & Jupp, Directional Statistics, 2000, eq. 9.3.4.

  Example:
    >>> print(f"{vmf_log_normalizer(3, jnp.array(0.0)):.4f}")  # -log(4 pi)
    -2.5310
  """
  if d < 1:
    raise ValueError(f"d must be >= 1, got {d}.")
  kappa = _arrays.accumulate(jnp.asarray(kappa, jnp.result_type(float, kappa)))
  log_ratio = log_scaled_bessel(d / 2 - 1, kappa)
  out = -0.5 * d * math.log(2 * math.pi) - log_ratio
  return out if scaled else out - kappa
