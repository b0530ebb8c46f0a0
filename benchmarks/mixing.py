r"""Step time with modality-mix learning, as ratios to the plain step of the same run.

  python benchmarks/mixing.py  # about a minute on two idle CPU cores
  python benchmarks/mixing.py --encoders=conv --batch_size=64 --rounds=31

Four training steps of one network (two encoders, concatenation, Adam) take turns:

  plain   fused cross-entropy
  heads   + unimodal heads and their cross-entropies
  mix     + exploration score, selection, and the mixed loss on permuted embeddings
  naive   as `mix`, but inputs are permuted and go through the encoders a second time

`mix` and `naive` optimise the same objective: their first losses are compared before
anything is timed. Each round times every step once, as `--steps` calls of a compiled
function; a ratio is the median over rounds of the ratio within a round, so that other
load on the machine hits both sides. `--clock=cpu` counts the CPU seconds of all threads
of this process instead of the time on the wall, for a machine that is shared.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mer_dg import mixing

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLASSES, WIDTH = 10, 64
STEPS = ("plain", "heads", "mix", "naive")
# Per modality: vector length, or height, width and channels.
INPUTS = {
  "vector": {"audio": (640,), "image": (256,)},
  "conv": {"audio": (32, 40, 1), "image": (32, 32, 3)},
}
CHANNELS = (32, 64, 128)  # stride-2 3x3 convolutions


def init_encoder(key, shape):
  normal = lambda key, *s: jax.random.normal(key, s) * np.sqrt(2 / np.prod(s[:-1]))
  keys = jax.random.split(key, len(CHANNELS) + 1)
  if len(shape) == 1:
    return [normal(keys[0], shape[0], 256), normal(keys[1], 256, WIDTH)]
  sizes = (shape[-1], *CHANNELS)
  convs = [normal(k, 3, 3, *sizes[i : i + 2]) for i, k in enumerate(keys[:-1])]
  return [*convs, normal(keys[-1], CHANNELS[-1], WIDTH)]


def encode(weights, x):
  for w in weights[:-1]:
    if w.ndim == 4:
      x = jax.lax.conv_general_dilated(
        x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
      )
    else:
      x = x @ w
    x = jax.nn.relu(x)
  if x.ndim == 4:
    x = x.mean(axis=(1, 2))
  return x @ weights[-1]


def init(key, shapes):
  keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
  head = lambda key, size: jax.random.normal(key, (size, CLASSES)) / np.sqrt(size)
  return {
    "encoder": {m: init_encoder(keys[m], s) for m, s in shapes.items()},
    "head": {m: head(keys[m], WIDTH) for m in shapes},
    "fused": head(key, WIDTH * len(shapes)),
  }


def make_loss(kind):
  """``(params, x, y, key, exploration) -> (loss, new exploration)``."""
  rows = optax.softmax_cross_entropy_with_integer_labels
  ce = lambda logits, y: rows(logits, y).mean()
  encode_all = lambda params, x: {m: encode(params["encoder"][m], x[m]) for m in x}
  heads = lambda params, z: {m: z[m] @ params["head"][m] for m in z}
  fuse = lambda params, z: jnp.concatenate(list(z.values()), -1) @ params["fused"]

  def loss(params, x, y, key, exploration):
    z = encode_all(params, x)
    logits = fuse(params, z)
    total = ce(logits, y)
    if kind == "plain":
      return total, exploration
    unimodal = heads(params, z)
    total += 0.5 * sum(ce(u, y) for u in unimodal.values())
    if kind == "heads":
      return total, exploration
    exploration = mixing.exploration_score(exploration, unimodal, y)
    # Threshold 0: the rows with a correct prediction. The work does not depend on it.
    strong = mixing.select_confident(
      *mixing.prediction_strength(logits, y), threshold=0.0
    )
    mixed = mixing.modality_mix(
      key,
      x if kind == "naive" else z,
      y,
      num_classes=CLASSES,
      eligible=strong,
      proportions="exploration",
      exploration=exploration,
    )
    z_mixed = mixed.embeddings
    if kind == "naive":
      z_mixed = encode_all(params, z_mixed)
    z_mixed = mixing.route_gradients(z_mixed, exploration)
    mix_loss, _ = mixing.modality_mix_loss(
      mixed, fuse(params, z_mixed), unimodal_logits=heads(params, z_mixed)
    )
    return total + mix_loss, exploration

  return loss


def make_program(kind, shapes, batch_size):
  """A compiled training step of the carry, and the first carry."""
  optimizer = optax.adam(1e-3)
  loss = make_loss(kind)
  keys = jax.random.split(jax.random.key(0), len(shapes) + 3)
  x = {
    m: jax.random.normal(k, (batch_size, *s))
    for k, (m, s) in zip(keys, shapes.items(), strict=False)
  }
  y = jax.random.randint(keys[-2], (batch_size,), 0, CLASSES)

  def step(carry, key):
    params, opt_state, exploration = carry
    (value, exploration), grads = jax.value_and_grad(loss, has_aux=True)(
      params, x, y, key, exploration
    )
    updates, opt_state = optimizer.update(grads, opt_state)
    return (optax.apply_updates(params, updates), opt_state, exploration), value

  params = init(keys[-1], shapes)
  carry = (params, optimizer.init(params), mixing.init_exploration(tuple(shapes)))
  return jax.jit(step).lower(carry, jax.random.key(1)).compile(), carry


def measure(shapes, batch_size, steps, rounds, now):
  """Seconds per step, ``{kind: [rounds]}``."""
  programs = {k: make_program(k, shapes, batch_size) for k in STEPS}
  first = {k: f(carry, jax.random.key(1))[1] for k, (f, carry) in programs.items()}
  np.testing.assert_allclose(first["mix"], first["naive"], rtol=1e-4)
  seconds = {k: [] for k in STEPS}
  key = jax.random.key(1)
  for _ in range(rounds):
    for kind, (program, carry) in programs.items():
      start = now()
      for _ in range(steps):
        carry, value = program(carry, key)
      jax.block_until_ready(value)
      seconds[kind].append((now() - start) / steps)
  return {k: np.array(v) for k, v in seconds.items()}


def ratio(seconds, kind, base):
  quartiles = np.percentile(seconds[kind] / seconds[base], [25, 50, 75])
  return "{1:.3f} [{0:.3f}, {2:.3f}]".format(*quartiles)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--encoders", nargs="+", choices=INPUTS, default=list(INPUTS))
  parser.add_argument("--batch_size", type=int, default=96)
  parser.add_argument("--rounds", type=int, default=41)
  parser.add_argument("--steps", type=int, default=3, help="per timing")
  parser.add_argument("--clock", choices=CLOCKS, default="wall")
  args = parser.parse_args()
  device = jax.devices()[0]
  print(f"device {device.platform} {device.device_kind}, batch {args.batch_size},")
  timing = f"{args.rounds} rounds of {args.steps} steps, {args.clock} clock"
  print(f"{timing}; median [quartiles]")
  pairs = [("heads", "plain"), ("mix", "plain"), ("mix", "heads")]
  pairs += [("naive", "plain"), ("naive", "mix")]
  names = " | ".join(f"{kind} / {base}" for kind, base in pairs)
  print(f"| encoders | plain step (ms) | {names} |")
  print("|---|---|---|---|---|---|---|")
  for name in args.encoders:
    s = measure(
      INPUTS[name], args.batch_size, args.steps, args.rounds, CLOCKS[args.clock]
    )
    cells = [ratio(s, *pair) for pair in pairs]
    print(f"| {name} | {1e3 * np.median(s['plain']):.2f} | {' | '.join(cells)} |")


if __name__ == "__main__":
  main()
