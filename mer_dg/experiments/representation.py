"""What embeddings of source validation and target rows have in common, by modality.

Both sides have as many rows of each class: neither the label nor the number of rows,
on which every estimate of entropy depends, tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg import entropy
from mer_dg.data.dataset import ArrayDataset
from mer_dg.data.splits import Split
from mer_dg.entropy.regularizer import ESTIMATORS
from mer_dg.evaluation import domain_probe, domain_similarity
from mer_dg.experiments.setup import Setup
from mer_dg.reporting.maps import EmbeddingMap, EmbeddingMaps

# Rows per side: kernel and neighbour estimates cost their square.
_MOST = 512
_MAP_ROWS = 160  # Of each side of a map: more points hide each other.


class Sides(NamedTuple):
  """Rows of a dataset: a half of source validation, then a half of the target.

  Attributes:
    rows: int ``[2 n]``.
    fit: bool ``[2 n]``, rows on which a probe for the domain is fitted.
    test: bool ``[2 n]``, rows on which it is judged; where both are False is padding.
  """

  rows: np.ndarray
  fit: np.ndarray
  test: np.ndarray


def draw_sides(dataset: ArrayDataset, split: Split, modality: str) -> Sides:
  """Source validation and target rows that have a modality, balanced by class.

  Rows of one group are all fitted on or all judged on, unless a class would be lost by
  that: neighbouring windows of one recording would give the domain away.
  """
  val = np.concatenate(list(split.val.values()))
  sides = [r[dataset.present[modality][r]] for r in (val, split.test)]
  rng = np.random.default_rng(0)
  everywhere = np.zeros(len(dataset), int)
  shared = len(_balanced(dataset, sides, everywhere, 0, rng)[1])
  half = _halves(dataset.group, sides, rng)
  parts = [_balanced(dataset, sides, half, h, rng) for h in (0, 1)]
  if any(len(classes) < shared for _, classes in parts):
    half = _halves(np.arange(len(dataset)), sides, rng)
    parts = [_balanced(dataset, sides, half, h, rng) for h in (0, 1)]
  (fit, _), (test, _) = parts
  rows = [np.concatenate(pair) for pair in zip(fit, test, strict=True)]
  is_fit = np.arange(len(rows[0])) < len(fit[0])
  return Sides(np.concatenate(rows), np.tile(is_fit, 2), np.tile(~is_fit, 2))


def _halves(group: np.ndarray, sides, rng: np.random.Generator) -> np.ndarray:
  """0 or 1 for every row; one number per group, alternating on each side."""
  half = np.zeros(len(group), int)
  for rows in sides:
    names, place = np.unique(group[rows], return_inverse=True)
    half[rows] = (rng.permutation(len(names)) % 2)[place]
  return half


def _balanced(dataset: ArrayDataset, sides, half: np.ndarray, which: int, rng):
  """``((source rows, target rows), classes)`` of one half, classes in equal numbers."""
  pools = [r[half[r] == which] for r in sides]
  counts = [np.bincount(dataset.label[r], minlength=dataset.num_classes) for r in pools]
  count = np.minimum(*counts)
  most = _MOST // 2
  if count.sum() > most:
    count = np.floor(count * (most / count.sum())).astype(int)
  classes = np.flatnonzero(count)
  pick = lambda rows, c: rng.permutation(rows[dataset.label[rows] == c])[: count[c]]
  chosen = [np.concatenate([r[:0], *(pick(r, c) for c in classes)]) for r in pools]
  return chosen, classes


def draw_all_sides(
  dataset: ArrayDataset, splits: Mapping[str, Split]
) -> dict[str, dict[str, Sides]]:
  """``{target: {m: sides}}``, all with as many rows (some are padding)."""
  drawn = {
    target: {m: draw_sides(dataset, split, m) for m in dataset.modalities}
    for target, split in splits.items()
  }
  size = max(len(sides.rows) for of in drawn.values() for sides in of.values()) // 2
  return {t: {m: _padded(s, size) for m, s in of.items()} for t, of in drawn.items()}


def representation(
  dataset: ArrayDataset, sides: Mapping[str, Sides], z: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
  """Numbers about the embeddings of every modality of a network.

  * ``domain_accuracy``: balanced accuracy of a linear probe that tells source from
    target rows; 0.5 is chance;
  * ``cka``, ``cka_debiased`` and ``procrustes`` of the class means of both;
  * ``effective_rank/<side>`` and ``entropy_<estimator>/<side>`` (nats, rows scaled to
    unit length) with side ``val``, source validation, or ``target``.

  Args:
    dataset: The dataset.
    sides: Of the held-out domain, see `draw_all_sides`.
    z: ``{m: [N, D]}``, by row of the dataset.

  Returns:
    ``{m: {name: value}}``; what is not finite is left out.
  """
  found = {}
  for m, own in z.items():
    rows, fit, test = sides[m]
    values = _measure(
      own[rows], dataset.label[rows], fit, test, num_classes=dataset.num_classes
    )
    found[m] = {k: float(v) for k, v in values.items() if np.isfinite(v)}
  return found


def _padded(sides: Sides, size: int) -> Sides:
  """Both sides behind each other in ``size`` rows each: one shape for all tasks."""

  def pad(a: np.ndarray) -> np.ndarray:
    both = a.reshape(2, -1)
    return np.pad(both, ((0, 0), (0, size - both.shape[1]))).reshape(-1)

  return Sides(*map(pad, sides))


@functools.partial(jax.jit, static_argnames="num_classes")
def _measure(z, label, fit, test, *, num_classes: int) -> dict[str, jax.Array]:
  """The numbers of one modality of one run; rows as `_padded` orders them."""
  half = len(label) // 2
  domain, where = jnp.arange(2 * half) // half, fit | test
  similar = domain_similarity(
    z, label, domain, where, num_classes=num_classes, num_domains=2
  )
  probed = domain_probe(z, domain, fit, test, num_domains=2)
  found = {"domain_accuracy": probed["balanced_accuracy"]}
  found |= {k: similar[k][0, 1] for k in ("cka", "cka_debiased", "procrustes")}
  unit = entropy.unit_sphere(z)
  for side, part in (("val", slice(0, half)), ("target", slice(half, None))):
    rank = entropy.effective_rank(z[part], where=where[part])
    found[f"effective_rank/{side}"] = rank
    for name in ESTIMATORS:
      # The bandwidth of the entropy that every evaluation records.
      options: dict[str, Any] = {"bandwidth": 0.5} if name == "kde" else {}
      nats = entropy.entropy_regularizer(
        {"z": unit[part]},
        estimator=name,
        normalize="none",
        where=where[part],
        **options,
      )[1]
      found[f"entropy_{name}/{side}"] = nats["z"]
  return found


def embedding_maps(
  setup: Setup, embedded: Mapping[str, Mapping[str, np.ndarray]]
) -> EmbeddingMaps:
  """Maps for the first target and seed of a table.

  Args:
    setup: Of the table.
    embedded: ``{training: {m: [N, D]}}``, by row of the dataset.
  """
  dataset, (task, split) = setup.dataset.in_memory(), (setup.tasks[0], setup.splits[0])
  maps = []
  for m in dataset.modalities:
    rows = draw_sides(dataset, split, m).rows
    # Every k-th row of either side: classes keep their shares.
    rows = rows[:: max(1, -(-len(rows) // (2 * _MAP_ROWS)))]
    for training, z in embedded.items():
      if m in z and len(rows):
        label, domain = dataset.label[rows], dataset.domain[rows]
        found = make_map(z[m][rows], label, domain, training=training, modality=m)
        maps.append(found)
  return EmbeddingMaps(
    dataset=dataset.name,
    target=task.target,
    seed=setup.config.seeds[0],
    class_names=dataset.class_names,
    domain_names=dataset.domain_names,
    maps=tuple(maps),
  )


def make_map(
  z: np.ndarray,
  label: np.ndarray,
  domain: np.ndarray,
  *,
  training: str,
  modality: str,
) -> EmbeddingMap:
  """Projects rows on their first two principal components.

  Equals ``sklearn.decomposition.PCA(2).fit_transform``, signs included: the largest
  loading of a component is positive, so that the same rows give the same map.

  Args:
    z: Embeddings ``[n, D]``, ``n >= 1``.
    label: int ``[n]``.
    domain: int ``[n]``.
    training: Name of the method, or "alone".
    modality: Name.

  Example:
    >>> z = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, -1.0], [2.0, -1.0]])
    >>> found = make_map(z, [0, 0, 1, 1], [0, 1, 0, 1], training="erm", modality="a")
    >>> found.points.round(2).tolist(), [round(s, 2) for s in found.share]
    ([[-1.0, 0.5], [1.0, 0.5], [-1.0, -0.5], [1.0, -0.5]], [0.8, 0.2])
  """
  centred = z.astype(np.float64) - z.mean(axis=0, dtype=np.float64)
  _, size, loading = np.linalg.svd(centred, full_matrices=False)
  size, loading = (np.pad(a, [(0, max(0, 2 - len(a))), *[(0, 0)] * (a.ndim - 1)])[:2]
                   for a in (size, loading))  # fmt: skip
  largest = loading[np.arange(2), np.abs(loading).argmax(axis=1)]
  loading = loading * np.where(largest < 0, -1.0, 1.0)[:, None]
  total = float(np.sum(centred**2))
  share = (size**2 / total if total > 0 else 0 * size).tolist()
  return EmbeddingMap(
    training=training,
    modality=modality,
    points=centred @ loading.T,
    share=(share[0], share[1]),
    label=np.asarray(label),
    domain=np.asarray(domain),
  )
