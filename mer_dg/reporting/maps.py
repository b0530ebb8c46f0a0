"""Maps of embeddings in two dimensions, and the file that keeps them for the report."""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import json
import os
import pathlib

import numpy as np

from mer_dg.protocol import write_atomic

FILE = "embedding_maps.json"  # In the folder of the report.


@dataclasses.dataclass(frozen=True)
class EmbeddingMap:
  """One modality of one network, seen from where its rows spread most."""

  training: str  # Name of the method, or "alone".
  modality: str
  points: np.ndarray  # [n, 2], first two principal components.
  share: tuple[float, float]  # Of the variance, theirs.
  label: np.ndarray  # int [n]
  domain: np.ndarray  # int [n]


@dataclasses.dataclass(frozen=True)
class EmbeddingMaps:
  """The maps of one task and seed, one per training and modality."""

  dataset: str
  target: str  # Held-out domain.
  seed: int
  class_names: tuple[str, ...]  # By label.
  domain_names: tuple[str, ...]  # By domain.
  maps: tuple[EmbeddingMap, ...]

  def are_of(self, dataset: str, modalities: Iterable[str]) -> bool:
    """Whether they are of the networks of this table."""
    own = {panel.modality for panel in self.maps}
    return (self.dataset, own) == (dataset, set(modalities))


_ARRAYS = ("points", "label", "domain")


def write_maps(folder: str | os.PathLike, maps: EmbeddingMaps) -> None:
  """Writes ``embedding_maps.json`` into the folder of a report."""
  found = dataclasses.asdict(maps)
  for panel in found["maps"]:
    panel |= {k: panel[k].round(4).tolist() for k in _ARRAYS}
  write_atomic(pathlib.Path(folder) / FILE, json.dumps(found) + "\n")


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
    for panel in raw["maps"]:
      panel |= {k: np.asarray(panel[k]) for k in _ARRAYS}
    raw["maps"] = tuple(EmbeddingMap(**panel) for panel in raw["maps"])
    return EmbeddingMaps(**raw)
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{path} holds no embedding maps: {error}") from error
