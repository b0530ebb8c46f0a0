"""Corruptions of sensor series ``[T, C]`` and feature vectors ``[D]``."""

from __future__ import annotations

import numpy as np

from mer_dg.evaluation._corrupt_common import Draw

_LOST = (0.1, 0.2, 0.3, 0.45, 0.6)  # Share of channels or features.
_NOISE = (0.1, 0.25, 0.5, 0.8, 1.2)  # In standard deviations.
_SPIKES = (0.005, 0.015, 0.03, 0.06, 0.12)  # Share of values.
_SPIKE_SIZE = 6.0  # In standard deviations.


def _scale(x: np.ndarray, draw: Draw) -> np.ndarray:
  """``[C]``; where none was given, the spread of the sample over time."""
  return x.std(axis=0) if draw.scale is None else draw.scale


def gaussian_noise(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Independent noise in every value."""
  return x + draw.pick(_NOISE) * _scale(x, draw) * draw.rng.standard_normal(x.shape)


def drift(x: np.ndarray, draw: Draw) -> np.ndarray:
  """A ramp from 0 to a random end in every channel."""
  size = draw.pick((0.3, 0.6, 1.0, 1.6, 2.4))
  end = size * _scale(x, draw) * draw.rng.standard_normal(x.shape[1])
  return x + np.linspace(0, 1, len(x))[:, None] * end[None, :]


def gain(x: np.ndarray, draw: Draw) -> np.ndarray:
  """A random factor for every channel or feature."""
  size = draw.pick((0.1, 0.2, 0.35, 0.55, 0.8))
  return x * (1 + size * (2 * draw.rng.random(x.shape[-1]) - 1))


def spikes(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Single values jump by six standard deviations."""
  hit = draw.rng.random(x.shape) < draw.pick(_SPIKES)
  sign = np.where(draw.rng.random(x.shape) < 0.5, -1.0, 1.0)
  return x + np.where(hit, _SPIKE_SIZE * sign * _scale(x, draw), 0.0)


def freeze(x: np.ndarray, draw: Draw) -> np.ndarray:
  """A stretch holds the value before it."""
  stretch = draw.segment(len(x), draw.pick((0.1, 0.2, 0.3, 0.45, 0.6)))
  out = x.copy()
  out[stretch] = x[max(stretch.start - 1, 0)]
  return out


def channel_drop(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Channels are stuck at the center, or at their mean in this sample."""
  lost = draw.rng.random(x.shape[1]) < draw.pick(_LOST)
  rest = x.mean(axis=0) if draw.center is None else draw.center
  return np.where(lost[None, :], rest[None, :], x)


def feature_drop(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Features take the value of the center."""
  rest = np.zeros_like(x) if draw.center is None else draw.center
  return np.where(draw.rng.random(x.shape) < draw.pick(_LOST), rest, x)


SEQUENCE = {
  "gaussian_noise": gaussian_noise,
  "drift": drift,
  "gain": gain,
  "spikes": spikes,
  "freeze": freeze,
  "channel_drop": channel_drop,
}
VECTOR = {
  "gaussian_noise": gaussian_noise,
  "gain": gain,
  "spikes": spikes,
  "feature_drop": feature_drop,
}
