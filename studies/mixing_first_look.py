"""Mixing with nothing around it: bare networks on av_digits, per scaling of the input.

  python studies/mixing_first_look.py                # about five minutes
  python studies/mixing_first_look.py --audio published --floors 0.01 0.1 1

One hidden layer of 256 and 64-d embeddings per modality, one linear layer on their
concatenation, batch 96, --steps Adam steps at 1e-3, no decay, no dropout, every row of
the sources for training; hard swap, uniform proportions, all rows eligible, gradient to
both encoders. Inputs are flattened log-mel frames and pixels in [0, 1], centred and
divided by their standard deviation over the source rows plus a floor. "published" are
the 20 x 32 log-mel frames that come with the set and keep each speaker's loudness,
"logmel_resampled" those of configs/av_digits.py, which do not. The folder of the data
is MER_DG_DATA (docs/data.md). Accuracies in percent on the held-out domain,
mean over domains and seeds; differences are paired by seed, ± is a standard error.
"""

import argparse
import csv
import dataclasses
import itertools
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mer_dg
from mer_dg.data.av_digits import DOMAINS, data_root, load_av_digits
from mer_dg.mixing import modality_mix_loss

AUDIO = ("published", "logmel_resampled")
CLASSES, BATCH, HIDDEN, WIDTH = 10, 96, 256, 64
# {name: (weight of the unimodal heads, weight of the mixed loss)}
METHODS = {
  "plain": (0.0, 0.0),
  "heads": (0.5, 0.0),
  "mix": (0.0, 1.0),
  "heads + mix, weight 2": (0.5, 2.0),
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--audio", nargs="+", choices=AUDIO, default=AUDIO)
  parser.add_argument("--floors", type=float, nargs="+", default=[0.1])
  parser.add_argument("--seeds", type=int, default=4)
  parser.add_argument("--steps", type=int, default=600)
  arguments = parser.parse_args()
  for audio, floor in itertools.product(arguments.audio, arguments.floors):
    dataset = _load(audio)
    print(f"\nAudio {audio}, deviation + {floor}; {arguments.seeds} seeds\n")
    print("| | " + " | ".join((*DOMAINS, "mean", "paired difference")) + " |")
    print("| --- |" + " ---: |" * (len(DOMAINS) + 2))
    plain = None
    for name, weights in METHODS.items():
      runs = 100 * np.stack(
        [_accuracy(dataset, domain, floor, weights, arguments) for domain in DOMAINS]
      )  # [domains, seeds]
      plain = runs if plain is None else plain
      gain = (runs - plain).mean(axis=0)
      error = gain.std(ddof=1) / np.sqrt(len(gain))
      cells = [f"{x:.1f}" for x in (*runs.mean(axis=1), runs.mean())]
      print(
        f"| {name} | " + " | ".join(cells) + f" | {gain.mean():+.1f} ± {error:.1f} |"
      )


def _load(audio: str):
  dataset = load_av_digits(audio="logmel_resampled")
  if audio == "published":
    folder = data_root()
    with open(folder / "avdigits_pairs.csv", newline="") as file:
      clip = [int(row["audio_index"]) for row in csv.DictReader(file)]
    with np.load(folder / "fsdd_logmel.npz") as stored:
      # The pairs are the rows of the dataset, in the same order.
      if not np.array_equal(stored["label"][clip], dataset.label):
        raise ValueError("avdigits_pairs.csv and fsdd_logmel.npz do not fit together.")
      inputs = {**dataset.inputs, "audio": stored["audio"][clip]}
    dataset = dataclasses.replace(dataset, inputs=inputs)
  return dataset


def _accuracy(dataset, target: str, floor: float, weights, arguments) -> np.ndarray:
  """Accuracy on the held-out domain, ``[seeds]``."""
  test = dataset.domain == dataset.domain_id(target)
  x = {}
  for m, values in dataset.inputs.items():
    values = values.reshape(len(values), -1).astype(np.float32)
    values /= 255.0 if dataset.inputs[m].dtype == np.uint8 else 1.0
    source = values[~test]
    x[m] = (values - source.mean(axis=0)) / (source.std(axis=0) + floor)
  y = jnp.asarray(dataset.label)
  rows = jnp.asarray(np.flatnonzero(~test))
  train = jax.jit(
    jax.vmap(
      lambda seed, x: _train(seed, x, y, rows, weights, arguments.steps), (0, None)
    )
  )
  logits = train(jnp.arange(arguments.seeds), x)  # [seeds, N, K]
  correct = np.argmax(logits, axis=-1) == dataset.label
  return correct[:, test].mean(axis=1)


def _train(seed, x, y, rows, weights, steps: int):
  """Logits of all rows after training on ``rows``."""
  heads_weight, mix_weight = weights
  init_key, run_key = jax.random.split(jax.random.key(seed))
  params = _init(init_key, {m: a.shape[1] for m, a in x.items()})
  adam = optax.adam(1e-3)

  def loss_fn(params, batch, label, key):
    z = _encode(params, batch)
    loss = mer_dg.cross_entropy(_dense(params["fused"], z), label)
    for m in z:
      one = mer_dg.cross_entropy(_dense(params[f"head_{m}"], {m: z[m]}), label)
      loss += heads_weight * one
    if mix_weight:
      mixed = mer_dg.modality_mix(key, z, label, num_classes=CLASSES)
      heads = {m: _dense(params[f"head_{m}"], {m: mixed.embeddings[m]}) for m in z}
      logits = _dense(params["fused"], mixed.embeddings)
      value, _ = modality_mix_loss(
        mixed, logits, unimodal_logits=heads, unimodal_weight=heads_weight
      )
      loss += mix_weight * value
    return loss

  def step(carry, t):
    params, moments = carry
    draw, mix = jax.random.split(jax.random.fold_in(run_key, t))
    chosen = rows[jax.random.randint(draw, (BATCH,), 0, rows.size)]
    batch = {m: a[chosen] for m, a in x.items()}
    grads = jax.grad(loss_fn)(params, batch, y[chosen], mix)
    updates, moments = adam.update(grads, moments)
    return (optax.apply_updates(params, updates), moments), None

  (params, _), _ = jax.lax.scan(step, (params, adam.init(params)), jnp.arange(steps))
  return _dense(params["fused"], _encode(params, x))


def _init(key, widths):
  """He-normal weights and zero biases of encoders, heads and the fused classifier."""
  shapes = {"fused": (WIDTH * len(widths), CLASSES)}
  for m, width in widths.items():
    shapes |= {f"in_{m}": (width, HIDDEN), f"out_{m}": (HIDDEN, WIDTH)}
    shapes[f"head_{m}"] = (WIDTH, CLASSES)
  keys = jax.random.split(key, len(shapes))
  return {
    name: {
      "kernel": jax.random.normal(k, shape) * jnp.sqrt(2.0 / shape[0]),
      "bias": jnp.zeros(shape[1]),
    }
    for k, (name, shape) in zip(keys, shapes.items(), strict=True)
  }


def _encode(params, x):
  hidden = {m: jax.nn.relu(_dense(params[f"in_{m}"], {m: a})) for m, a in x.items()}
  return {m: _dense(params[f"out_{m}"], {m: h}) for m, h in hidden.items()}


def _dense(layer, z):
  inputs = jnp.concatenate([z[m] for m in sorted(z)], axis=-1)
  return inputs @ layer["kernel"] + layer["bias"][None, :]


if __name__ == "__main__":
  main()
