"""What an array is, by what stands in it: order along an axis is measured, not assumed.

A series differs from a table of features in one thing: where two numbers stand tells
how alike they are. `order_along` measures that on a bounded number of rows. What cannot
be told (too few rows) is read by dtype and rank, see `mer_dg.data.dataset.infer_kind`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Rows, positions along the axis and other numbers that are looked at.
ROWS, POSITIONS, OTHERS = 512, 1024, 64
ENOUGH_ROWS = 50  # Fewer tell nothing: 0.2 is then within chance.
# Structure from which on a long axis has an order; T positions need (1 - 2 / T) of it,
# because centring a short row takes that much of what there is. The series in our
# public sets have 0.29 to 0.87; of drawn feature matrices with four positions one in
# fifteen looks like a series, with five or more none of 120 did.
ORDERED = 0.25
SHORT = 32  # Axes up to here have to show an order to be read as time.
LONG = 2048  # Steps from which on a stationary signal is read as a waveform.
WAVE = 256  # The same for [N, D]: shorter ones are a sequence of D steps.
WINDOW = 64  # [N, D] from which on order is looked for.
# Of the variance of a waveform, the share that stands at fixed positions; the ratio of
# its deviations there; how far correlations depend on more than the distance.
_FIXED, _UNEVEN, _UNSTEADY = 0.05, 2.0, 0.12
_COLOURS = (1, 3, 4)
_SIDE = 8  # Least height and width of a picture of floats.


class Order(NamedTuple):
  """How much the place along an axis says.

  Attributes:
    structure: Largest deviation of the correlation at some distance from that over all
      distances, 0 (exchangeable positions) to about 1.
    smooth: Whether the true order is smoother than all but one in a hundred drawn ones
      (for four positions: than all).
    stationary: Whether positions are alike but for their neighbourhood: means,
      deviations and correlations depend on distance alone.
  """

  structure: float
  smooth: bool
  stationary: bool


class Reading(NamedTuple):
  """What an array is taken for.

  Attributes:
    kind: ``vector``, ``sequence``, ``waveform``, ``image`` or ``clip``.
    why: In words.
    odd: Whether dtype and rank alone would have said something else, or nothing is
      sure: the reader of a summary wants to see it.
  """

  kind: str
  why: str
  odd: bool = False


def order_along(x: np.ndarray, axis: int) -> Order:
  """Measures whether numbers along an axis stand in an order.

  Every position is centred and scaled over rows, then every row over positions, so
  that neither the level of a position nor that of a row counts.

  Args:
    x: Finite numbers ``[N, ...]``.
    axis: Axis of at least 4 positions, not the first.

  Returns:
    The `Order`.

  Raises:
    ValueError: For an axis that is the first or too short.

  Example:
    >>> rng = np.random.default_rng(0)
    >>> walk = rng.normal(size=(200, 30)).cumsum(axis=1)
    >>> order_along(walk, 1).smooth, order_along(walk[:, ::7], 1).smooth
    (True, True)
  """
  if axis < 1 or x.shape[axis] < 4:
    raise ValueError(f"axis {axis} of {x.shape} must have 4 positions or more.")
  x = np.moveaxis(x[spread(len(x), ROWS)], axis, 1)
  start = (x.shape[1] - POSITIONS) // 2 if x.shape[1] > POSITIONS else 0
  x = x[:, start : start + POSITIONS].astype(np.float64)
  x = x.reshape(*x.shape[:2], -1)
  x = x[:, :, spread(x.shape[2], OTHERS)]
  loud = np.sqrt(((x - x.mean(axis=1, keepdims=True)) ** 2).mean(axis=1, keepdims=True))
  level = np.median(loud, axis=0, keepdims=True)
  # Amplitudes of rows may differ a hundredfold; few loud ones would hide the rest.
  x = x / np.maximum(loud, 0.01 * level + 1e-30)
  means = x.mean(axis=0)  # [positions, others]
  deviations = x.std(axis=0)
  total = x.var(axis=(0, 1)) + 1e-30
  fixed = float(np.median(means.var(axis=0) / total))
  low, high = np.percentile(deviations, [10, 90], axis=0)
  uneven = float(np.median(high / (low + 1e-30)))
  z = (x - means) / np.where(deviations > 1e-12 * np.abs(means), deviations, np.inf)
  z = np.clip(z, -8, 8)  # One glitch is no order.
  z -= z.mean(axis=1, keepdims=True)
  z /= np.sqrt((z**2).mean(axis=1, keepdims=True)) + 1e-12  # Loud rows count no more.
  z = np.moveaxis(z, 2, 1).reshape(-1, z.shape[1])
  g = z.T @ z / len(z)
  size = len(g)
  power = np.trace(g) / size + 1e-30
  mean = (g.sum() - np.trace(g)) / (size * (size - 1)) / power
  lags = [np.diagonal(g, k) / power for k in range(1, max(2, min(size // 2, 64) + 1))]
  structure = max(abs(float(lag.mean()) - mean) for lag in lags)
  unsteady = max(float(np.abs(lag - lag.mean()).mean()) for lag in lags)
  return Order(
    structure,
    _is_smooth(g),
    fixed < _FIXED and uneven < _UNEVEN and unsteady < _UNSTEADY,
  )


def _is_smooth(g: np.ndarray) -> bool:
  """Whether neighbours are closer in the true order than in drawn ones."""
  if len(g) > 64:  # A stretch will do.
    g = g[:64, :64]
  d = np.diag(g)[:, None] + np.diag(g)[None, :] - 2 * g
  rng = np.random.default_rng(0)
  drawn = np.argsort(rng.random((400, len(g))), axis=1)
  length = lambda order: d[order[..., :-1], order[..., 1:]].sum(axis=-1)
  true, drawn = length(np.arange(len(g))), length(drawn)
  # Four positions have twelve paths; the true one is then among the drawn ones.
  return bool(np.mean(drawn < true * (1 - 1e-9)) < 0.01)


def read_kind(x: np.ndarray, *, by_rank: str, has_lengths: bool = False) -> Reading:
  """What an array is taken for, and why.

  Args:
    x: ``[N, ...]`` numbers, those of rows that lack the modality left out.
    by_rank: What `infer_kind` says of dtype and rank.
    has_lengths: Whether valid steps per row are given: then there are steps.

  Returns:
    The reading.

  Example:
    >>> rng = np.random.default_rng(0)
    >>> common = rng.normal(size=(300, 1, 8))
    >>> per_sensor = common + 0.3 * rng.normal(size=(300, 4, 8))
    >>> read_kind(per_sensor, by_rank="sequence").kind
    'vector'
  """
  if has_lengths and by_rank in ("sequence", "clip"):
    return Reading(by_rank, "its lengths are given")
  if x.dtype == np.uint8 and x.ndim > 2:
    return _read_pixels(x, by_rank)
  if x.ndim == 2:
    return _read_rows(x)
  if x.shape[1] == 1 and x.ndim == 3:
    return Reading("vector", "a single step", odd=True)
  if len(x) < ENOUGH_ROWS or not np.isfinite(x[spread(len(x), ROWS)]).all():
    return Reading(by_rank, f"by its {x.ndim} axes; too few rows to look for an order")
  some = x[spread(len(x), ROWS)]
  if (some == some[0]).all():
    return Reading(by_rank, f"by its {x.ndim} axes; all rows are the same")
  return _read_picture(x) or _read_steps(x)


def _read_pixels(x: np.ndarray, by_rank: str) -> Reading:
  place = channel_axis(x.shape, by_rank)
  if place == 1 and x.ndim == 4 and by_rank == "clip":
    return Reading("image", f"uint8, channels first [N, {x.shape[1]}, H, W]", odd=True)
  if place:
    return Reading("clip", f"uint8, channels on axis {place}", odd=True)
  return Reading(by_rank, f"uint8 with {x.ndim} axes")


def channel_axis(shape: tuple[int, ...], kind: str) -> int:
  """The axis of the colours where they do not stand last; 0 if they do.

  Example:
    >>> channel_axis((5, 3, 32, 32), "image"), channel_axis((5, 32, 32, 3), "image")
    (1, 0)
  """
  if len(shape) < 4 or shape[-1] in _COLOURS or min(shape[-2:]) < 4:
    return 0
  if len(shape) == 4 and (shape[1] in (1, 3) or (kind == "image" and shape[1] == 4)):
    return 1
  if len(shape) == 5:
    return next((axis for axis in (2, 1) if shape[axis] in (1, 3)), 0)
  return 0


def _read_rows(x: np.ndarray) -> Reading:
  """[N, D]: features, or a signal that nobody called one."""
  d = x.shape[1]
  if d < WINDOW or len(x) < ENOUGH_ROWS or not np.isfinite(x).all():
    return Reading("vector", f"{d} numbers per row")
  order = order_along(x, 1)
  if order.structure < ORDERED:
    return Reading("vector", "neighbouring numbers do not correlate")
  if not order.stationary:
    return Reading("vector", "neighbours correlate, but every position has its own law")
  kind = "waveform" if d >= WAVE else "sequence"
  why = f"neighbours correlate ({order.structure:.2f}), alike at all positions"
  return Reading(kind, why, odd=True)


def _read_picture(x: np.ndarray) -> Reading | None:
  """Floats that are an image or clip; None if they are none."""
  shape = x.shape
  plain = x.ndim == 3
  if x.ndim > 5 or (x.ndim == 5 and shape[-1] not in _COLOURS):
    return None
  first = channel_axis(shape, "clip") if x.ndim == 4 else 0
  if x.ndim == 4 and shape[-1] in _COLOURS:
    axes, kind, what = (1, 2), "image", "[N, H, W, C]"
  elif x.ndim == 4 and first:
    axes, kind, what = (2, 3), "image", "[N, C, H, W]"
  elif x.ndim == 4:
    axes, kind, what = (2, 3), "clip", "[N, T, H, W]"
  elif x.ndim == 5:
    axes, kind, what = (2, 3), "clip", "[N, T, H, W, C]"
  else:
    axes, kind, what = (1, 2), "image", "[N, H, W]"
  sides = [shape[a] for a in axes]
  if min(sides) < _SIDE or max(sides) > 2 * min(sides):
    return None
  some = x[spread(len(x), ROWS)]
  low, high = float(some.min()), float(some.max())
  unit = low >= 0 and 0.5 < high <= 1
  pixels = low >= 0 and 1 < high <= 255
  symmetric = low >= -1 and low < -0.5 and 0.5 < high <= 1
  # Grey values alone could be anything else in [-1, 1], a depth map is in millimetres.
  depth = kind == "clip" and low >= 0
  if not (unit or pixels or depth or (symmetric and not plain)):
    return None
  if any(order_along(x, a).structure < ORDERED for a in axes):
    return None
  why = f"numbers in [{low:.3g}, {high:.3g}] that correlate along both sides of {what}"
  return Reading(kind, why, odd=True)


def _read_steps(x: np.ndarray) -> Reading:
  steps, size = x.shape[1], int(np.prod(x.shape[1:]))
  if steps < 4:
    return Reading("vector", f"{steps} positions are no series", odd=True)
  order = order_along(x, 1)
  says = f"correlation {order.structure:.2f}"
  if steps >= LONG and order.stationary and order.structure >= ORDERED:
    return Reading("waveform", f"{steps} steps, alike at all of them ({says})", True)
  needed = ORDERED * (1 - 2 / steps)
  if order.structure >= needed and (order.smooth or steps > SHORT):
    return Reading("sequence", f"its order shows ({says})")
  if steps > SHORT or size > 65536:
    return Reading("sequence", f"by its axes; no order shows ({says})", odd=True)
  return Reading("vector", f"no order shows along the first axis ({says})", odd=True)


def spread(count: int, limit: int) -> np.ndarray:
  """Up to ``limit`` of ``count`` positions, evenly spread.

  Example:
    >>> spread(7, 3).tolist(), spread(2, 3).tolist()
    ([0, 3, 6], [0, 1])
  """
  if count <= limit:
    return np.arange(count)
  return np.linspace(0, count - 1, limit).astype(np.int64)
