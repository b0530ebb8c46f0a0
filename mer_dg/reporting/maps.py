"""Maps of embeddings in two dimensions, and the file that keeps them for the report."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import numpy as np

from mer_dg.protocol.files import write_atomic

FILE = "embedding_maps.json"  # In the folder of the report.


@dataclasses.dataclass(frozen=True)
class EmbeddingMap:
  """One modality of one network, seen from where its rows spread most.

  Attributes:
    training: Name of the method, or "alone".
    modality: Name.
    points: ``[n, 2]``, first two principal components.
    share: Their shares of the variance.
    label: int ``[n]``.
    domain: int ``[n]``.
  """

  training: str
  modality: str
  points: np.ndarray
  share: tuple[float, float]
  label: np.ndarray
  domain: np.ndarray


@dataclasses.dataclass(frozen=True)
class EmbeddingMaps:
  """The maps of one task and seed.

  Attributes:
    dataset: Its name.
    target: Held-out domain.
    seed: Of the networks.
    class_names: By label.
    domain_names: By domain.
    maps: One per training and modality.
  """

  dataset: str
  target: str
  seed: int
  class_names: tuple[str, ...]
  domain_names: tuple[str, ...]
  maps: tuple[EmbeddingMap, ...]

  def of(self, training: str) -> list[EmbeddingMap]:
    """The modalities of one training."""
    return [m for m in self.maps if m.training == training]

  @property
  def trainings(self) -> list[str]:
    """In order of appearance."""
    return list(dict.fromkeys(m.training for m in self.maps))


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


def write_maps(folder: str | os.PathLike, maps: EmbeddingMaps) -> None:
  """Writes ``embedding_maps.json`` into the folder of a report."""
  shown = [
    dataclasses.asdict(m)
    | {k: getattr(m, k).round(4).tolist() for k in ("points", "label", "domain")}
    for m in maps.maps
  ]
  text = json.dumps(dataclasses.asdict(maps) | {"maps": shown})
  write_atomic(pathlib.Path(folder) / FILE, text + "\n")


def read_maps(folder: str | os.PathLike) -> EmbeddingMaps | None:
  """What `write_maps` wrote; None if there is no such file.

  Raises:
    ValueError: If the file is not what `write_maps` writes; names it.
  """
  path = pathlib.Path(folder) / FILE
  if not path.exists():
    return None
  try:
    raw = json.loads(path.read_text())
    maps = [
      EmbeddingMap(
        **m | {k: np.asarray(m[k]) for k in ("points", "label", "domain")}
        | {"share": tuple(m["share"])}
      )
      for m in raw["maps"]
    ]  # fmt: skip
    names = {k: tuple(raw[k]) for k in ("class_names", "domain_names")}
    return EmbeddingMaps(**raw | names | {"maps": tuple(maps)})
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{path} holds no embedding maps: {error}") from error
