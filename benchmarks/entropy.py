r"""Speed, memory and agreement of ``mer_dg.entropy`` beside its peers.

  python benchmarks/entropy.py                      # everything, about five minutes
  python benchmarks/entropy.py --only=floor,small   # floor, torch, memory, small, peers
  python benchmarks/entropy.py --n=4096 --d=64

Contenders take turns within one run; the columns to read are the ratios. On a shared
machine the ratio of CPU times (summed over threads) is steadier than of wall times.
A peer that is not installed is named as such and skipped.

Work counted, per value and gradient of ``kde_entropy`` (Gaussian, n rows of length d,
float32), for a roofline on any device:

* floor: three n x n x d products, ``6 n^2 d`` flops (kernel forward and backward,
  weights times samples once);
* ours: forward ``2 n^2 d``; backward each unordered pair of blocks once: ``n^2 d``
  for the kernel and ``2 n^2 d`` for both directions of the product; 5 n^2 d in all
  (plus the diagonal blocks), and about 2 n^2 exponentials;
* bytes that must move: ``4 n d`` in and out per pass. With tiles of b rows the samples
  are read n / b times: ``4 n^2 d / b`` bytes per product, an intensity of b / 2 flops
  per byte, so it is bound by compute, not memory, wherever b is a few hundred.
"""

from __future__ import annotations

import argparse
import importlib
import os

# BLAS threads fight with XLA's own: small factorisations get 25 times slower.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from _timing import interleaved, print_table
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mer_dg import entropy

HIGHEST = lax.Precision.HIGHEST


