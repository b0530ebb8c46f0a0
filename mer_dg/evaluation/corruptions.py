"""Corruptions of test inputs: own generator, five severities, no data of others.

A corrupted sample depends on (seed, kind, corruption, sample id, severity) and on the
sample, never on its neighbours in an array; the draws are the same for every severity,
which alone changes from 1 to 5. On the host, in NumPy: corrupted sets are made once and
evaluated often. (Bits are those of one NumPy version: its generators may change.)

Strengths are ours. Numbers are not comparable with those on the published corrupted
sets of the field, which hold other types and state no severity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import zlib

import numpy as np

from mer_dg.evaluation import _corrupt_audio, _corrupt_images, _corrupt_series
from mer_dg.evaluation._corrupt_common import Draw

SEVERITIES = (1, 2, 3, 4, 5)
_FUNCTIONS: Mapping[str, Mapping[str, Callable]] = {
  "image": _corrupt_images.IMAGE,
  "clip": _corrupt_images.CLIP,
  "flow": _corrupt_images.FLOW,
  "waveform": _corrupt_audio.WAVEFORM,
  "logmel": _corrupt_audio.LOGMEL,
  "sequence": _corrupt_series.SEQUENCE,
  "vector": _corrupt_series.VECTOR,
}
# {kind: names of its corruptions}
CORRUPTIONS = {kind: tuple(functions) for kind, functions in _FUNCTIONS.items()}
# Axes of one sample; what the last one must be, if anything.
_AXES = {
  "image": ("H", "W", "C"),
  "clip": ("T", "H", "W", "C"),
  "flow": ("T", "H", "W", "2"),
  "waveform": ("T",),
  "logmel": ("T", "F"),
  "sequence": ("T", "C"),
  "vector": ("D",),
}
_PADDED = ("waveform", "logmel", "sequence")
_FLOW_ZERO = 127.5  # Of flow stored as uint8: no motion.


def corrupt(
  x: np.ndarray,
  ids: np.ndarray,
  *,
  kind: str,
  name: str,
  severity: int,
  seed: int = 0,
  lengths: np.ndarray | None = None,
  sample_rate: float | None = None,
  center: np.ndarray | None = None,
  scale: np.ndarray | None = None,
) -> np.ndarray:
  """Corrupts every sample of an array.

  Args:
    x: ``[n, ...]``, samples by kind: ``image`` ``[H, W, C]`` and ``clip``
      ``[T, H, W, C]``, uint8 or floating in [0, 1]; ``flow`` ``[T, H, W, 2]``,
      floating, or uint8 where 127.5 is no motion; ``waveform`` ``[T]``, floating or
      int16; ``logmel`` ``[T, F]``, natural logarithm of power, not yet standardised;
      ``sequence`` ``[T, C]`` and ``vector`` ``[D]``, floating.
    ids: int ``[n]``, stable sample ids ``>= 0``.
    kind: A key of `CORRUPTIONS`.
    name: One of ``CORRUPTIONS[kind]``.
    severity: 1 (mild) to 5.
    seed: Of all draws.
    lengths: int ``[n]``, valid steps of padded waveforms, log-mels or sequences; the
      padding stays as it is.
    sample_rate: In Hz; waveforms need it and nothing else takes it.
    center: ``[C]`` or ``[D]``, what a lost channel or feature becomes (the mean of the
      source training rows); by default the sample's own mean over time, of a vector 0.
    scale: ``[C]`` or ``[D]``, standard deviations of the source training rows; vectors
      need it, sequences take their own spread over time by default.

  Returns:
    A new array of the shape and dtype of ``x``; integers are rounded and clipped.

  Raises:
    ValueError: An unknown kind, name or severity, or an argument that does not fit;
      names it, its value and what is allowed.

  Example:
    >>> x = np.full((1, 8, 8, 1), 100, np.uint8)
    >>> same = corrupt(x, np.array([7]), kind="image", name="contrast", severity=5)
    >>> bool((same == x).all())  # An even surface has no contrast to lose.
    True
    >>> corrupt(x, np.array([7]), kind="image", name="wind", severity=1)
    Traceback (most recent call last):
      ...
    ValueError: name='wind' is no corruption of kind='image'; it is not one of (...).
  """
  function = _function(kind, name, severity)
  _check_samples(x, ids, kind, lengths)
  _check_options(x, kind, sample_rate, center, scale)
  values = _to_float(x, kind)
  out = values.copy()
  for i, sample_id in enumerate(np.asarray(ids).tolist()):
    source = zlib.crc32(f"{kind}/{name}".encode())
    draw = Draw(
      rng=np.random.default_rng([seed, source, sample_id]),
      severity=severity,
      sample_rate=sample_rate or 1.0,
      center=None if center is None else np.asarray(center, np.float64),
      scale=None if scale is None else np.asarray(scale, np.float64),
    )
    stop = values.shape[1] if lengths is None else int(lengths[i])
    if kind == "image":
      out[i] = function(values[i][None], draw)[0]
    elif stop:
      out[i, :stop] = function(values[i, :stop], draw)
  if kind in ("image", "clip"):
    out = np.clip(out, 0.0, 1.0)
  return _to_dtype(out, x.dtype, kind)


def _function(kind: str, name: str, severity: int) -> Callable:
  if kind not in _FUNCTIONS:
    raise ValueError(f"kind={kind!r} is not one of {tuple(_FUNCTIONS)}.")
  if name not in _FUNCTIONS[kind]:
    raise ValueError(
      f"name={name!r} is no corruption of kind={kind!r}; it is not one of "
      f"{CORRUPTIONS[kind]}."
    )
  if severity not in SEVERITIES:
    raise ValueError(f"severity={severity!r} is not one of {SEVERITIES}.")
  return _FUNCTIONS[kind][name]


def _check_samples(
  x: np.ndarray, ids: np.ndarray, kind: str, lengths: np.ndarray | None
) -> None:
  axes = _AXES[kind]
  shape = f"[n, {', '.join(axes)}]"
  if x.ndim != len(axes) + 1 or (axes[-1] == "2" and x.shape[-1] != 2):
    raise ValueError(f"x of kind={kind!r} must be {shape}, got {x.shape}.")
  if min(x.shape[1:]) < 1:
    raise ValueError(f"x must not be empty, got {x.shape}.")
  whole = {"image": "uint8", "clip": "uint8", "flow": "uint8", "waveform": "int16"}
  if not np.issubdtype(x.dtype, np.floating) and x.dtype != whole.get(kind):
    allowed = f"floating or {whole[kind]}" if kind in whole else "floating"
    raise ValueError(f"x of kind={kind!r} must be {allowed}, got {x.dtype}.")
  if kind in ("image", "clip") and x.dtype != np.uint8 and len(x):
    low, high = float(np.min(x)), float(np.max(x))
    if not (low >= 0 and high <= 1):  # NaN too.
      raise ValueError(
        f"x of kind={kind!r} must lie in [0, 1], got [{low:.4g}, {high:.4g}]."
      )
  ids = np.asarray(ids)
  if ids.shape != x.shape[:1] or not np.issubdtype(ids.dtype, np.integer):
    raise ValueError(f"ids must be integer [{len(x)}], got {ids.dtype} {ids.shape}.")
  if len(ids) and ids.min() < 0:
    raise ValueError(f"ids must be >= 0, got {ids.min()}.")
  if lengths is not None:
    if kind not in _PADDED:
      raise ValueError(f"lengths are of {_PADDED} only, not of kind={kind!r}.")
    lengths = np.asarray(lengths)
    fits = lengths.shape == x.shape[:1] and np.all(
      (lengths >= 0) & (lengths <= x.shape[1])
    )
    if not fits:
      raise ValueError(
        f"lengths must be [{len(x)}] in 0..{x.shape[1]}, got {lengths.tolist()}."
      )


def _check_options(
  x: np.ndarray,
  kind: str,
  sample_rate: float | None,
  center: np.ndarray | None,
  scale: np.ndarray | None,
) -> None:
  if (kind == "waveform") != (sample_rate is not None):
    raise ValueError(
      f"kind={kind!r} {'needs' if kind == 'waveform' else 'takes no'} sample_rate, got "
      f"{sample_rate!r}."
    )
  if sample_rate is not None and not sample_rate > 0:
    raise ValueError(f"sample_rate must be > 0, got {sample_rate!r}.")
  if kind == "vector" and scale is None:
    raise ValueError("kind='vector' needs scale: one vector has no spread of its own.")
  for option, value in (("center", center), ("scale", scale)):
    if value is not None:
      if kind not in ("vector", "sequence"):
        raise ValueError(f"kind={kind!r} takes no {option}.")
      if np.shape(value) != x.shape[-1:]:
        raise ValueError(
          f"{option} must have shape {x.shape[-1:]}, got {np.shape(value)}."
        )


def _to_float(x: np.ndarray, kind: str) -> np.ndarray:
  """float64 in the units of the corruptions."""
  values = x.astype(np.float64)
  if x.dtype == np.uint8:
    return values - _FLOW_ZERO if kind == "flow" else values / 255
  return values


def _to_dtype(x: np.ndarray, dtype: np.dtype, kind: str) -> np.ndarray:
  if dtype == np.uint8:
    x = x + _FLOW_ZERO if kind == "flow" else 255 * x
    return np.clip(np.round(x), 0, 255).astype(np.uint8)
  if dtype == np.int16:
    return np.clip(np.round(x), -32768, 32767).astype(np.int16)
  return x.astype(dtype)
