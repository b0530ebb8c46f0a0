"""The released MER-DG loss: marginal hinge and spectral log-determinant.

Formulas of the official implementation (repository olivesgatech/MER-DG, arXiv
2605.01967), with their mixture of ddof 0 and 1 and their two places of epsilon. The
masked form is ours: masking equals deleting rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mer_dg.entropy import _arrays
from mer_dg.entropy.gaussian import centered_rows, ridge_logdet

FORMS = ("auto", "primal", "dual")


def _check(z, where, eps):
  z = _arrays.check_samples("z", z)
  _arrays.check_positive("eps", eps)
  return z, _arrays.check_where(where, z)


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
    where: Boolean ``[..., n]``. Rows split over devices: ``gather_rows`` first.

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
  z, where = _check(z, where, eps)

  def one(z, where):
    z = _arrays.drop_rows(_arrays.accumulate(z), where)
    x, count = centered_rows(z, where)
    enough = count >= 2
    var = jnp.sum(x**2, axis=0) / jnp.where(enough, count - 1, 1)
    gap = gamma - jnp.sqrt(var + eps)
    value = jnp.mean(jax.nn.relu(gap))  # relu: subgradient 0 at the hinge
    return jnp.where(enough, value, _arrays.nan_if_nan(z))

  return _arrays.over_batch(one, z, where)


def _standardized_logdet(z, where, eps, form):
  """``log det C`` of the released correlation matrix, and the number of rows."""
  x, count = centered_rows(z, where)
  enough = count >= 2
  safe_count = jnp.where(enough, count, 2)
  std = _arrays.safe_sqrt(jnp.sum(x**2, axis=0) / safe_count) + eps
  x = x / std[None, :] / jnp.sqrt(safe_count - 1)
  logdet = ridge_logdet(x, jnp.asarray(eps, x.dtype), form=form)
  return logdet, enough


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
    where: Boolean ``[..., n]``. Rows split over devices: ``gather_rows`` first.

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
  z, where = _check(z, where, eps)
  _arrays.check_choice("form", form, FORMS)

  def one(z, where):
    z = _arrays.drop_rows(_arrays.accumulate(z), where)
    if z.shape[0] < 2 or z.shape[1] < 2:
      return _arrays.nan_if_nan(z)
    logdet, enough = _standardized_logdet(z, where, eps, form)
    return jnp.where(enough, -logdet / z.shape[1], _arrays.nan_if_nan(z))

  return _arrays.over_batch(one, z, where)


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
    where: Boolean ``[..., n]``. Rows split over devices: ``gather_rows`` first.

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
  marginal = marginal_entropy_loss(z, gamma=gamma, eps=eps, where=where)
  spectral = spectral_entropy_loss(z, eps=eps, form=form, where=where)
  return marginal_weight * marginal + spectral_weight * spectral
