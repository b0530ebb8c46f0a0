"""What happens to an input before any parameter is used."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mer_dg.contracts import InputSpec

RANGED = ("vector", "sequence")  # Kinds whose numbers have no range of their own.
TRANSFORMS = ("none", "asinh", "range")


def prepare_input(
  spec: InputSpec,
  x: jax.Array,
  scaling: Mapping[str, jax.Array],
  present: jax.Array,
  *,
  clip: float,
  transform: str = "none",
) -> tuple[jax.Array, jax.Array | None]:
  """Casts, splits off the validity channel, scales, clips and zeroes missing rows.

  Args:
    spec: What ``x`` must look like; a sequence may have another length.
    x: ``[B, *spec.shape]``, any real dtype.
    scaling: ``center`` and ``inv_scale``, each ``[spec.channels]``; with ``range`` also
      ``low`` and ``high``, in units of the input.
    present: bool ``[B]``.
    clip: Largest magnitude of a scaled value.
    transform: For vectors and sequences. ``range``: every channel is clipped to
      ``[low, high]``, so that no network extrapolates where a new domain leaves the
      sources. ``asinh`` of scaled values: about the value up to 1, its logarithm far
      above; heavy tails keep their order, not their weight. ``none``.

  Returns:
    The scaled input, float32 without validity channel, and the mask ``[B, T]`` of valid
    steps (``None`` if ``spec`` is not masked).

  Raises:
    ValueError: If the shape of ``x`` does not fit.

  Example:
    >>> scaling = {"center": jnp.array([1.0]), "inv_scale": jnp.array([2.0])}
    >>> spec, present = InputSpec("vector", (1,)), jnp.array([True, False])
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
  if transform == "range" and spec.kind in RANGED:
    x = jnp.clip(x, *(scaling[k].reshape(shape) for k in ("low", "high")))
  x = (x - center) * inv_scale
  if transform == "asinh" and spec.kind in RANGED:
    x = jnp.arcsinh(x)
  x = jnp.clip(x, -clip, clip)
  # Zeroing the input, and not only the embedding, keeps NaN out of the backward pass.
  return jnp.where(present.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0), mask
