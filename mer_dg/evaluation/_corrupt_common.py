"""What the corruptions of all kinds share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Draw(NamedTuple):
  """Randomness and settings for one sample.

  Attributes:
    rng: Of this sample and corruption; the same for every severity, so that severities
      differ in strength and not in luck.
    severity: 1 to 5.
    sample_rate: Of waveforms, in Hz.
    center: ``[C]`` values that a lost channel takes.
    scale: ``[C]`` standard deviations.
  """

  rng: np.random.Generator
  severity: int
  sample_rate: float
  center: np.ndarray | None
  scale: np.ndarray | None

  def pick(self, values: Sequence[float]) -> float:
    """The strength of this severity."""
    return values[self.severity - 1]

  def segment(self, length: int, fraction: float) -> slice:
    """A random stretch; a larger fraction contains that of a smaller one."""
    size = round(fraction * length)
    start = int(self.rng.random() * (length - size + 1))
    return slice(start, start + size)


def freeze_frames(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Each frame but the first repeats its predecessor with a probability."""
  lost = draw.rng.random(len(x)) < draw.pick((0.15, 0.3, 0.45, 0.6, 0.75))
  # Position of the last frame that was not lost; before the first there is none.
  return x[np.maximum.accumulate(np.where(lost, 0, np.arange(len(x))))]