def floor_products(z, block=1024):
  """Three tiled n x n x d products and nothing else; results overwrite one tile."""
  n, d = z.shape
  block = min(block, n)
  m = n // block
  rows = lambda i: lax.dynamic_slice_in_dim(z, i * block, block)

  def kernel_product(k, tile):
    del tile
    k = k % (m * m)
    return jnp.matmul(rows(k // m), rows(k % m).T, precision=HIGHEST)

  tile = lax.fori_loop(0, 2 * m * m, kernel_product, jnp.zeros((block, block), z.dtype))

  def weight_product(k, out):
    i, j = k // m, k % m
    update = jnp.matmul(tile, rows(j), precision=HIGHEST)
    old = lax.dynamic_slice_in_dim(out, i * block, block)
    return lax.dynamic_update_slice_in_dim(out, old + update, i * block, 0)

  return lax.fori_loop(0, m * m, weight_product, jnp.zeros_like(z))


def blocking(f, *args):
  f = jax.jit(f)
  return lambda: jax.block_until_ready(f(*args))


def optional(name):
  try:
    return importlib.import_module(name)
  except ImportError:
    print(f"  {name}: not installed")
    return None


def torch_dense(torch, x, h):
  """Dense logsumexp autograd, leave-one-out, the usual way to write it."""
  n, d = x.shape
  z = torch.tensor(x, requires_grad=True)

  def call():
    z.grad = None
    log_k = -(torch.cdist(z, z, compute_mode="use_mm_for_euclid_dist") ** 2) / (
      2 * h * h
    )
    log_k = log_k.masked_fill(torch.eye(n, dtype=torch.bool), -torch.inf)
    log_p = torch.logsumexp(log_k, dim=1) - np.log(n - 1)
    value = -log_p.mean() + 0.5 * d * np.log(2 * np.pi * h * h)
    value.backward()
    return value.item()

  return call


def torch_squares(torch, x, h, compiled=False):
  """The same without the square root of cdist (fairer: fewer passes over n x n)."""
  n, d = x.shape
  z = torch.tensor(x, requires_grad=True)
  eye = torch.eye(n, dtype=torch.bool)

  def value_of(z):
    norm = (z * z).sum(1)
    log_k = (2 * (z @ z.T) - norm[:, None] - norm[None, :]) / (2 * h * h)
    log_p = torch.logsumexp(log_k.masked_fill(eye, -torch.inf), dim=1) - np.log(n - 1)
    return -log_p.mean() + 0.5 * d * np.log(2 * np.pi * h * h)

  f = torch.compile(value_of) if compiled else value_of

  def call():
    z.grad = None
    value = f(z)
    value.backward()
    return value.item()

  return call


def keops(torch, x, h):
  """KeOps: never stores n x n, autograd by further symbolic reductions."""
  from pykeops.torch import LazyTensor

  n, d = x.shape
  z = torch.tensor(x, requires_grad=True)

  def call():
    z.grad = None
    zi, zj = LazyTensor(z[:, None, :]), LazyTensor(z[None, :, :])
    log_k = -((zi - zj) ** 2).sum(-1) / (2 * h * h)
    # Self-pairs are pushed out of reach; subtracting their weight would cancel.
    row = torch.arange(n, dtype=z.dtype)
    apart = LazyTensor(row[:, None, None]) - LazyTensor(row[None, :, None])
    log_k = log_k - 1e30 * (0.5 - apart.abs()).step()
    log_p = log_k.logsumexp(dim=1).squeeze(-1) - np.log(n - 1)
    value = -log_p.mean() + 0.5 * d * np.log(2 * np.pi * h * h)
    value.backward()
    return value.item()

  return call


def run_floor(n, d):
  print(f"\n# kde_entropy value + gradient against its floor, n={n}, d={d}, float32")
  z = jax.random.normal(jax.random.key(0), (n, d))
  rows = interleaved(
    {
      "floor: three tiled products": blocking(floor_products, z),
      "kde_entropy, value": blocking(entropy.kde_entropy, z),
      "kde_entropy, value + gradient": blocking(
        jax.value_and_grad(entropy.kde_entropy), z
      ),
    }
  )
  print_table(rows, "floor: three tiled products")
  ours = rows["kde_entropy, value + gradient"]["wall_ms"] * 1e-3
  print(
    f"  {5 * n * n * d / ours / 1e9:.0f} Gflop/s over the 5 n^2 d flops counted above"
  )


def run_dense(n, d, *, with_keops=False):
  """Value + gradient beside other frameworks at one fixed bandwidth."""
  h = 1.0
  print(
    f"\n# kde_entropy value + gradient beside other frameworks, n={n}, d={d}, h={h}"
  )
  z = jax.random.normal(jax.random.key(0), (n, d))
  x = np.asarray(z)
  ours = lambda z: entropy.kde_entropy(z, bandwidth=h)
  calls = {"mer_dg.kde_entropy": blocking(jax.value_and_grad(ours), z)}
  torch = optional("torch")
  if torch is not None:
    calls["torch, cdist + logsumexp"] = torch_dense(torch, x, h)
    calls["torch, squares + logsumexp"] = torch_squares(torch, x, h)
    calls["torch.compile, squares"] = torch_squares(torch, x, h, compiled=True)
  if with_keops and torch is not None and optional("pykeops") is not None:
    calls["KeOps"] = keops(torch, x, h)
  values = {}
  for name in list(calls):
    try:
      out = calls[name]()
      values[name] = f"value {float(out[0] if isinstance(out, tuple) else out):.5f}"
    except Exception as error:  # a compiler may be missing at run time
      print(f"  {name}: does not run here: {type(error).__name__}: {error}"[:200])
      del calls[name]
  print_table(interleaved(calls, rounds=3), "mer_dg.kde_entropy", extra=values)


def run_torch(n, d):
  run_dense(n, d)
  # KeOps sums over coordinates in its inner loop, which suits small d: minutes per call
  # at the size above on two cores, hence a smaller table of its own.
  run_dense(min(n, 1024), d, with_keops=True)
  run_dense(min(n, 4096), 3, with_keops=True)


def run_memory(d):
  n = 65536
  print(f"\n# memory of kde_entropy value + gradient, n={n}, d={d}, float32")
  shape = jax.ShapeDtypeStruct((n, d), jnp.float32)
  compiled = jax.jit(jax.value_and_grad(entropy.kde_entropy)).lower(shape).compile()
  analysis = compiled.memory_analysis()
  temporary, output = analysis.temp_size_in_bytes, analysis.output_size_in_bytes
  print(f"  temporaries {temporary / 1e6:.0f} MB + output {output / 1e6:.0f} MB")
  print(f"  n x n float32 would be {4 * n * n / 1e6:.0f} MB")


def run_small(d):
  print(f"\n# microseconds added per modality and step, d={d}, scanned inside one jit")
  estimators = {
    "kde on the sphere": {"normalize": "unit"},
    "kde": {},
    "kde, h fixed": {"bandwidth": 1.0},
    "logdet": {},
    "gaussian": {},
    "knn": {},
    "renyi": {},
    "marginal": {},
  }
  steps = 50
  sizes = (16, 48, 128, 256, 512, 1024)

  dot = lambda a, b: jnp.matmul(a, b, precision=HIGHEST)
  products = {  # What a gradient needs at least: the Gram matrix, and weights times z.
    "two products": lambda z: dot(dot(z, z.T), z),
    "three products": lambda z: z + dot(dot(dot(z, z.T), z), z.T)[:, :1],
  }

  def loop(name, n, options):
    z = jax.random.normal(jax.random.key(0), (n, d))
    loss = lambda z: entropy.entropy_regularizer(
      {"a": z},
      **{"estimator": name.split()[0].strip(","), "normalize": "none"} | options,
    )[0]
    update = products[name] if name in products else jax.grad(loss)

    def run(z):
      step = lambda z, _: (z - 1e-9 * update(z), None)
      return lax.scan(step, z, None, length=steps)[0]

    return blocking(run, z)

  print(f"| {'':16s} | " + " | ".join(f"n={n} wall/cpu" for n in sizes) + " |")
  print("|---" + "|---:" * len(sizes) + "|")
  for name, options in {**{key: {} for key in products}, **estimators}.items():
    calls = {str(n): loop(name, n, options) for n in sizes}
    rows = interleaved(calls)
    cells = [
      f"{1e3 * rows[str(n)]['wall_ms'] / steps:8.0f}/"
      f"{1e3 * rows[str(n)]['cpu_ms'] / steps:.0f}"
      for n in sizes
    ]
    print(f"| {name:16s} | " + " | ".join(cell.strip() for cell in cells) + " |")


def run_peers():
  """Value only, n = 2000, d = 1 and 3: what peers compute, and whether it is ours."""
  run_peers_in(1)
  run_peers_in(3)


def run_peers_in(d):
  n, h = 2000, 0.5
  print(f"\n# values and times of peers, n={n}, d={d}, h={h}, float32 for ours")
  x = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
  z = jnp.asarray(x)
  kde = blocking(lambda z: entropy.kde_entropy(z, bandwidth=h, leave_one_out=False), z)
  calls = {
    "mer_dg.kde_entropy (self-pairs kept)": kde,
    "mer_dg.knn_entropy k=4": blocking(lambda z: entropy.knn_entropy(z, k=4), z),
    "mer_dg.marginal_entropy (spacing)": blocking(entropy.marginal_entropy, z),
  }
  lower = lambda z: entropy.mixture_entropy_bounds(z, bandwidth=h)[0]
  calls["mer_dg.mixture_entropy_bounds lower"] = blocking(lower, z)
  if d == 1:  # scipy and jax.scipy scale the kernel by the covariance
    factor = h / float(np.std(x, ddof=1))
    scipy_stats = optional("scipy.stats")
    if scipy_stats is not None:
      calls["scipy gaussian_kde"] = lambda: (
        -np.mean(scipy_stats.gaussian_kde(x.T, bw_method=factor).logpdf(x.T))
      )
      calls["scipy differential_entropy (ebrahimi)"] = lambda: np.sum(
        scipy_stats.differential_entropy(x, method="ebrahimi")
      )
    from jax.scipy.stats import gaussian_kde

    calls["jax.scipy gaussian_kde"] = blocking(
      lambda z: -jnp.mean(gaussian_kde(z.T, bw_method=factor).logpdf(z.T)), z
    )
  if optional("sklearn") is not None:
    from sklearn.neighbors import KernelDensity, NearestNeighbors

    exact = KernelDensity(bandwidth=h, rtol=0, atol=0)
    calls["sklearn KernelDensity"] = lambda: -np.mean(exact.fit(x).score_samples(x))

    def npeet_style():
      from scipy.special import digamma, gammaln

      eps = NearestNeighbors(n_neighbors=5).fit(x).kneighbors(x)[0][:, 4]
      log_ball = 0.5 * d * np.log(np.pi) - gammaln(d / 2 + 1)
      return digamma(n) - digamma(4) + log_ball + d * np.mean(np.log(eps))

    calls["sklearn kNN, NPEET style, k=4"] = npeet_style
  infomeasure = optional("infomeasure")
  if infomeasure is not None:
    common = dict(base="e")
    calls["infomeasure metric k=4"] = lambda: infomeasure.entropy(
      x.astype(float), approach="metric", k=4, noise_level=0, minkowski_p=2, **common
    )
    calls["infomeasure kernel (gaussian)"] = lambda: infomeasure.entropy(
      x.astype(float), approach="kernel", kernel="gaussian", bandwidth=h, **common
    )
  mixentropy = optional("mixentropy")
  if mixentropy is not None:
    names = [name for name in dir(mixentropy) if not name.startswith("_")]
    print(f"  mixentropy: public names {names}")
  values = {}
  for name in list(calls):
    try:
      values[name] = f"value {float(np.squeeze(calls[name]())):.6f}"
    except Exception as error:
      print(f"  {name}: {type(error).__name__}: {error}"[:160])
      del calls[name]
  print_table(
    interleaved(calls, rounds=3), "mer_dg.kde_entropy (self-pairs kept)", extra=values
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--n", type=int, default=8192)
  parser.add_argument("--d", type=int, default=128)
  parser.add_argument("--only", default="floor,torch,memory,small,peers")
  args = parser.parse_args()
  device = jax.devices()[0]
  print(f"device: {device.platform} {device.device_kind}, {os.cpu_count()} host cores")
  parts = args.only.split(",")
  if "floor" in parts:
    run_floor(args.n, args.d)
  if "torch" in parts:
    run_torch(args.n, args.d)
  if "memory" in parts:
    run_memory(args.d)
  if "small" in parts:
    run_small(args.d)
  if "peers" in parts:
    run_peers()


if __name__ == "__main__":
  main()
