"""One loss over several modalities, by the name of an estimator."""

from __future__ import annotations

from collections.abc import Mapping
import functools

import jax
from jax import lax
import jax.numpy as jnp

from mer_dg.entropy import _arrays
from mer_dg.entropy.gaussian import gaussian_entropy
from mer_dg.entropy.kde import kde_entropy, mixture_entropy_bounds
from mer_dg.entropy.kernels import get_kernel
from mer_dg.entropy.knn import knn_entropy
from mer_dg.entropy.marginal import marginal_entropy
from mer_dg.entropy.mer import loss_and_entropy
from mer_dg.entropy.queue import FifoQueue
from mer_dg.entropy.renyi import renyi_entropy
from mer_dg.entropy.spectrum import von_neumann_entropy
from mer_dg.entropy.sphere import unit_sphere


def _mixture_lower(z, *, bandwidth="scott", where=None, **options):
  return mixture_entropy_bounds(z, bandwidth=bandwidth, where=where, **options)[0]


_ENTROPIES = {
  "kde": kde_entropy,
  # Without shrinkage the covariance of n <= d rows is singular and its entropy -inf.
  "gaussian": functools.partial(gaussian_entropy, shrinkage=0.1),
  "knn": knn_entropy,
  "renyi": renyi_entropy,
  "marginal": marginal_entropy,
  "mixture": _mixture_lower,
  "von_neumann": von_neumann_entropy,
}
ESTIMATORS = (*_ENTROPIES, "logdet")
NORMALIZE = ("unit", "none", "standardize")


def entropy_regularizer(
  features: Mapping[str, jax.Array],
  *,
  estimator: str = "kde",
  normalize: str | None = None,
  weights: Mapping[str, jax.Array] | None = None,
  where: Mapping[str, jax.Array] | jax.Array | None = None,
  memory: Mapping[str, FifoQueue] | None = None,
  **options,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  r"""Sum over modalities of minus the entropy of their features (to be minimised).

  ``loss = - sum_m weights[m] H(features[m])``, except for ``estimator="logdet"``, whose
  loss is the released ``sum_m weights[m] mer_loss(features[m])``; the reported nats are
  then ``logdet_entropy``, the Gaussian entropy with the same epsilons.

  The entropy of unbounded features has no maximum, and a network finds that out. So by
  default it is that of the features on the unit sphere, which has one; for ``kde`` it
  is measured there (``kernel="vmf"``), with ``sphere_log_area(d)`` the maximum.

  Args:
    features: ``{modality: [n, d_m]}``, floating; widths may differ. Leading batch axes
      are allowed, the loss then has them.
    estimator: ``"kde"``, ``"gaussian"`` (here with ``shrinkage=0.1`` by default:
      n <= d rows have entropy -inf without), ``"knn"``, ``"renyi"``, ``"marginal"``,
      ``"mixture"`` (lower bound), ``"von_neumann"`` or ``"logdet"``.
    normalize: What is done to the features first: ``"unit"`` (rows on the unit sphere),
      ``"standardize"`` (columns to zero mean and unit variance over the valid rows) or
      ``"none"``. None: ``"unit"``, but ``"none"`` for ``logdet``, as in the released
      code: its hinge on the standard deviation bounds the scale.
    weights: ``{modality: scalar}``; 1 where absent. May be traced.
    where: Boolean rows, one ``[n]`` for all modalities or ``{modality: [n]}``
      (a modality without entry counts all its rows).
    memory: ``{modality: queue}`` of features of earlier batches, as they came (they are
      normalised here, on the unit sphere or not at all); for ``kde`` only.
    **options: Options of the estimator (``bandwidth``, ``kernel``, ``k``, ``eps``).
      For ``kde`` with ``normalize="unit"`` the defaults are ``kernel="vmf"`` and
      ``bandwidth="median"``, which follows the data and is a constant in the gradient.

  Returns:
    ``(loss, {modality: nats})``. A modality without enough valid rows contributes 0
    with zero gradient.

  Raises:
    TypeError: If features are not floating or an option is unknown to the estimator.
    ValueError: For an unknown estimator, normalisation or modality, a wrong shape, or a
      memory that does not fit the estimator or the normalisation.

  Example:
    >>> z = {"video": jnp.array([[0.0], [2.0]]), "audio": jnp.array([[0.0], [2.0]])}
    >>> loss, nats = entropy_regularizer(
    ...     z, normalize="none", bandwidth=1.0, weights={"audio": 0.5})
    >>> print(f"{loss:.4f} {nats['video']:.4f}")
    -4.3784 2.9189
  """
  _arrays.check_choice("estimator", estimator, ESTIMATORS)
  if normalize is None:
    normalize = "none" if estimator == "logdet" else "unit"
  _arrays.check_choice("normalize", normalize, NORMALIZE)
  if not isinstance(features, Mapping) or not features:
    raise ValueError(f"features must be a non-empty dict, got {features!r}.")
  for name, table in (("weights", weights), ("where", where), ("memory", memory)):
    if isinstance(table, Mapping) and not set(table) <= set(features):
      raise ValueError(
        f"{name} has modalities {sorted(table)}, features only {sorted(features)}."
      )
  if memory and (estimator != "kde" or normalize == "standardize"):
    raise ValueError(
      "memory needs estimator='kde' and normalize='unit' or 'none', "
      f"got estimator={estimator!r}, normalize={normalize!r}."
    )
  if estimator == "kde" and normalize == "unit":
    options = {"kernel": "vmf", "bandwidth": "median", **options}
    if get_kernel(options["kernel"]).on_sphere:
      normalize = "none"  # the kernel puts rows there itself
  terms, nats = [], {}
  for m, z in features.items():
    z = _arrays.check_samples(f"features[{m!r}]", z)
    mask = where.get(m) if isinstance(where, Mapping) else where
    mask = _arrays.check_where(mask, z, name=f"where (modality {m!r})")
    further = {}
    if memory and m in memory:
      rows = _normalized(memory[m].rows, None, normalize)
      further = {"memory": rows, "memory_where": memory[m].where}
    term, nats[m] = _term(
      estimator, _normalized(z, mask, normalize), mask, {**options, **further}
    )
    factor = 1.0 if weights is None else weights.get(m, 1.0)
    terms.append(factor * term)
  return sum(terms[1:], start=terms[0]), nats


def _normalized(z, where, how):
  if how == "none":
    return z
  if where is not None:  # what is in a masked row must not reach a gradient
    z = jnp.where(where[..., None], z, 0)
  if how == "unit":
    return unit_sphere(z)
  return _arrays.over_batch(_standardized, _arrays.accumulate(z), where)


def _standardized(z, where):
  """Columns at zero mean and unit (biased) variance over the valid rows."""
  x, count, unit = _arrays.center_rows(z, where, per_column=True, least=1)
  var = jnp.sum(x**2, axis=0) / jnp.maximum(count, 1)
  floor = jnp.maximum(1e-6 / unit**2, jnp.finfo(z.dtype).tiny)  # dead columns stay 0
  return x * lax.rsqrt(var + floor)[None, :]


def _term(estimator, z, where, options):
  """Loss of one modality and its entropy in nats."""
  if estimator == "logdet":
    loss, h = loss_and_entropy(z, where=where, **options)
    return loss, lax.stop_gradient(h)
  h = _ENTROPIES[estimator](z, where=where, **options)
  return -h, h
