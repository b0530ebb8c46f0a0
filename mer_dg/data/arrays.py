"""From an `ArrayDataset` to the arrays and the batches that the step sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.contracts import Batch
from mer_dg.data.dataset import ArrayDataset
from mer_dg.data.sampling import Pool, draw_batch

# Central ranges of a standard normal distribution: 1.349 of it lies between the
# quartiles, 3.290 between the 5th and 95th percentile, 5.152 within 0.5 and 99.5.
_QUARTILES, _P90, _P99 = 1.349, 3.290, 5.152
_RANGE = (0.1, 99.9)  # Percentiles of the training values.


# Rows per evaluation block: large enough to keep a device busy, small enough
# that a hundred vmapped runs of a conv encoder fit in memory.
EVAL_BLOCK = 256


class Arrays(NamedTuple):
  """A dataset as plain arrays, ready to live on a device.

  Attributes:
    inputs: ``{modality: [N, ...]}`` in stored dtype; padded sequences carry a
      last channel that is 1 on valid steps and 0 on padding.
    present: ``{modality: bool [N]}``.
    label: int32 ``[N]``.
    index: int32 ``[N]`` stable sample ids.
  """

  inputs: dict[str, Any]
  present: dict[str, Any]
  label: Any
  index: Any


def to_arrays(dataset: ArrayDataset) -> Arrays:
  """Arrays of a dataset; padding is zeroed and marked by a validity channel."""
  inputs = {}
  for m, x in dataset.inputs.items():
    if m in dataset.lengths:
      valid = valid_steps(x.shape[1], dataset.lengths[m])[..., None]
      x = np.concatenate([np.where(valid, x, 0), valid], axis=-1).astype(x.dtype)
    missing = ~dataset.present[m]
    if missing.any():
      x = x.copy()
      x[missing] = 0  # What stands in a missing row (NaN, say) must not travel.
    inputs[m] = x
  return Arrays(inputs, dict(dataset.present), dataset.label, dataset.index)


def valid_steps(steps: int, lengths: np.ndarray) -> np.ndarray:
  """bool ``[N, steps]``: True on the steps before each row's length."""
  return np.arange(steps)[None, :] < lengths[:, None]


def gather_batch(arrays: Arrays, rows, domain, mask) -> Batch:
  """The batch of the given rows; rows with ``mask`` False are padding."""
  take = lambda tree: {m: a[rows] for m, a in tree.items()}
  present = {m: p & mask for m, p in take(arrays.present).items()}
  return {
    "inputs": take(arrays.inputs),
    "present": present,
    "label": arrays.label[rows],
    "domain": domain,
    "index": arrays.index[rows],
    "mask": mask,
  }


def sample_batch(arrays: Arrays, key, step, pool: Pool, per_domain: int) -> Batch:
  """The training batch of ``step``: `draw_batch`, then `gather_batch`."""
  return gather_batch(arrays, *draw_batch(key, step, pool, per_domain))


def fit_scaling(
  dataset: ArrayDataset, rows: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
  """Per-channel centre and inverse scale of each modality, from ``rows`` only.

  Numbers: the median, and the larger of the spreads of the central 50 % and 90 %
  of the values, in units of a standard deviation, so that broken sensor readings
  move nothing, while a channel that is quiet nearly always is not blown up by the
  noise between its bursts. Where 90 % of the values are equal the central 99 %
  stand in, then the standard deviation. uint8 is bounded: mean and standard
  deviation. A channel that is constant on ``rows`` gets inverse scale 0: it
  carries no training signal, and a change in it elsewhere would be noise. The range
  holds the central 99.8 % of the values.

  Args:
    dataset: The whole set.
    rows: Source training rows; nothing else is looked at.

  Returns:
    ``{modality: {"center", "inv_scale", "low", "high"}}``, each float32 ``[C]`` with C
    the last axis of the modality (without validity channel); ``low`` and ``high``, in
    units of the input, are infinite for uint8, which has a range of its own.
  """
  scaling = {}
  for m, x in dataset.inputs.items():
    use = rows[dataset.present[m][rows]]
    high = np.full(x.shape[-1], np.inf)
    low = -high
    if not len(use):
      center = scale = np.zeros(x.shape[-1])
    elif x.dtype == np.uint8:
      center, scale = _mean_and_deviation(x, use)
    else:
      values = x[use]
      if m in dataset.lengths:
        values = values[valid_steps(x.shape[1], dataset.lengths[m][use])]
      values = values.reshape(-1, x.shape[-1])
      center, scale, low, high = _median_spread_and_range(values)
    constant = scale <= _rounding(center)
    inv_scale = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, scale))
    scaling[m] = {
      "center": center.astype(np.float32),
      "inv_scale": inv_scale.astype(np.float32),
      "low": low.astype(np.float32),
      "high": high.astype(np.float32),
    }
  return scaling


def _rounding(center: np.ndarray) -> np.ndarray:
  """A spread below this is float32 rounding of a constant."""
  return 1e-6 * np.abs(center) + 1e-20


def _median_spread_and_range(values: np.ndarray) -> tuple[np.ndarray, ...]:
  """Median, robust spread, least and largest of each column of ``[n, C]``, float64."""
  values = values.astype(np.float32)
  percentiles = np.percentile(values, [5, 25, 50, 75, 95, *_RANGE], axis=0)
  p05, p25, median, p75, p95, least, largest = percentiles.astype(np.float64)
  scale = np.maximum((p75 - p25) / _QUARTILES, (p95 - p05) / _P90)
  for flat in np.flatnonzero(scale <= _rounding(median)):
    column = values[:, flat].astype(np.float64)
    low, high = np.percentile(column, [0.5, 99.5])
    wide = (high - low) / _P99
    scale[flat] = wide if wide > _rounding(median[flat]) else column.std()
  return median, scale, least, largest


def _mean_and_deviation(x: np.ndarray, rows: np.ndarray):
  """Exact mean and standard deviation of each channel of uint8 ``[N, ..., C]``."""
  count, total, square = 0, 0, 0
  for start in range(0, len(rows), 64):  # A block at a time: clips are large.
    values = x[rows[start : start + 64]].reshape(-1, x.shape[-1])
    count += len(values)
    total = total + values.sum(axis=0, dtype=np.int64)
    square = square + (values.astype(np.uint16) ** 2).sum(axis=0, dtype=np.int64)
  mean = total / count
  return mean, np.sqrt(np.maximum(square / count - mean**2, 0.0))


def eval_blocks(
  rows: np.ndarray, block: int = EVAL_BLOCK
) -> tuple[np.ndarray, np.ndarray]:
  """Rows cut into blocks of one size: ``(rows [n, block], mask [n, block])``."""
  count = max(-(-len(rows) // block), 1)
  mask = np.arange(count * block) < len(rows)
  padded = np.zeros(count * block, np.int32)
  padded[: len(rows)] = rows
  return padded.reshape(count, block), mask.reshape(count, block)


def put(arrays: Arrays | Mapping) -> Any:
  """The arrays on the default device."""
  return jax.tree.map(jnp.asarray, arrays)
