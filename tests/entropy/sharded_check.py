"""Run in its own process with 8 host devices; prints one line per check.

Not collected by pytest: test_sharded.py starts it under a hard time limit, because a
collective that waits for a missing member would hang the whole test run.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from mer_dg import entropy

jax.config.update("jax_enable_x64", True)
N, D = 64, 6


def check(name, got, want, tol=1e-10):
  error = max(
    float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
  )
  print(f"{'ok' if error < tol else 'FAIL'} {name} {error:.2e}", flush=True)


def main():
  assert jax.device_count() == 8
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  z = jax.random.normal(jax.random.key(0), (N, D), dtype=jnp.float64)
  where = jnp.arange(N) % 5 != 0
  sharded = lambda x: jax.device_put(x, NamedSharding(mesh, P("data")))

  # 1. jit over sharded rows: the compiler splits the work, nothing to write.
  cases = {
    "kde": entropy.kde_entropy,
    "kde_tiled": lambda z, where: entropy.kde_entropy(z, where=where, block_size=16),
    "kde_vmf": lambda z, where: entropy.kde_entropy(
      z, where=where, kernel="vmf", bandwidth=0.5
    ),
    "bounds": lambda z, where: sum(
      entropy.mixture_entropy_bounds(z, where=where, bandwidth=1.0)
    ),
    "gaussian": entropy.gaussian_entropy,
    "knn": entropy.knn_entropy,
    "renyi": entropy.renyi_entropy,
    "marginal": entropy.marginal_entropy,
    "mer": entropy.mer_loss,
    "von_neumann": entropy.von_neumann_entropy,
  }
  for name, f in cases.items():
    both = jax.jit(jax.value_and_grad(lambda z, w, f=f: f(z, where=w)))
    check(f"jit {name}", both(sharded(z), sharded(where)), both(z, where))

  # 2. shard_map with axis_name: value on every shard and gradient of the local rows.
  def local(f):
    def loss(z, w):
      return jax.shard_map(
        f, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P()
      )(z, w)

    return jax.jit(jax.value_and_grad(loss))

  for block_size in (None, 3):
    for kernel in ("gaussian", "student-t"):
      options = dict(kernel=kernel, block_size=block_size)
      f = lambda z, w, o=options: entropy.kde_entropy(z, where=w, axis_name="data", **o)
      want = jax.value_and_grad(
        lambda z, o=options: entropy.kde_entropy(z, where=where, **o)
      )(z)
      check(f"shard_map kde {options}", local(f)(sharded(z), sharded(where)), want)

  for estimator in ("kde", "logdet", "gaussian", "knn", "marginal", "renyi"):
    f = lambda z, w, e=estimator: entropy.entropy_regularizer(
      {"a": z}, estimator=e, where=w, axis_name="data"
    )[0]
    want = jax.value_and_grad(
      lambda z, e=estimator: entropy.entropy_regularizer(
        {"a": z}, estimator=e, where=where
      )[0]
    )(z)
    check(f"shard_map {estimator}", local(f)(sharded(z), sharded(where)), want)

  # 3. Gradient inside shard_map (the data-parallel idiom: mean of the loss inside).
  def inner(z, w):
    loss = lambda z: entropy.kde_entropy(z, where=w, axis_name="data")
    return jax.grad(loss)(z)

  got = jax.jit(
    jax.shard_map(
      inner, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P("data")
    )
  )(sharded(z), sharded(where))
  want = jax.grad(lambda z: entropy.kde_entropy(z, where=where))(z)
  check("grad inside shard_map", got, want)


if __name__ == "__main__":
  main()
