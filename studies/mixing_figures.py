r"""Draws the figures of docs/modality_mix.md. A few seconds on a CPU.

  python studies/mixing_figures.py            # writes docs/figures/
  python studies/mixing_figures.py --out=/some/folder --format=png

The mixed batch that is drawn is what `modality_mix` returns for key 3.
"""

import argparse
import os
import pathlib

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib.patches import FancyBboxPatch, Rectangle
import matplotlib.pyplot as plt

from mer_dg import mixing

MODALITIES = ("video", "audio", "flow")
CLASSES = ("run", "sleep", "eat", "eat")  # one per sample
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#8fd3bd")  # colour-blind safe; 2 greens
INK = "#222222"
ON = dict(zip(COLOURS, ("white", INK, "white", INK), strict=True))  # text on them


def tile(ax, x, y, colour, text, *, width=0.92, bold=False):
  box = FancyBboxPatch(
    (x - width / 2, y - 0.33),
    width,
    0.66,
    boxstyle="round,pad=0,rounding_size=0.1",
    facecolor=colour,
    edgecolor="white",
    linewidth=1.5,
  )
  ax.add_patch(box)
  style = {"ha": "center", "va": "center", "fontsize": 9, "color": ON[colour]}
  ax.text(x, y, text, weight="bold" if bold else "normal", **style)


def draw_rows(ax):
  """Batch on the left; mixed batch and its target bars on the right."""
  labels = np.array([0, 1, 2, 2])
  rows = len(labels)
  z = {m: jnp.arange(float(rows))[:, None] for m in MODALITIES}
  mixed = mixing.modality_mix(jax.random.key(3), z, jnp.array(labels), num_classes=3)
  kinds = tuple(dict.fromkeys(CLASSES))
  ax.set_xlim(-1.1, 13.4)
  ax.set_ylim(-rows + 0.4, 1.75)
  ax.axis("off")
  head = {"ha": "center", "va": "center", "fontsize": 10, "color": INK}
  ax.text(1.5, 1.55, "a batch: one label per sample", weight="bold", **head)
  ax.text(9.4, 1.55, "mixed: one proportion per class", weight="bold", **head)
  for j, m in enumerate(MODALITIES):
    ax.text(j, 0.75, m, **head)
    ax.text(6.4 + j, 0.75, m, **head)
  ax.text(3.15, 0.75, "label", **head)
  ax.text(11.15, 0.75, "target", **head)
  for i in range(rows):
    y = -i
    ax.text(-0.75, y, f"{i + 1}", **head)
    for j in range(len(MODALITIES)):
      tile(ax, j, y, COLOURS[i], f"{i + 1}")
      source = int(mixed.source[MODALITIES[j]][i])
      tile(ax, 6.4 + j, y, COLOURS[source], f"{source + 1}", bold=True)
    class_colour = COLOURS[list(CLASSES).index(CLASSES[i])]
    tile(ax, 3.15, y, class_colour, CLASSES[i], width=1.0)
    left = 9.2
    for k, share in enumerate(np.asarray(mixed.targets[i])):
      if share > 1e-3:
        colour = COLOURS[list(CLASSES).index(kinds[k])]
        box = (left, y - 0.33)
        ax.add_patch(Rectangle(box, 3.9 * share, 0.66, facecolor=colour, edgecolor="w"))
        name = f"{kinds[k]} {'⅓' if share < 0.5 else '⅔' if share < 0.9 else '1'}"
        where = left + 1.95 * share
        style = {"ha": "center", "va": "center", "color": ON[colour], "fontsize": 9}
        ax.text(where, y, name, **style)
        left += 3.9 * share
  arrow = {"arrowstyle": "-|>", "lw": 2, "color": "#666666"}
  middle = -(rows - 1) / 2
  ax.annotate("", (5.6, middle), (4.1, middle), arrowprops=arrow)
  note = {"ha": "center", "color": "#666666", "fontsize": 8.5}
  ax.text(4.85, middle + 0.2, "permute each\nmodality", va="bottom", **note)
  ax.text(4.85, middle - 0.2, "after the\nencoders", va="top", **note)


def draw_stages(axes):
  """Weights of the two objectives over training."""
  steps = jnp.arange(0, 101)
  plans = {
    "ramp: standard learning, mixed rows fade in": {
      "schedule": "ramp",
      "warmup_steps": 20,
      "ramp_steps": 10,
    },
    "alternate: one objective at a time": {
      "schedule": "alternate",
      "warmup_steps": 20,
      "standard_steps": 10,
      "mix_steps": 10,
    },
  }
  for ax, (title, plan) in zip(axes, plans.items(), strict=True):
    stage = mixing.mix_stage(steps, **plan)
    x = np.asarray(steps) / 100
    for base, y, colour in (
      (1.15, stage.standard, COLOURS[0]),
      (0, stage.mix, COLOURS[1]),
    ):
      ax.fill_between(x, base, base + np.asarray(y), color=colour, lw=0, step="post")
    ax.set_yticks([0.5, 1.65], ["modality-mix", "standard"], fontsize=9)
    ax.set_title(title, fontsize=9, color=INK)
    ax.set_xlim(0, 1)
    ax.tick_params(length=0)
    for side in ("top", "right", "left"):
      ax.spines[side].set_visible(False)
  axes[-1].set_xlabel("share of training", fontsize=9)


def save(figure, path: pathlib.Path) -> None:
  partial = path.with_name(f".partial-{path.name}")
  metadata = {"Date": None} if path.suffix == ".svg" else None
  figure.savefig(partial, bbox_inches="tight", dpi=160, metadata=metadata)
  os.replace(partial, path)
  plt.close(figure)
  print(path)


def main() -> None:
  docs = pathlib.Path(__file__).resolve().parent.parent / "docs" / "figures"
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, default=docs)
  parser.add_argument("--format", choices=("svg", "png"), default="svg")
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  mpl.rcParams["svg.hashsalt"] = "mer_dg"  # the same file from the same numbers

  figure, ax = plt.subplots(figsize=(9.6, 3.4))
  draw_rows(ax)
  save(figure, args.out / f"modality_mix_rows.{args.format}")
  figure, axes = plt.subplots(2, 1, figsize=(6.4, 3.4), sharex=True)
  draw_stages(axes)
  figure.tight_layout()
  save(figure, args.out / f"modality_mix_stages.{args.format}")


if __name__ == "__main__":
  main()
