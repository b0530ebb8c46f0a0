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

from mer_dg import entropy

jax.config.update("jax_enable_x64", True)
N, D = 64, 6

KDE = {  # with axis_name: rows are gathered, pairs are split
  "kde": {},
  "kde tiled": {"block_size": 3},
  "kde student-t": {"kernel": "student-t"},
  "kde student-t tiled": {"kernel": "student-t", "block_size": 3},
  "kde vmf": {"kernel": "vmf", "bandwidth": 0.5},
}
OTHERS = {  # of gathered rows, on every member
  "bounds": lambda z, where: sum(
    entropy.mixture_entropy_bounds(z, where=where, bandwidth=1.0)
  ),
  "log_density": lambda z, where: jnp.mean(
    entropy.kde_log_density(z, z, where=where, bandwidth=1.0)
  ),
  "gaussian": entropy.gaussian_entropy,
  "knn": entropy.knn_entropy,
  "renyi": entropy.renyi_entropy,
  "renyi matrix": lambda z, where: entropy.renyi_entropy(
    z, where=where, form="matrix", alpha=1.5
  ),
  "marginal": entropy.marginal_entropy,
  "marginal isj": lambda z, where: entropy.marginal_entropy(
    z, where=where, estimator="kde", bandwidth="isj"
  ),
  "spectral loss": entropy.spectral_entropy_loss,
  "marginal loss": entropy.marginal_entropy_loss,
  "mer": entropy.mer_loss,
  "logdet": entropy.logdet_entropy,
  "effective_rank": entropy.effective_rank,
  "von_neumann": entropy.von_neumann_entropy,
}
REGULARIZERS = ("kde", "logdet", "gaussian")


def global_kde(options):
  return lambda z, where: entropy.kde_entropy(z, where=where, **options)


def local_kde(options):
  return lambda z, where: entropy.kde_entropy(
    z, where=where, axis_name="data", **options
  )


def local(f):
  def value(z, where):
    z, where = entropy.gather_rows(z, where, axis_name="data")
    return jax.lax.pmean(f(z, where=where), "data")

  return value


def regularizer(estimator, axis_name=None):
  return lambda z, where: entropy.entropy_regularizer(
    {"a": z}, estimator=estimator, where=where, axis_name=axis_name
  )[0]


GLOBAL = {
  **{name: global_kde(options) for name, options in KDE.items()},
  **{name: lambda z, w, f=f: f(z, where=w) for name, f in OTHERS.items()},
  **{f"regularizer {e}": regularizer(e) for e in REGULARIZERS},
}
LOCAL = {
  **{name: local_kde(options) for name, options in KDE.items()},
  **{name: local(f) for name, f in OTHERS.items()},
  **{f"regularizer {e}": regularizer(e, "data") for e in REGULARIZERS},
}


def everything(functions):
  """One program: ``{name: (value, gradient)}``."""
  both = {name: jax.value_and_grad(f) for name, f in functions.items()}
  return jax.jit(lambda z, where: {name: f(z, where) for name, f in both.items()})


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
  split = lambda x: jax.device_put(x, NamedSharding(mesh, P("data")))
  want = everything(GLOBAL)(z, where)

  # 1. jit over sharded rows: the compiler splits the work, nothing to write.
  got = everything(GLOBAL)(split(z), split(where))
  for name in GLOBAL:
    check(f"jit {name}", got[name], want[name])

  # 2. shard_map: the same value on every shard, gradient from outside ...
  spec = (P("data"), P("data"))
  outside = {
    name: jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=P())
    for name, f in LOCAL.items()
  }
  got = everything(outside)(split(z), split(where))
  for name in LOCAL:
    check(f"shard_map {name}", got[name], want[name])

  # 3. ... and from inside (the data-parallel idiom), of the local rows.
  grads = lambda z, w: {n: jax.grad(f)(z, w) for n, f in LOCAL.items()}
  inside = jax.shard_map(grads, mesh=mesh, in_specs=spec, out_specs=P("data"))
  got = jax.jit(inside)(split(z), split(where))
  for name in LOCAL:
    check(f"inside {name}", got[name], want[name][1])


if __name__ == "__main__":
  main()
