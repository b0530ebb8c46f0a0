"""What happens to inputs and presence masks before any parameter is used."""

from collections.abc import Mapping
import zlib

import jax
import jax.numpy as jnp

from mer_dg.networks import types


def prepare_input(
  spec: types.InputSpec,
  x: jax.Array,
  scaling: Mapping[str, jax.Array],
  present: jax.Array,
  *,
  clip: float,
) -> tuple[jax.Array, jax.Array | None]:
  """Casts, splits off the validity channel, scales, clips and zeroes missing rows.

  Args:
    spec: What ``x`` must look like; a sequence may have another length.
    x: ``[B, *spec.shape]``, any real dtype.
    scaling: ``center`` and ``inv_scale``, each ``[spec.channels]``.
    present: bool ``[B]``.
    clip: Largest magnitude of a scaled value.

  Returns:
    The scaled input, float32 without validity channel, and the mask ``[B, T]`` of valid
    steps (``None`` if ``spec`` is not masked).

  Raises:
    ValueError: If the shape of ``x`` does not fit.

  Example:
    >>> scaling = {"center": jnp.array([1.0]), "inv_scale": jnp.array([2.0])}
    >>> spec, present = types.InputSpec("vector", (1,)), jnp.array([True, False])
    >>> x, _ = prepare_input(spec, jnp.array([[4], [5]]), scaling, present, clip=3.0)
    >>> print(x.tolist())
    [[3.0], [0.0]]
  """
  free = 1 if spec.kind == "sequence" else 0
  if x.ndim != len(spec.shape) + 1 or x.shape[1 + free :] != spec.shape[free:]:
    raise ValueError(
      f"input of shape {x.shape} does not fit [B, *{spec.shape}] ({spec.kind})."
    )
  x = x.astype(jnp.float32)
  mask = None
  if spec.masked:
    x, mask = x[..., :-1], (x[..., -1] > 0.5) & present[:, None]
  shape = (1,) * (x.ndim - 1) + (-1,)
  center, inv_scale = (scaling[k].reshape(shape) for k in ("center", "inv_scale"))
  x = jnp.clip((x - center) * inv_scale, -clip, clip)
  # Zeroing the input, and not only the embedding, keeps NaN out of the backward pass.
  return jnp.where(present.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0), mask


def keep_modalities(key: jax.Array, present: jax.Array, *, rate: float) -> jax.Array:
  """Modality dropout: which present modalities stay in the fusion.

  Each present modality is dropped with probability ``rate``, independently; where that
  would drop all, one of them, uniformly at random, stays. Nothing is rescaled.

  Args:
    key: Typed key.
    present: bool ``[B, M]``.
    rate: Probability in [0, 1).

  Returns:
    bool ``[B, M]``, a subset of ``present``; empty only where ``present`` is.

  Example:
    >>> present = jnp.array([[True, False]])
    >>> print(keep_modalities(jax.random.key(0), present, rate=0.99))
    [[ True False]]
  """
  u = jnp.where(present, jax.random.uniform(key, present.shape), -1.0)
  # The largest u belongs to a uniformly random present modality.
  last = jax.nn.one_hot(jnp.argmax(u, axis=1), present.shape[1], dtype=bool)
  return present & ((u >= rate) | last)


def named_key(key: jax.Array, name: str) -> jax.Array:
  """The key for one named use; CRC-32, because ``hash`` of a str varies by process.

  Example:
    >>> a, b = (named_key(jax.random.key(0), name) for name in "ab")
    >>> bool(a == b)
    False
  """
  return jax.random.fold_in(key, zlib.crc32(name.encode()))
