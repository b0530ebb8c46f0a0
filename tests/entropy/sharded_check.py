"""Run in its own process with 8 host devices; prints one line per check.

Not collected by pytest: test_sharded.py starts it under a hard time limit, because a
collective that waits for a missing member would hang the whole test run. Estimators
share programs: compiling each by itself takes ten times as long.
"""

import os

# What is checked is who computes what: code that is quick to compile does.
os.environ["XLA_FLAGS"] = (
  "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  " --xla_llvm_disable_expensive_passes=true"
)

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from mer_dg.entropy import tiles
from tests.entropy._helpers import ALL

jax.config.update("jax_enable_x64", True)
N, D = 64, 6
tiles.TILE = 16
NAMES = ("kde", "kde_tiled", "vmf_median", "gaussian", "knn", "spacing", "mer")


def everything(z, where):
  """One program: ``{name: (value, gradient)}``."""
  return {n: jax.value_and_grad(ALL[n])(z, where=where) for n in NAMES}


def check(kind, got, want, tol=1e-10):
  for name in NAMES:
    error = max(
      float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
      for a, b in zip(
        jax.tree.leaves(got[name]), jax.tree.leaves(want[name]), strict=True
      )
    )
    print(f"{'ok' if error < tol else 'FAIL'} {kind} {name} {error:.2e}", flush=True)


def main():
  assert jax.device_count() == 8
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  z = jax.random.normal(jax.random.key(0), (8, N, D), dtype=jnp.float64)
  where = jnp.arange(N)[None, :] % jnp.arange(2, 10)[:, None] != 0
  split = lambda x: jax.device_put(x, NamedSharding(mesh, P("data")))
  want = jax.jit(jax.vmap(everything))(z, where)

  # 1. Rows of one batch over the devices: the compiler splits the work.
  got = jax.jit(everything)(split(z[3]), split(where[3]))
  check("rows", got, jax.tree.map(lambda x: x[3], want))

  # 2. Runs over the devices, as training does: each computes its own.
  runs = jax.shard_map(
    jax.vmap(everything), mesh=mesh, in_specs=P("data"), out_specs=P("data")
  )
  check("runs", jax.jit(runs)(split(z), split(where)), want)


if __name__ == "__main__":
  main()
