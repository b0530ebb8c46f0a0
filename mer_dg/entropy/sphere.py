r"""The unit sphere: putting rows on it, its area, densities on it."""

from __future__ import annotations

from fractions import Fraction
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.contracts import as_array
from mer_dg.entropy import _arrays

# Gradients of unit vectors grow as 1 / length. Below this one they stop growing,
# lest one dead row outvote all others. Values do not depend on it.
SHORTEST = 1e-6


def unit_sphere(z: jax.Array) -> jax.Array:
  """Rows scaled to unit length, at any scale: ``z / |z|``.

  Args:
    z: ``[..., d]``, floating. Half precision is returned in float32.

  Returns:
    ``[..., d]``. A zero row stays zero and gets no gradient. A row shorter than 1e-6
    gets the gradient of one of about this length in the same direction.

  Raises:
    TypeError: If ``z`` is not floating.

  Example:
    >>> u = unit_sphere(jnp.array([3e30, 4e30]))
    >>> print(f"{u[0]:.2f} {u[1]:.2f}")
    0.60 0.80
  """
  z = as_array("z", z)
  if not jnp.issubdtype(z.dtype, jnp.floating):
    raise TypeError(f"z must be floating, got dtype {z.dtype}.")
  return _unit_sphere(_arrays.accumulate(z))


def _scaled(z):
  """``z`` in units of the largest entry of its row, the unit, the length in units."""
  unit = _arrays.power_of_two(jnp.max(jnp.abs(z), axis=-1, keepdims=True))
  x = z / unit
  return x, unit, jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))


@jax.custom_jvp
def _unit_sphere(z):
  x, _, length = _scaled(z)
  return x / jnp.where(length > 0, length, 1)


@_unit_sphere.defjvp
def _unit_sphere_jvp(primals, tangents):
  (z,), (dz,) = primals, tangents
  _, unit, length = _scaled(z)
  u = _unit_sphere(z)
  # Divided by both in turn: their product may overflow.
  dz = dz / jnp.maximum(unit, SHORTEST) / jnp.maximum(length, 1)
  dz = jnp.where(length > 0, dz, 0)
  return u, dz - jnp.sum(u * dz, axis=-1, keepdims=True) * u


def sphere_log_area(d: int) -> float:
  r"""Log surface area of the unit sphere in ``R^d``, in nats.

  .. math:: \log \frac{2 \pi^{d/2}}{\Gamma(d/2)}

  This is the largest entropy that features on the sphere can have, that of the uniform
  distribution. It is negative from d = 19 on: a sphere in many dimensions is small.

  Args:
    d: Dimension of the ambient space, >= 1.

  Raises:
    ValueError: If ``d < 1``.

  Example:
    >>> print(f"{sphere_log_area(3):.4f}")  # log(4 pi)
    2.5310
  """
  if d < 1:
    raise ValueError(f"d must be >= 1, got {d}.")
  return math.log(2) + 0.5 * d * math.log(math.pi) - math.lgamma(d / 2)


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
  root = jnp.hypot(jnp.full_like(kappa, order), kappa)
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
    - 0.5 * (math.log(2 * math.pi) + jnp.log(root))
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
  # kappa t = I_{k+1} / I_k, which is 1 where t is next to zero.
  ratio = jnp.where(kappa < 1e30, kappa * t, 1)
  for step in range(raised):
    # From orders (k, k + 1) to (k - 1, k): I_k kappa^-k = t_{k-1} I_{k-1} kappa^-(k-1).
    inverse = 2 * (top - step) + kappa * ratio
    ratio = kappa / inverse
    value = value + jnp.log(inverse)
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
