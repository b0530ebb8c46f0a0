"""What `diagnose` found, as Markdown: means over targets and seeds."""

from __future__ import annotations

import pandas as pd

from mer_dg.reporting import pipe_table
from mer_dg.reporting.extras import INSIDE

# {(training, probed, target, seed): {name: value}}, see `diagnose`.
Probes = dict[tuple[str, str, str, int], dict[str, float]]

_SIDES = ("val", "target")
_CORRUPTED_NOTE = (
  "Target score with one modality corrupted, mean over severities 1 to 5, and what is "
  "lost of the clean score."
)
_MISSING_NOTE = (
  "Target score with modalities declared missing (zero) / with the mean embedding of "
  "source training rows in their places."
)
_INSIDE_NOTE = (
  "Source validation → target, as many rows of each class. Domain told: balanced "
  "accuracy of a linear probe, 50 is chance. CKA and Procrustes of class means. "
  "Entropies in nats, rows scaled to unit length."
)


def to_markdown(probes: Probes) -> str:
  """Tables of all that was found.

  Probes and fused predictions (with the standard error of the target); accuracy under
  corruption; accuracy with modalities missing; the embeddings of source and target.
  """
  rows = pd.DataFrame(
    [(k[0], k[1], name, v) for k, of in probes.items() for name, v in of.items()],
    columns=["training", "probed", "name", "value"],
  )
  rows["kind"] = rows["name"].str.partition("/")[0]
  parts = [_probes(rows)]
  for heading, note, table in (
    ("Corrupted", _CORRUPTED_NOTE, _corrupted(rows)),
    ("Modalities missing", _MISSING_NOTE, _missing(rows)),
    ("Inside the embeddings", _INSIDE_NOTE, _inside(rows)),
  ):
    if table:
      parts.append(f"## {heading}\n\n{note}\n\n{table}")
  return "\n\n".join(parts)


def _probes(rows: pd.DataFrame) -> str:
  of = rows[rows["name"].isin(_SIDES)].groupby(["training", "probed", "name"])["value"]
  mean, error = 100 * of.mean(), 100 * of.sem()
  columns = [*rows["probed"].unique()]
  body = []
  for training in rows["training"].unique():
    cells = []
    for probed in columns:
      val, target = ((training, probed, side) for side in _SIDES)
      cells.append(
        f"{mean[val]:.1f} → {mean[target]:.1f} ± {error[target]:.1f}"
        if val in mean.index
        else "–"
      )
    body.append([training, *cells])
  return pipe_table(["training", *(f"{c}: source → target" for c in columns)], body)


def _corrupted(rows: pd.DataFrame) -> str:
  fused = rows[rows["probed"] == "fused"]
  hurt = fused[fused["kind"] == "corrupted"]
  panel = hurt["name"].str.removeprefix("corrupted/").str.rpartition("/")[0]
  mean = hurt.groupby([panel, "training"], sort=False)["value"].mean()
  clean = (
    fused[fused["name"] == "target"].groupby("training", sort=False)["value"].mean()
  )
  body = []
  for name in panel.unique():
    modality, _, kind = name.rpartition("/")
    cells = []
    for training, whole in clean.items():
      value = mean[name, training]
      lost = f"{round(100 * (value / whole - 1)):+}" if whole else "–"
      cells.append(f"{100 * value:.1f} ({lost} %)")
    body.append([f"{modality}: {kind.replace('_', ' ')}", *cells])
  return pipe_table(["", *clean.index], body) if body else ""


def _missing(rows: pd.DataFrame) -> str:
  mean = rows.groupby(["name", "training"], sort=False)["value"].mean()
  names = [n for n in rows["name"].unique() if n.startswith("without_")]
  order = [*rows["probed"].unique()]
  subsets = sorted(
    (n.removeprefix("without_").split("+") for n in names),
    key=lambda s: (len(s), [order.index(m) for m in s if m in order]),
  )
  methods = [*rows.loc[rows["name"].isin(names), "training"].unique()]
  body = []
  for subset in subsets:
    hows = [how + "+".join(subset) for how in ("without_", "mean_for_")]
    cells = (" / ".join(f"{100 * mean[h, m]:.1f}" for h in hows) for m in methods)
    body.append([f"without {' + '.join(subset)}", *cells])
  return pipe_table(["", *methods], body) if body else ""


def _inside(rows: pd.DataFrame) -> str:
  some = rows["kind"].isin(INSIDE) | rows["kind"].str.startswith("entropy_")
  own = rows[some]
  mean = own.groupby(["training", "probed", "kind", "name"], sort=False)["value"].mean()
  kinds = [*(k for k in INSIDE if k in {*own["kind"]})]
  kinds += sorted({*own["kind"]} - {*kinds})
  body = []
  for training, probed in own[["training", "probed"]].drop_duplicates().to_numpy():
    cells = []
    for kind in kinds:
      factor, digits = (100, 1) if kind == "domain_accuracy" else (1, 2)
      index = [
        (training, probed, kind, n) for n in (kind, *(f"{kind}/{s}" for s in _SIDES))
      ]
      values = [factor * mean[key] for key in index if key in mean.index]
      cells.append(" → ".join(f"{v:.{digits}f}" for v in values) or "–")
    body.append([training, probed, *cells])
  said = [INSIDE.get(kind, kind.replace("_", " ", 1)) for kind in kinds]
  return pipe_table(["training", "modality", *said], body) if body else ""
