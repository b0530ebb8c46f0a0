"""A plain network as pure functions: what terms own (translators, discriminators)."""

from collections.abc import Sequence
import itertools
from typing import Any

import jax
import jax.numpy as jnp


def init_mlp(key: jax.Array, widths: Sequence[int]) -> list[dict[str, jax.Array]]:
  """Parameters of linear layers of these widths, He-normal with zero biases.

  Args:
    key: Typed key.
    widths: Input, hidden, output.

  Example:
    >>> params = init_mlp(jax.random.key(0), (3, 8, 2))
    >>> mlp(params, jnp.ones((5, 3))).shape
    (5, 2)
  """
  pairs = list(itertools.pairwise(widths))
  keys = jax.random.split(key, len(pairs))
  return [
    {
      "kernel": jax.random.normal(k, (i, o)) * (2.0 / i) ** 0.5,
      "bias": jnp.zeros(o),
    }
    for k, (i, o) in zip(keys, pairs, strict=True)
  ]


def mlp(
  params: Sequence[Any],
  x: jax.Array,
  *,
  normalize: bool = False,
  dropout: float = 0.0,
  key: jax.Array | None = None,
) -> jax.Array:
  """Linear layers with ReLU between them, ``[B, widths[0]] -> [B, widths[-1]]``.

  Args:
    params: From `init_mlp`.
    x: Rows.
    normalize: Layer normalisation (without parameters) before every ReLU.
    dropout: Probability of zeroing an entry before the last layer; needs ``key``.
    key: Typed key.
  """
  for layer in params[:-1]:
    x = x @ layer["kernel"] + layer["bias"][None, :]
    x = jax.nn.relu(jax.nn.standardize(x, epsilon=1e-5) if normalize else x)
  if dropout and key is not None:
    x = jnp.where(jax.random.bernoulli(key, 1 - dropout, x.shape), x / (1 - dropout), 0)
  return x @ params[-1]["kernel"] + params[-1]["bias"][None, :]
