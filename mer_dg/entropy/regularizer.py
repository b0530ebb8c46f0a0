"""One loss over several modalities, by the name of an estimator."""

from __future__ import annotations

from collections.abc import Mapping
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

from mer_dg.entropy import _arrays
from mer_dg.entropy.gaussian import centered_rows, gaussian_entropy
from mer_dg.entropy.kde import kde_entropy, mixture_entropy_bounds
from mer_dg.entropy.knn import knn_entropy
from mer_dg.entropy.marginal import marginal_entropy
from mer_dg.entropy.mer import _standardized_logdet, mer_loss
from mer_dg.entropy.renyi import renyi_entropy
from mer_dg.entropy.spectrum import von_neumann_entropy


def _mixture_lower(z, *, bandwidth="scott", where=None, **kw):
  return mixture_entropy_bounds(z, bandwidth=bandwidth, where=where, **kw)[0]


# Without shrinkage the covariance of n <= d rows is singular and its entropy -inf.
_gaussian = functools.partial(gaussian_entropy, shrinkage=0.1)

_ENTROPIES = {
  "kde": kde_entropy,
  "gaussian": _gaussian,
  "knn": knn_entropy,
  "renyi": renyi_entropy,
  "marginal": marginal_entropy,
  "mixture": _mixture_lower,
  "von_neumann": von_neumann_entropy,
}
ESTIMATORS = (*_ENTROPIES, "logdet")


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
    where: Boolean ``[..., n]``. Rows split over devices: ``gather_rows`` first.

  Returns:
    Nats, ``[...]``; 0 below two valid rows.

  Example:
    >>> print(f"{logdet_entropy(jnp.zeros((4, 2))):.4f}")  # log 2 pi e + 2 log 1e-4
    -15.5828
  """
  z = _arrays.check_samples("z", z)
  where = _arrays.check_where(where, z)

  def one(z, where):
    z = _arrays.drop_rows(_arrays.accumulate(z), where)
    n, d = z.shape
    if n < 2:
      return _arrays.nan_if_nan(z)
    x, count = centered_rows(z, where)
    var = jnp.sum(x**2, axis=0) / jnp.where(count >= 2, count - 1, 1)
    value = 0.5 * d * math.log(2 * math.pi * math.e) + 0.5 * jnp.sum(jnp.log(var + eps))
    if d > 1:  # the released spectral term is 0 for one dimension
      value = value + 0.5 * _standardized_logdet(z, where, eps, form)[0]
    return jnp.where(count >= 2, value, _arrays.nan_if_nan(z))

  return _arrays.over_batch(one, z, where)


def entropy_regularizer(
  features: Mapping[str, jax.Array],
  *,
  estimator: str = "kde",
  weights: Mapping[str, jax.Array] | None = None,
  where: Mapping[str, jax.Array] | jax.Array | None = None,
  axis_name: str | None = None,
  **kw,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  r"""Sum over modalities of minus the entropy of their features (to be minimised).

  ``loss = - sum_m weights[m] H(features[m])``, except for ``estimator="logdet"``, whose
  loss is the released ``sum_m weights[m] mer_loss(features[m])``; the reported nats are
  then ``logdet_entropy``, the Gaussian entropy with the same epsilons.

  Args:
    features: ``{modality: [n, d_m]}``, floating; widths may differ. Leading batch axes
      are allowed, the loss then has them.
    estimator: ``"kde"``, ``"gaussian"`` (here with ``shrinkage=0.1`` by default:
      n <= d rows have entropy -inf without), ``"knn"``, ``"renyi"``, ``"marginal"``,
      ``"mixture"`` (lower bound), ``"von_neumann"`` or ``"logdet"``.
    weights: ``{modality: scalar}``; 1 where absent. May be traced.
    where: Boolean rows, one ``[n]`` for all modalities or ``{modality: [n]}``
      (a modality without entry counts all its rows).
    axis_name: Mapped axis over which rows are split; the result is that of all rows.
    **kw: Options of the estimator (``bandwidth``, ``k``, ``eps``, ``block_size``, ...).

  Returns:
    ``(loss, {modality: nats})``. A modality without enough valid rows contributes 0
    with zero gradient.

  Raises:
    TypeError: If features are not floating or an option is unknown to the estimator.
    ValueError: For an unknown estimator or modality, or a wrong shape.

  Example:
    >>> z = {"video": jnp.array([[0.0], [2.0]]), "audio": jnp.array([[0.0], [2.0]])}
    >>> loss, nats = entropy_regularizer(z, bandwidth=1.0, weights={"audio": 0.5})
    >>> print(f"{loss:.4f} {nats['video']:.4f}")
    -4.3784 2.9189
  """
  _arrays.check_choice("estimator", estimator, ESTIMATORS)
  if not isinstance(features, Mapping) or not features:
    raise ValueError(f"features must be a non-empty dict, got {features!r}.")
  for name, table in (("weights", weights), ("where", where)):
    if isinstance(table, Mapping) and not set(table) <= set(features):
      raise ValueError(
        f"{name} has modalities {sorted(table)}, features only {sorted(features)}."
      )
  terms, nats = [], {}
  for m, z in features.items():
    z = _arrays.check_samples(f"features[{m!r}]", z)
    mask = where.get(m) if isinstance(where, Mapping) else where
    mask = _arrays.check_where(mask, z, name=f"where (modality {m!r})")
    term, nats[m] = _term(estimator, z, mask, axis_name, kw)
    factor = 1.0 if weights is None else weights.get(m, 1.0)
    terms.append(factor * term)
  return sum(terms[1:], start=terms[0]), nats


def _term(estimator, z, where, axis_name, kw):
  """Loss of one modality and its entropy in nats."""
  if estimator == "kde":
    h = kde_entropy(z, where=where, axis_name=axis_name, **kw)
    return -h, h
  if axis_name is not None:
    z, where = gather_rows(z, where, axis_name=axis_name)
  if estimator == "logdet":
    shared = {name: kw[name] for name in ("eps", "form") if name in kw}
    h = lax.stop_gradient(logdet_entropy(z, where=where, **shared))
    term = mer_loss(z, where=where, **kw)
  else:
    h = _ENTROPIES[estimator](z, where=where, **kw)
    term = -h
  if axis_name is not None:  # equal on every member; the mean makes the gradient right
    term, h = lax.pmean((term, h), axis_name)
  return term, h


def gather_rows(
  z: jax.Array, where: jax.Array | None = None, *, axis_name: str
) -> tuple[jax.Array, jax.Array | None]:
  """All rows of a batch split over a mapped axis, on every member of it.

  Any estimator of the gathered rows is that of the global batch. Its gradient with
  respect to the local rows is that of the *sum* over members: divide the loss by the
  axis size or take its mean (``lax.pmean``) before differentiating.

  Args:
    z: Local rows ``[..., n, d]``.
    where: Local mask ``[..., n]`` or None.
    axis_name: Name of the mapped axis.

  Returns:
    ``(z [..., N, d], where [..., N] or None)``.
  """
  rows = z.ndim - 2
  z = lax.all_gather(z, axis_name, axis=rows, tiled=True)
  if where is not None:
    where = lax.all_gather(where, axis_name, axis=rows, tiled=True)
  return z, where
