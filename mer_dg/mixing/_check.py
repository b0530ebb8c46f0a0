"""Argument checks of this room; all of them run at trace time."""

from collections.abc import Mapping, Sequence

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from mer_dg.contracts import as_array


def concrete(x) -> bool:
  """True if the values of ``x`` can be read now (not while JAX is tracing)."""
  return x is not None and not isinstance(x, jax.core.Tracer)


def one_of(name: str, value, allowed: Sequence[str]) -> None:
  if value not in allowed:
    raise ValueError(f"{name}={value!r} is not one of {tuple(allowed)}.")


def batch_size(name: str, arrays: Mapping[str, jax.Array]) -> int:
  """The common leading size of a ``{modality: array}`` dict."""
  if not isinstance(arrays, Mapping):
    raise TypeError(f"{name} must map modality names to arrays, got {type(arrays)}.")
  if not arrays:
    raise ValueError(f"{name} is empty; at least one modality is needed.")
  sizes = {}
  for m, x in arrays.items():
    if jnp.ndim(x) < 1:
      raise ValueError(f"{name}[{m!r}] has no batch axis, shape {jnp.shape(x)}.")
    sizes[m] = jnp.shape(x)[0]
  if len(set(sizes.values())) > 1:
    raise ValueError(f"{name} has unequal batch sizes {sizes}.")
  return next(iter(sizes.values()))


def vector(name: str, x, size: int) -> jax.Array:
  x = jnp.asarray(x)
  if x.shape != (size,):
    raise ValueError(f"{name} must have shape ({size},), got {x.shape}.")
  return x


def mask(name: str, x, size: int) -> jax.Array:
  x = vector(name, x, size)
  if x.dtype != jnp.bool_:
    raise TypeError(f"{name} must be boolean, got {x.dtype}.")
  return x


def same_modalities(name: str, given: Mapping, expected: Mapping) -> None:
  if not isinstance(given, Mapping):
    raise TypeError(
      f"{name} must map modality names to values (a bare array would depend on the "
      f"order of a dict), got {type(given)}."
    )
  if set(given) != set(expected):
    raise ValueError(
      f"{name} has modalities {sorted(given)}, expected {sorted(expected)}."
    )


def class_labels(labels, size: int, num_classes: int) -> jax.Array:
  """Labels in ``[0, num_classes)`` as int32, or an error naming the first bad row."""
  if isinstance(num_classes, bool) or not isinstance(num_classes, int | np.integer):
    raise TypeError(f"num_classes must be an integer or None, got {num_classes!r}.")
  if num_classes < 1:
    raise ValueError(f"num_classes must be >= 1, got {num_classes}.")
  values = np.asarray(labels) if concrete(labels) else None
  labels = vector("labels", labels, size)
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise TypeError(
      f"labels must be integers, got {labels.dtype}; for a regression target pass "
      "num_classes=None."
    )
  if values is not None:
    bad = np.flatnonzero((values < 0) | (values >= num_classes))
    if bad.size:
      raise ValueError(
        f"labels[{bad[0]}]={values[bad[0]]} is outside [0, {num_classes})."
      )
  return labels.astype(jnp.int32)


def at_least(name: str, value, bound: float, *, strict: bool = False) -> None:
  """Checks a numeric hyperparameter if its value is known while tracing."""
  # NumPy, because jnp operations on known values are staged under jit.
  if concrete(value):
    low = np.asarray(value) <= bound if strict else np.asarray(value) < bound
    if low.any():
      raise ValueError(f"{name}={value!r} must be {'>' if strict else '>='} {bound}.")


def targets(labels, size: int) -> jax.Array:
  """Floating regression targets, ``[size]``."""
  labels = vector("labels", labels, size)
  if not jnp.issubdtype(labels.dtype, jnp.floating):
    raise TypeError(
      f"labels must be floating when num_classes is None, got {labels.dtype}."
    )
  return labels


def at_least_float32(name: str, x) -> jax.Array:
  """Losses are summed in float32, or float64 where the caller works in it."""
  x = as_array(name, x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
