"""Gradient reversal, for discriminators that features shall fool."""

from __future__ import annotations

import jax

from mer_dg.contracts import as_array
from mer_dg.losses import _rows


@jax.custom_jvp
def _reversed(x, scale):
  del scale
  return x


@_reversed.defjvp
def _reversed_jvp(primals, tangents):
  x, scale = primals
  return x, (-scale * tangents[0]).astype(x.dtype)


def gradient_reversal(x: jax.Array, scale: jax.typing.ArrayLike) -> jax.Array:
  """The identity, whose gradient is multiplied by ``-scale`` on the way back.

  A discriminator behind it learns to tell domains (or modalities) apart, while the
  encoder before it learns that they cannot be told apart.

  Args:
    x: Floating, any shape.
    scale: Scalar >= 0, static or traced (a schedule); it gets no gradient itself.

  Returns:
    ``x``, bit for bit.

  Raises:
    TypeError: If ``x`` is not floating.

  References:
    Ganin & Lempitsky, Unsupervised domain adaptation by backpropagation, 2015.

  Example:
    >>> print(jax.grad(lambda x: gradient_reversal(x, 0.5) ** 2)(3.0))  # -0.5 * 6
    -3.0
  """
  x = as_array("x", x)
  _rows.floating("x", x)
  return _reversed(x, scale)
