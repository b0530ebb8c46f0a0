"""Slow, obvious versions of the estimators: the yardstick of the tests."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np


@contextlib.contextmanager
def float64():
  with jax.enable_x64(True):
    yield


def normal(seed, *shape, dtype=np.float64):
  return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def naive_log_density(q, r, weights, log_kernel, self_pairs=False):
  """log sum_j w_j K(q_i - r_j) / sum_j w_j by differences, one pair at a time."""
  diff = q[:, None, :] - r[None, :, :]
  w = jnp.broadcast_to(weights[None, :], diff.shape[:2])
  if self_pairs:
    w = w * (1 - jnp.eye(q.shape[0]))
  k = jnp.exp(log_kernel(diff))
  return jnp.log(jnp.sum(w * k, 1)) - jnp.log(jnp.sum(w, 1))


def grad_close(f, g, z, tol):
  a, b = jax.grad(f)(z), jax.grad(g)(z)
  np.testing.assert_allclose(a, b, atol=tol * max(1.0, float(jnp.abs(b).max())))
