"""Figures of docs/entropy.md: bias and spread against n and d; what maximising does.

  python studies/entropy_figures.py --out=docs/figures     # about five minutes

Seeds are fixed; the numbers behind the first figure are printed as a table.
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib
import tempfile

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
from jax import lax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from mer_dg import entropy

ESTIMATORS = {
  "kde (scott)": entropy.kde_entropy,
  "kde (median)": lambda z: entropy.kde_entropy(z, bandwidth="median"),
  "knn (k=3)": entropy.knn_entropy,
  "renyi 2 (scott)": entropy.renyi_entropy,
  "mixture lower": lambda z: entropy.mixture_entropy_bounds(z, bandwidth="scott")[0],
  "marginal (spacing)": entropy.marginal_entropy,
  "gaussian": entropy.gaussian_entropy,
  "gaussian, shrinkage .1": lambda z: entropy.gaussian_entropy(z, shrinkage=0.1),
  "logdet": entropy.logdet_entropy,
}
TRUTH = 0.5 * math.log(2 * math.pi * math.e)  # per dimension, N(0, 1)
TRUTH_RENYI = 0.5 * math.log(4 * math.pi)  # Renyi-2 of N(0, 1)


def save(figure, path: pathlib.Path) -> None:
  """Writes next to the target and renames, so that no half-written file remains."""
  with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".png", delete=False) as f:
    figure.savefig(f, dpi=110, bbox_inches="tight", format="png")
  os.chmod(f.name, 0o644)
  os.replace(f.name, path)
  plt.close(figure)
  print(f"wrote {path}")


def bias_and_spread(repeats: int = 20):
  """Mean error and standard deviation per dimension, in nats, on N(0, I)."""
  sizes, dimensions = (16, 64, 256, 1024), (2, 16, 128)
  table = {}
  for d in dimensions:
    for n in sizes:
      z = jax.random.normal(jax.random.key(n + d), (repeats, n, d))
      for name, f in ESTIMATORS.items():
        if n == 1024 and d == 128 and name.startswith("marginal"):
          repeats_here = z[:5]  # sorting dominates; five draws show the bias
        else:
          repeats_here = z
        truth = TRUTH_RENYI if name.startswith("renyi") else TRUTH
        error = np.asarray(jax.jit(lambda z, f=f: lax.map(f, z))(repeats_here)) / d
        table[name, d, n] = (error.mean() - truth, error.std(ddof=1))
  return sizes, dimensions, table


def figure_bias(out: pathlib.Path) -> None:
  sizes, dimensions, table = bias_and_spread()
  print(
    f"{'nats per dimension: bias +- sd':26s} d    "
    + "  ".join(f"{f'n={n}':>14s}" for n in sizes)
  )
  for name in ESTIMATORS:
    for d in dimensions:
      cells = [table[name, d, n] for n in sizes]
      print(
        f"{name:26s} {d:<4d} " + "  ".join(f"{b:+7.3f}+-{s:5.3f}" for b, s in cells)
      )
  figure, axes = plt.subplots(1, len(dimensions), figsize=(13, 4), sharey=True)
  for axis, d in zip(axes, dimensions, strict=True):
    for name in ESTIMATORS:
      bias, spread = np.array([table[name, d, n] for n in sizes]).T
      finite = np.isfinite(bias)
      axis.errorbar(
        np.array(sizes)[finite],
        bias[finite],
        spread[finite],
        marker="o",
        label=name,
        capsize=2,
        linewidth=1,
      )
    axis.axhline(0, color="black", linewidth=0.5)
    axis.set(xscale="log", xlabel="rows n", title=f"d = {d}", ylim=(-3, 1.5))
  axes[0].set_ylabel("bias per dimension (nats), bars: one s.d.")
  axes[-1].legend(fontsize=7)
  save(figure, out / "entropy_bias.png")


def figure_maximising(out: pathlib.Path, steps: int = 300) -> None:
  """Gradient ascent of each estimator on one cloud, variance held by projection."""
  rng = np.random.default_rng(0)
  clusters = np.concatenate(
    [
      rng.normal((0, 0), 0.25, (60, 2)),
      rng.normal((2, 0.5), 0.1, (30, 2)),
      rng.normal((-1, 1.5), (0.6, 0.05), (30, 2)),
    ]
  )
  start = jnp.asarray(clusters - clusters.mean(0), jnp.float32)
  radius = jnp.sqrt(jnp.mean(jnp.sum(start**2, 1)))
  objectives = {
    "kde (scott)": entropy.kde_entropy,
    "kde (h = 0.3)": lambda z: entropy.kde_entropy(z, bandwidth=0.3),
    "knn (k=3)": entropy.knn_entropy,
    "renyi 2 (h = 0.3)": lambda z: entropy.renyi_entropy(z, bandwidth=0.3),
    "marginal (spacing)": entropy.marginal_entropy,
    "gaussian": entropy.gaussian_entropy,
    "minus mer_loss": lambda z: -entropy.mer_loss(z),
    "kde vmf (h = 0.3)": lambda z: entropy.kde_entropy(z, kernel="vmf", bandwidth=0.3),
  }
  figure, axes = plt.subplots(3, 3, figsize=(9, 9))
  axes[0, 0].scatter(*np.asarray(start).T, s=6, color="black")
  axes[0, 0].set_title("start")
  for axis, (name, f) in zip(axes.flat[1:], objectives.items(), strict=True):

    def ascend(z, _, f=f):
      g = jax.grad(f)(z)
      g = g / (jnp.max(jnp.linalg.norm(g, axis=1)) + 1e-12)
      z = z + 0.02 * g
      z = z - jnp.mean(z, axis=0)[None, :]
      # No entropy of R^d has a maximum in the scale: hold the mean square norm.
      return z * radius / jnp.sqrt(jnp.mean(jnp.sum(z**2, 1))), None

    z = jax.jit(lambda z, step=ascend: lax.scan(step, z, None, length=steps)[0])(start)
    print(f"{name:20s} entropy {float(f(start)):8.3f} -> {float(f(z)):8.3f}")
    axis.scatter(*np.asarray(z).T, s=6)
    axis.set_title(f"maximised: {name}", fontsize=9)
  for axis in axes.flat:
    axis.set(aspect="equal", xlim=(-3.4, 3.4), ylim=(-3.4, 3.4), xticks=[], yticks=[])
  save(figure, out / "entropy_maximising.png")


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/figures"))
  parser.add_argument("--only", default="bias,maximising")
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  if "maximising" in args.only:
    figure_maximising(args.out)
  if "bias" in args.only:
    figure_bias(args.out)


if __name__ == "__main__":
  main()
