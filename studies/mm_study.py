"""Tables and figure of configs/mm_study.py over fusions, from finished workdirs.

  for set in cooccurrence av_digits gesture_phase dsads; do
    for fusion in concat gated late; do
      python main.py --mode=diagnose --config=configs/mm_study.py:$set,$fusion
    done
  done
  python studies/mm_study.py runs/mm_study-* --out=docs/figures

Per set: target accuracy (checkpoint selected on source validation) and its paired
difference to ERM with the same fusion, [95 % interval]; accuracy of a linear probe on
each frozen encoder of the last step; accuracy with one modality taken away. All on the
target, in percent, means over targets and seeds.
"""

import argparse
import json
import pathlib

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from mer_dg import protocol
from mer_dg.protocol import read_records
from mer_dg.reporting import (
  build_table,
  choose,
  pick,
  pipe_table,
  save_figure,
  scores,
  to_frame,
)
from mer_dg.reporting.extras import missing

# Marker and colour (Okabe and Ito) of each fusion.
FUSIONS = {
  "concat": ("o", "#0072B2"),
  "gated": ("s", "#D55E00"),
  "late": ("^", "#009E73"),
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
  parser.add_argument("--out", type=pathlib.Path, help="Folder for mm_study.png.")
  arguments = parser.parse_args()
  studies: dict[str, dict[str, dict]] = {}
  for folder in arguments.workdirs:
    fusion = json.loads((folder / "config.json").read_text())["network"]["fusion"]
    study = _read(folder)
    studies.setdefault(study["table"].dataset, {})[fusion] = study
  for name, by_fusion in studies.items():
    print(f"\n### {name}, every fusion\n")
    _print(by_fusion)
    _print_differences(by_fusion)
  if arguments.out:
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_figure(_figure(studies), arguments.out / "mm_study", ("png",))


def _read(folder: pathlib.Path) -> dict:
  config = json.loads((folder / "config.json").read_text())
  records = read_records(folder / "results.jsonl")
  metric = config["metric"]
  table = build_table(records, metric=metric, reference=config["methods"][0])
  lines = (folder / "report" / "diagnosis.jsonl").read_text().splitlines()
  probes: dict[tuple[str, str], list[float]] = {}
  for row in map(json.loads, lines):
    probes.setdefault((row["training"], row["probed"]), []).append(row["target"])
  frames = {r: to_frame(choose(records, r, metric=metric))
            for r in ("source_val", "last")}  # fmt: skip
  return {
    "table": table,
    "probes": {k: float(np.mean(v)) for k, v in probes.items()},
    "missing": missing(frames, metric, "source_val")[0],
    "lost": _differences_without(frames["source_val"], metric, table),
  }


def _differences_without(chosen, metric: str, table) -> dict:
  """Paired difference to ERM with one modality taken away, by (method, modality)."""
  found = {}
  for m in table.modalities:
    of = scores(pick(chosen, metric, condition=f"without_{m}"))
    for row in table.rows[1:]:
      pair = of[row.method], of[table.reference]
      found[row.method, m] = protocol.paired_difference(*pair)
  return found


def _print(by_fusion: dict[str, dict]) -> None:
  first = next(iter(by_fusion.values()))["table"]
  names = first.modalities
  heads = ["fusion", "method", "source val.", "target", "difference to ERM"]
  heads += [f"probe of {m}" for m in names] + [f"without {m}" for m in names]
  body = []
  for fusion in (f for f in FUSIONS if f in by_fusion):
    study = by_fusion[fusion]
    for row in study["table"].rows:
      gain = row.difference
      cells = [fusion, row.method, _percent(row.source_val.mean)]
      cells.append(f"{_percent(row.mean.mean)} ± {_percent(_half(row.mean))}")
      cells.append(_interval(gain, row.p_holm) if gain else "–")
      cells += [_percent(study["probes"][row.method, m]) for m in names]
      taken = [study["missing"][f"without {m}"] for m in names]
      cells += [_percent(cells_of[row.method].mean) for cells_of in taken]
      body.append(cells)
    alone = [_percent(study["probes"]["alone", m]) for m in names]
    blank = ["–"] * 3 + alone + ["–"] * len(names)
    body.append([fusion, "each alone", *blank])
  print(pipe_table(heads, body))


def _print_differences(by_fusion: dict[str, dict]) -> None:
  """With one modality taken away, against ERM; p-values are not adjusted."""
  names = next(iter(by_fusion.values()))["table"].modalities
  body = []
  for fusion in (f for f in FUSIONS if f in by_fusion):
    study = by_fusion[fusion]
    for row in study["table"].rows[1:]:
      cells = [_interval(d, d.p) for m in names if (d := study["lost"][row.method, m])]
      body.append([fusion, row.method, *cells])
  heads = ["fusion", "method", *(f"without {m}" for m in names)]
  print(f"\n{pipe_table(heads, body)}")


def _percent(x: float) -> str:
  return f"{100 * x:.1f}"


def _half(interval) -> float:
  return (interval.high - interval.low) / 2


def _interval(gain, p: float) -> str:
  low, high = 100 * gain.low, 100 * gain.high
  p_text = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
  return f"{100 * gain.mean:+.1f} [{low:+.1f}, {high:+.1f}], {p_text}"


def _figure(studies):
  """Paired difference to ERM per set, method and fusion, with 95 % intervals."""
  fig, axes = plt.subplots(
    1,
    len(studies),
    figsize=(3.0 * len(studies) + 0.8, 3.2),
    sharey=True,
    squeeze=False,
    layout="constrained",
  )
  for ax, (name, by_fusion) in zip(axes[0], studies.items(), strict=True):
    rows = next(iter(by_fusion.values()))["table"].rows[1:]
    methods = [row.method for row in rows]
    for j, (fusion, (marker, color)) in enumerate(FUSIONS.items()):
      if fusion not in by_fusion:
        continue
      found = {r.method: r.difference for r in by_fusion[fusion]["table"].rows[1:]}
      mean = 100 * np.array([found[m].mean for m in methods])
      ends = 100 * np.array([[found[m].low, found[m].high] for m in methods])
      ax.errorbar(
        mean,
        np.arange(len(methods)) + 0.22 * (j - 1),
        xerr=np.abs(ends.T - mean[None, :]),
        fmt=marker,
        color=color,
        markersize=4,
        capsize=2,
        label=fusion,
      )
    ax.axvline(0.0, color="0.5", linewidth=0.8)
    ax.set_title(name)
    ax.set_xlabel("points over ERM on the target")
  axes[0, 0].set_yticks(range(len(methods)), methods)
  axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)
  fig.legend(
    *axes[0, 0].get_legend_handles_labels(), title="fusion", loc="outside center right"
  )
  return fig


if __name__ == "__main__":
  main()
