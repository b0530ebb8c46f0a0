r"""The improved Sheather-Jones bandwidth for one-dimensional samples.

Botev, Grotowski & Kroese, Kernel density estimation via diffusion, 2010: the Gaussian
kernel of variance t is the heat kernel, and the t that minimises the asymptotic mean
integrated squared error solves ``t = xi gamma^[l](t)``, where every stage plugs the
estimate of one derivative norm ``|f^(s)|^2`` into the next (l = 5, no normal reference
anywhere). Norms come from the cosine coefficients of the samples (Plancherel).
"""

from __future__ import annotations

import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mer_dg.entropy import _arrays

# Cells of the grid on which samples are binned. It spans twice the range of the
# samples, so bandwidths below about range / 2000 are not resolved.
GRID = 4096
_FIRST, _LAST = 7, 2  # derivative orders of the stages: l = 5 of the paper
_SMALLEST, _LARGEST = 1e-10, 0.1  # squared bandwidth in units of the grid's span
_BRACKETS = 64


def isj_bandwidth(z: jax.Array, v: jax.Array) -> jax.Array:
  """Bandwidth for samples ``z [n]`` with weights ``v [n]``; 0 for identical samples.

  Differentiable: the root by the implicit function theorem, the cosine coefficients
  through linear binning. Where the equation has no root (a handful of samples, or
  samples on a few values) it is Silverman's rule.
  """
  valid = v > 0
  total = jnp.sum(v)
  low = jnp.min(jnp.where(valid, z, jnp.inf))
  high = jnp.max(jnp.where(valid, z, -jnp.inf))
  usable = (high > low) & jnp.isfinite(high - low)
  spread = jnp.where(usable, high - low, 1)
  at = jnp.where(valid & usable, (z - low) / (2 * spread) + 0.25, 0.5)
  p = v / jnp.where(total > 0, total, 1)
  n_eff = lax.stop_gradient(1 / jnp.where(total > 0, jnp.sum(p**2), 1))
  log_power = _log_power(at, p)
  root, found = _smallest_root(lax.stop_gradient(log_power), n_eff)
  # One Newton step from the root: its value is the root, its gradient the implicit one.
  gap = lambda log_t: log_t - _log_plug_in(log_t, log_power, n_eff)
  slope = lax.stop_gradient(jax.grad(gap)(root))
  root = root - gap(root) / jnp.where(slope == 0, 1, slope)
  isj = 2 * spread * jnp.exp(0.5 * root)
  _, var = _arrays.weighted_moments(at[:, None], v)
  rule = (0.75 * n_eff) ** -0.2 * 2 * spread * _arrays.safe_sqrt(var[0])
  return jnp.where(usable, jnp.where(found, isj, rule), 0)


def _log_power(at: jax.Array, p: jax.Array) -> jax.Array:
  """``log (sum_i p_i cos(pi k x_i))^2`` for k = 1 .. GRID - 1, positions in [0, 1]."""
  position = at * GRID - 0.5  # cell centres are (j + 1/2) / GRID
  cell = jnp.floor(position)
  right = position - cell
  cell = jnp.clip(cell.astype(jnp.int32), 0, GRID - 2)
  mass = jnp.zeros(GRID, p.dtype).at[cell].add(p * (1 - right))
  mass = mass.at[cell + 1].add(p * right)
  coefficient = 0.5 * jax.scipy.fft.dct(mass)[1:]
  # Sharing a sample between two cells dampens frequency k by sinc^2.
  damping = np.sinc(np.arange(1, GRID) / (2 * GRID)) ** 2
  coefficient = coefficient / jnp.asarray(damping, p.dtype)
  return _arrays.safe_log(coefficient**2)


def _log_norm(order: int, log_t, log_power):
  """``log |f^(order)|^2`` of the samples smoothed with variance exp(log_t)."""
  k = np.arange(1, GRID)
  growth = jnp.asarray(2 * order * np.log(np.pi * k), log_power.dtype)
  decay = jnp.asarray((np.pi * k) ** 2, log_power.dtype) * jnp.exp(log_t)
  # In logs: k^14 overflows float32.
  return math.log(2) + jax.nn.logsumexp(growth + log_power - decay)


def _log_plug_in(log_t, log_power, n):
  """``log(xi gamma^[5](t))``, equations 29 and 30 of the paper."""
  log_norm = _log_norm(_FIRST, log_t, log_power)
  for order in range(_FIRST - 1, _LAST - 1, -1):
    odd = math.prod(range(1, 2 * order, 2))  # (2 order - 1)!!
    constant = (1 + 0.5 ** (order + 0.5)) / 3 * odd * math.sqrt(2 / math.pi)
    log_stage = 2 / (3 + 2 * order) * (math.log(constant) - jnp.log(n) - log_norm)
    log_norm = _log_norm(order, log_stage, log_power)
  return -0.4 * (math.log(2 * math.sqrt(math.pi)) + jnp.log(n) + log_norm)


def _smallest_root(log_power, n):
  """Log of the smallest t with ``t = xi gamma^[5](t)``, and whether there is one."""
  grid = np.linspace(math.log(_SMALLEST), math.log(_LARGEST), _BRACKETS)
  grid = jnp.asarray(grid, log_power.dtype)
  gap = lambda log_t: log_t - _log_plug_in(log_t, log_power, n)
  above = lax.map(gap, grid) > 0
  crosses = above[1:] & ~above[:-1]
  first = jnp.argmax(crosses)
  found = jnp.any(crosses)
  width = (math.log(_LARGEST) - math.log(_SMALLEST)) / (_BRACKETS - 1)
  steps = math.ceil(math.log2(width / float(jnp.finfo(log_power.dtype).eps)))

  def halve(_, bracket):
    left, right = bracket
    middle = 0.5 * (left + right)
    beyond = gap(middle) > 0
    return jnp.where(beyond, left, middle), jnp.where(beyond, middle, right)

  left, right = lax.fori_loop(0, steps, halve, (grid[first], grid[first + 1]))
  return 0.5 * (left + right), found
