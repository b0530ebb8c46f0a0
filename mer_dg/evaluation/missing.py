"""Missing modalities: every subset, from embeddings, without touching an encoder.

A modality can be withheld in two ways. *Zero*: it is declared missing, and the network
does what it does with a missing modality. *Mean*: its embedding is replaced by the mean
embedding of the source training rows and declared present, so the fusion sees a value
from the middle of what it was trained on.
"""

from collections.abc import Callable, Mapping
import itertools

import jax
import jax.numpy as jnp

from mer_dg.evaluation import _masked, metrics

# (embeddings {m: [n, D_m]}, present {m: bool [n]}) -> logits [n, K]
Fuse = Callable[[Mapping[str, jax.Array], Mapping[str, jax.Array]], jax.Array]


def subset_name(modalities: tuple[str, ...], kept: tuple[str, ...]) -> str:
  """``all``, or ``without_<a>+<b>``: what a subset is called in metrics.

  Example:
    >>> subset_name(("video", "audio", "flow"), ("audio",))
    'without_video+flow'
  """
  missing = [m for m in modalities if m not in kept]
  return "without_" + "+".join(missing) if missing else "all"


def subsets(modalities: tuple[str, ...]) -> list[tuple[str, ...]]:
  """The ``2^M - 1`` non-empty subsets, the largest first, in the order of the config.

  Example:
    >>> subsets(("a", "b"))
    [('a', 'b'), ('a',), ('b',)]
  """
  sizes = range(len(modalities), 0, -1)
  return [kept for k in sizes for kept in itertools.combinations(modalities, k)]


def mean_embeddings(
  embeddings: Mapping[str, jax.Array],
  present: Mapping[str, jax.Array],
  where: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Mean embedding of each modality over the rows that have it, for `fill`.

  Args:
    embeddings: ``{m: [n, D_m]}``, of source training rows.
    present: ``{m: bool [n]}``.
    where: bool ``[n]``, rows to use.

  Returns:
    ``{m: [D_m]}`` float32; 0 for a modality that no row has.

  Example:
    >>> z = {"a": jnp.array([[1.0], [3.0], [9.0]])}
    >>> mean_embeddings(z, {"a": jnp.array([True, True, False])})["a"].tolist()
    [2.0]
  """
  out = {}
  for m, z in embeddings.items():
    mask = _masked.full_mask(z.shape[0], where) & present[m].astype(bool)
    kept = jnp.where(mask[:, None], z.astype(jnp.float32), 0.0)
    out[m] = jnp.sum(kept, axis=0) / jnp.maximum(jnp.sum(mask), 1)
  return out


def withhold(
  embeddings: Mapping[str, jax.Array],
  present: Mapping[str, jax.Array],
  kept: tuple[str, ...],
  *,
  fill: Mapping[str, jax.Array] | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """Embeddings and presence with all but the kept modalities withheld.

  Args:
    embeddings: ``{m: [n, D_m]}``.
    present: ``{m: bool [n]}``.
    kept: Modalities that stay as they are, missing where they are missing.
    fill: ``{m: [D_m]}`` to put in place of a withheld modality (which then counts as
      present in every row); ``None``: zero, and missing.

  Returns:
    ``(embeddings, present)`` for ``fuse``.

  Example:
    >>> z, present = {"a": jnp.ones((1, 1)), "b": jnp.ones((1, 1))}, {
    ...   "a": jnp.array([True]), "b": jnp.array([True])}
    >>> z, present = withhold(z, present, ("a",))
    >>> z["b"].tolist(), present["b"].tolist()
    ([[0.0]], [False])
  """
  z, here = dict(embeddings), dict(present)
  for m in embeddings:
    if m not in kept:
      value = jnp.zeros_like(embeddings[m])
      if fill is not None:
        value = value + fill[m].astype(value.dtype)[None, :]
      z[m] = value
      here[m] = jnp.full(present[m].shape, fill is not None)
  return z, here


def missing_modalities(
  fuse: Fuse,
  embeddings: Mapping[str, jax.Array],
  present: Mapping[str, jax.Array],
  label: jax.Array,
  where: jax.Array | None = None,
  *,
  fill: Mapping[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
  """Metrics of the fused prediction for every non-empty subset of modalities.

  Every kept row is judged in every subset, also one whose only modalities are withheld.
  Costs ``2^M - 1`` fusions and no encoder pass, so it is exact only where encoders do
  not see each other.

  Args:
    fuse: ``(embeddings, present) -> logits [n, K]``, for example
      ``lambda z, p: network.fuse(variables, z, p)``.
    embeddings: ``{m: [n, D_m]}``, in the order of the config.
    present: ``{m: bool [n]}``.
    label: int ``[n]``.
    where: bool ``[n]``, rows to judge.
    fill: Mean embeddings of source training rows (`mean_embeddings`); ``None``: zero.

  Returns:
    ``all/<metric>`` and ``without_<a>+<b>/<metric>`` for `classification_metrics`; with
    ``target/`` before it, what reports read.

  Raises:
    ValueError: If the dicts do not have the same modalities.

  Example:
    >>> z = {"a": jnp.array([[0.0], [1.0]]), "b": jnp.array([[0.0], [0.0]])}
    >>> present = {m: jnp.ones(2, bool) for m in z}
    >>> fuse = lambda z, _: jnp.concatenate([0.5 - z["a"] - z["b"], z["a"]], axis=1)
    >>> out = missing_modalities(fuse, z, present, jnp.array([0, 1]))
    >>> {k: float(v) for k, v in out.items() if k.endswith("/accuracy")}
    {'all/accuracy': 1.0, 'without_b/accuracy': 1.0, 'without_a/accuracy': 0.5}
  """
  modalities = tuple(embeddings)
  for name, other in (("present", present), ("fill", fill)):
    if other is not None and set(other) != set(modalities):
      raise ValueError(
        f"{name} has modalities {sorted(other)}, embeddings {sorted(modalities)}."
      )
  out = {}
  for kept in subsets(modalities):
    logits = fuse(*withhold(embeddings, present, kept, fill=fill))
    found = metrics.classification_metrics(logits, label, where)
    name = subset_name(modalities, kept)
    out.update({f"{name}/{metric}": value for metric, value in found.items()})
  return out
