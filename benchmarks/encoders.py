r"""Size, arithmetic and memory of the published encoders, without running them.

  python -m benchmarks.encoders
  python -m benchmarks.encoders --time --batch=8 --dtype=bfloat16   # On an accelerator.
  python -m benchmarks.encoders --convolutions

Parameters and FLOPs are counted; memory is what the backward pass needs of the forward
pass, per sample, from the shapes of the residuals of `jax.vjp` (those of two samples
minus those of one, so that parameters cancel). What a compiler makes of it can only be
less. Training mode, batch norms with running statistics. With ``--time`` the forward
passes of trunk and layer4 and the gradient of layer4 are run and timed, too.
"""

import argparse
import math
import time

import jax
from jax import lax
import jax.numpy as jnp

from benchmarks._timing import interleaved
from mer_dg.networks.published import BACKBONES, encode, make_backbone
from mer_dg.networks.published.layers import convolve

# [B, T, H, W, C], window, strides, output channels: one of every form.
LAYERS = {
  "stem 1x7x7 / 2": ((1, 8, 112, 112, 3), (1, 7, 7), (1, 2, 2), 64),
  "1x3x3": ((1, 8, 14, 14, 256), (1, 3, 3), (1, 1, 1), 256),
  "3x1x1": ((1, 8, 14, 14, 512), (3, 1, 1), (1, 1, 1), 256),
  "1x1x1": ((1, 8, 14, 14, 1024), (1, 1, 1), (1, 1, 1), 256),
  "shortcut 1x1x1 / 2": ((1, 8, 28, 28, 256), (1, 1, 1), (1, 2, 2), 512),
}
SAMPLES = {
  "slowfast_r101": (32, 224, 224, 3),
  "slowonly_r50_flow": (8, 224, 224, 2),
  "vggsound_resnet18": (257, 1004, 1),
}
KEY = jax.random.key(0)


def shapes(tree) -> int:
  """Bytes of all arrays of a tree of shapes."""
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def sample(kind, batch):
  return jax.ShapeDtypeStruct((batch, *SAMPLES[kind]), jnp.float32)


def stored(kind, batch, **options) -> int:
  """Bytes that the backward pass needs, parameters included."""
  backbone = make_backbone(kind, **options)
  variables = jax.eval_shape(backbone.init, KEY)

  def residuals(variables, x):
    def loss(params):
      filled = {
        part: own | {"params": params.get(part, own["params"])}
        for part, own in variables.items()
      }
      return encode(backbone, filled, x, train=True)[0]

    trained = ("layer4",) if options["trainable"] == "layer4" else ("trunk", "layer4")
    return jax.vjp(loss, {part: variables[part]["params"] for part in trained})[1]

  return shapes(jax.eval_shape(residuals, variables, sample(kind, batch)))


def count(kind) -> None:
  """Prints parameters, FLOPs and memory of one network."""
  backbone = make_backbone(kind)
  variables = jax.eval_shape(backbone.init, KEY)
  maps, _ = jax.eval_shape(backbone.trunk, variables, sample(kind, 1))
  for part, x in (("trunk", sample(kind, 1)), ("layer4", maps)):
    run = lambda v, x, part=part: getattr(backbone, part)(v, x)[0]
    cost = jax.jit(run).lower(variables, x).cost_analysis() or {}
    millions = shapes(variables[part]["params"]) / 4e6
    giga = cost.get("flops", math.nan) / 1e9
    print(f"{kind} {part}: {millions:.1f} M parameters, {giga:.1f} GFLOP per sample")
  for trainable in ("layer4", "all"):
    cells = []
    for dtype in ("float32", "bfloat16"):
      for remat in (False, True):
        how = dict(trainable=trainable, compute_dtype=dtype, remat=remat)
        size = stored(kind, 2, **how) - stored(kind, 1, **how)
        cells.append(f"{dtype}{' remat' if remat else ''} {size / 2**20:.0f} MiB")
    print(f"  stored per sample, {trainable} trained: {', '.join(cells)}", flush=True)


def clock(kind, batch, dtype, repeats=5) -> None:
  """Prints the best of ``repeats`` times per sample."""
  backbone = make_backbone(kind, compute_dtype=dtype)
  variables = jax.jit(backbone.init)(KEY)
  x = jax.random.normal(KEY, (batch, *SAMPLES[kind]))
  trunk = jax.jit(lambda v, x: backbone.trunk(v, x)[0])
  layer4 = jax.jit(lambda v, maps: backbone.layer4(v, maps)[0])
  grad = jax.jit(jax.grad(lambda v, maps: jnp.sum(backbone.layer4(v, maps)[0] ** 2)))
  maps = trunk(variables, x)
  for name, function, argument in (
    ("trunk", trunk, x),
    ("layer4", layer4, maps),
    ("gradient of layer4", grad, maps),
  ):
    best = math.inf
    jax.block_until_ready(function(variables, argument))
    for _ in range(repeats):
      start = time.perf_counter()
      jax.block_until_ready(function(variables, argument))
      best = min(best, time.perf_counter() - start)
    print(f"| {kind} {name} | {1e3 * best / batch:.1f} |", flush=True)


def plain(x, kernel, strides):
  """The same convolution as one 3-D convolution."""
  padding = [(w // 2, w // 2) for w in kernel.shape[:3]]
  order = ("NDHWC", "DHWIO", "NDHWC")
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=order)


def compare_convolutions() -> None:
  """Prints the time of both forms, forward and with both gradients."""
  print("| layer | forward, ms | as 3-D | with gradients, ms | as 3-D |")
  print("|---|---:|---:|---:|---:|")
  for name, (shape, window, strides, features) in LAYERS.items():
    x = jax.random.normal(KEY, shape)
    kernel = jax.random.normal(KEY, (*window, shape[-1], features))
    contenders = {}
    for form in (convolve, plain):
      run = lambda x, k, form=form, strides=strides: form(x, k, strides)
      square = lambda x, k, run=run: jnp.sum(run(x, k) ** 2)
      for function in (jax.jit(run), jax.jit(jax.grad(square, (0, 1)))):
        call = lambda f=function, a=(x, kernel): jax.block_until_ready(f(*a))
        contenders[f"{form.__name__} {len(contenders)}"] = call
    times = [t["wall_ms"] for t in interleaved(contenders).values()]
    cells = (f"{times[i]:.1f}" for i in (0, 2, 1, 3))
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--kind", choices=BACKBONES, action="append")
  parser.add_argument("--time", action="store_true")
  parser.add_argument("--batch", type=int, default=1)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--convolutions", action="store_true")
  args = parser.parse_args()
  if args.convolutions:
    return compare_convolutions()
  for kind in args.kind or BACKBONES:
    count(kind)
  if args.time:
    print(f"Device: {jax.devices()[0].device_kind}, batch {args.batch}, {args.dtype}")
    print("| encoder | ms per sample |\n|---|---:|")
    for kind in args.kind or BACKBONES:
      clock(kind, args.batch, args.dtype)


if __name__ == "__main__":
  main()
