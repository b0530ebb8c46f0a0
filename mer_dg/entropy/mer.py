"""The released MER-DG loss: marginal hinge and spectral log-determinant.

Formulas of the official implementation (repository olivesgatech/MER-DG, arXiv
2605.01967), with their mixture of ddof 0 and 1 and their two places of epsilon. The
masked form is ours: masking equals deleting rows.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from mer_dg.entropy import _arrays
from mer_dg.entropy.gaussian import ridge_logdet

FORMS = ("auto", "primal", "dual")


def _standard_deviation(z, where, eps):
  """Unbiased, epsilon inside the root, in units; the units. Both ``[d]``."""
  var, unit = _arrays.variance(z, where, per_column=True, least=1)
  var = jnp.maximum(var + eps / unit**2, jnp.finfo(z.dtype).tiny)
  return jnp.sqrt(var), unit


def marginal_entropy_loss(
  z: jax.Array, *, gamma=1.0, eps=1e-4, where: jax.Array | None = None
) -> jax.Array:
  r"""Hinge on the standard deviation of every dimension (to be minimised).

  .. math:: L = \tfrac1D \sum_d \max(0, \gamma - \sqrt{\mathrm{var}_d + \epsilon})

  with the unbiased variance (n - 1) and epsilon inside the root.

  Args:
    z: Features ``[..., n, d]``, floating.
    gamma: Standard deviation aimed at, in the units of ``z``. May be traced.
    eps: Added to the variance, > 0; bounds the gradient at zero variance. May be
      traced.
    where: Boolean ``[..., n]``.

  Returns:
    ``[...]``, float32 or wider. 0 with zero gradient below two valid rows (undefined
    in the released code).

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: For a wrong shape or ``eps <= 0``.

  References:
    MER-DG (arXiv 2605.01967), released code; the hinge of VICReg (Bardes et al. 2022).

  Example:
    >>> print(f"{marginal_entropy_loss(jnp.zeros((16, 4))):.4f}")
    0.9900
  """
  _arrays.check_positive("eps", eps)

  def one(z, where):
    return _hinge(*_standard_deviation(z, where, eps), gamma)

  return _arrays.estimate(one, z, where, min_rows=2)


def _hinge(std, unit, gamma):
  return jnp.mean(jax.nn.relu(gamma - std * unit))  # relu: subgradient 0 at the hinge


def _nats(std, unit, log_det):
  value = 0.5 * len(std) * math.log(2 * math.pi * math.e)
  return value + jnp.sum(jnp.log(std) + jnp.log(unit)) + 0.5 * log_det


def _correlation_logdet(z, where, eps, form):
  """``log det C`` of the released correlation matrix; 0 for one dimension."""
  if z.shape[1] < 2:
    return 0.0 * z[0, 0]
  x, count, unit = _arrays.center_rows(z, where, per_column=True, least=1)
  count = jnp.maximum(count, 2)
  std = _arrays.safe_sqrt(jnp.sum(x**2, axis=0) / count)
  std = std + jnp.maximum(eps / unit, jnp.finfo(z.dtype).tiny)
  x = x / std[None, :] / jnp.sqrt(count - 1)
  return ridge_logdet(x, jnp.asarray(eps, x.dtype), form=form)


def spectral_entropy_loss(
  z: jax.Array, *, eps=1e-4, form: str = "auto", where: jax.Array | None = None
) -> jax.Array:
  r"""Negative log-determinant of the correlation matrix (to be minimised).

  .. math:: L = -\tfrac1D \log\det\Big(\tfrac{X^\top X}{n-1} + \epsilon I\Big),\quad
            X = (Z - \bar Z) / (s + \epsilon)

  with ``s`` the biased standard deviation (n), epsilon outside the root. For n <= d at
  least ``d - n + 1`` eigenvalues equal epsilon, and the term hardly discriminates.

  Args:
    z: Features ``[..., n, d]``, floating.
    eps: Ridge and floor of the standard deviation, > 0. May be traced.
    form: ``"primal"`` (d x d), ``"dual"`` (n x n) or ``"auto"`` (dual when n < d);
      equal up to rounding.
    where: Boolean ``[..., n]``.

  Returns:
    ``[...]``, float32 or wider. 0 with zero gradient for d < 2 or below two valid rows.

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: For a wrong shape, ``eps <= 0`` or an unknown form.

  References:
    MER-DG (arXiv 2605.01967), released code.

  Example:
    >>> print(f"{spectral_entropy_loss(jnp.zeros((16, 128))):.4f}")  # -log(1e-4)
    9.2103
  """
  _arrays.check_positive("eps", eps)
  _arrays.check_choice("form", form, FORMS)

  def one(z, where):
    return -_correlation_logdet(z, where, eps, form) / z.shape[1]

  return _arrays.estimate(one, z, where, min_rows=2)


def mer_loss(
  z: jax.Array,
  *,
  marginal_weight=1.0,
  spectral_weight=1.0,
  gamma=1.0,
  eps=1e-4,
  form: str = "auto",
  where: jax.Array | None = None,
) -> jax.Array:
  """The released MER-DG loss of one modality (to be minimised).

  ``marginal_weight * marginal_entropy_loss + spectral_weight * spectral_entropy_loss``.

  Args:
    z: Features ``[..., n, d]``, floating.
    marginal_weight: Factor of the marginal term. May be traced.
    spectral_weight: Factor of the spectral term. May be traced.
    gamma: As in ``marginal_entropy_loss``.
    eps: As in both terms.
    form: As in ``spectral_entropy_loss``.
    where: Boolean ``[..., n]``.

  Returns:
    ``[...]``. 0 with zero gradient below two valid rows.

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: For a wrong shape, ``eps <= 0`` or an unknown form.

  References:
    MER-DG (arXiv 2605.01967), released code.

  Example:
    >>> print(f"{mer_loss(jnp.zeros((16, 128))):.4f}")
    10.2003
  """
  return loss_and_entropy(
    z,
    marginal_weight=marginal_weight,
    spectral_weight=spectral_weight,
    gamma=gamma,
    eps=eps,
    form=form,
    where=where,
  )[0]


def loss_and_entropy(
  z, *, marginal_weight=1.0, spectral_weight=1.0, gamma=1.0, eps=1e-4, form="auto",
  where=None,
):  # fmt: skip
  """``(mer_loss, logdet_entropy)`` of one factorisation."""
  _arrays.check_positive("eps", eps)
  _arrays.check_choice("form", form, FORMS)

  def one(z, where):
    std, unit = _standard_deviation(z, where, eps)
    log_det = _correlation_logdet(z, where, eps, form)
    marginal, spectral = _hinge(std, unit, gamma), -log_det / z.shape[1]
    loss = marginal_weight * marginal + spectral_weight * spectral
    return loss, _nats(std, unit, log_det)

  return _arrays.estimate(one, z, where, min_rows=2)


def logdet_entropy(
  z: jax.Array, *, eps=1e-4, form: str = "auto", where: jax.Array | None = None
) -> jax.Array:
  r"""Gaussian entropy that belongs to the released MER-DG terms, in nats.

  .. math:: H = \tfrac d2 \log 2\pi e + \sum_k \log \sqrt{\mathrm{var}_k + \epsilon}
            + \tfrac12 \log\det C

  with ``C`` of ``spectral_entropy_loss``: the split ``log det Sigma = 2 sum log sigma
  + log det C``, with the epsilons of the two losses. Finite for any input.

  Args:
    z: Features ``[..., n, d]``, floating.
    eps: As in ``mer_loss``.
    form: As in ``spectral_entropy_loss``.
    where: Boolean ``[..., n]``.

  Returns:
    Nats, ``[...]``; 0 below two valid rows.

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: For a wrong shape, ``eps <= 0`` or an unknown form.

  Example:
    >>> print(f"{logdet_entropy(jnp.zeros((4, 2))):.4f}")  # log 2 pi e + 2 log 1e-4
    -15.5828
  """
  return loss_and_entropy(z, eps=eps, form=form, where=where)[1]
