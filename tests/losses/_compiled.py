"""The functions of a module, each call one compiled program."""

import functools

import jax
import numpy as np


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
