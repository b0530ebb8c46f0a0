"""Slow, obvious versions of the estimators, and a way to call ours compiled."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np


@contextlib.contextmanager
def float64():
  """Float64, compiled quickly rather than well: formulas do not mind."""
  name = "jax_disable_most_optimizations"
  before = jax.config.read(name)
  jax.config.update(name, True)
  try:
    with jax.enable_x64(True):
      yield
  finally:
    jax.config.update(name, before)


def normal(seed, *shape, dtype=np.float64):
  return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


class Compiled:
  """The functions of a module, each call compiled as one program.

  Arrays are traced, everything else is static. Operation by operation, one gradient
  compiles dozens of tiny programs, which is most of the time of a test.
  """

  def __init__(self, module):
    self._module = module

  def __getattr__(self, name):
    fn = getattr(self._module, name)

    def call(*args, **kw):
      leaves, tree = jax.tree.flatten((args, kw), is_leaf=lambda x: x is None)
      traced = tuple(isinstance(x, (np.ndarray, jax.Array)) for x in leaves)
      static = tuple(
        None if t else (type(x), x) for t, x in zip(traced, leaves, strict=True)
      )
      arrays = [x for t, x in zip(traced, leaves, strict=True) if t]
      return _compiled(fn, tree, static)(*arrays)

    return call


@functools.cache
def _compiled(fn, tree, static):
  @jax.jit
  def run(*arrays):
    arrays = iter(arrays)
    leaves = [next(arrays) if s is None else s[1] for s in static]
    args, kw = jax.tree.unflatten(tree, leaves)
    return fn(*args, **kw)

  return run


def naive_log_density(q, r, weights, log_kernel, self_pairs=False):
  """log sum_j w_j K(q_i - r_j) / sum_j w_j by differences, one pair at a time."""
  diff = q[:, None, :] - r[None, :, :]
  w = jnp.broadcast_to(weights[None, :], diff.shape[:2])
  if self_pairs:
    w = w * (1 - jnp.eye(q.shape[0]))
  k = jnp.exp(log_kernel(diff))
  return jnp.log(jnp.sum(w * k, 1)) - jnp.log(jnp.sum(w, 1))
