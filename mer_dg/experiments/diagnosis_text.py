"""What `diagnose` found, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mer_dg.reporting import pipe_table

# {(training, probed, target, seed): {name: value}}, see `diagnose`.
Probes = dict[tuple[str, str, str, int], dict[str, float]]

_CORRUPTED, _MISSING, _MEAN = "corrupted/", "without_", "mean_for_"
_INSIDE = {
  "domain_accuracy": "domain told (50 is chance)",
  "cka": "CKA",
  "cka_debiased": "debiased",
  "procrustes": "Procrustes",
  "effective_rank": "effective rank",
}


def to_markdown(probes: Probes) -> str:
  """Tables of all that was found: means over targets and seeds.

  Probes and fused predictions (with the standard error of the target); accuracy under
  corruption; accuracy with modalities missing; the embeddings of source and target.
  """
  parts = [_probes(probes)]
  for heading, note, table in (
    ("Corrupted", _CORRUPTED_NOTE, _corrupted(probes)),
    ("Modalities missing", _MISSING_NOTE, _missing(probes)),
    ("Inside the embeddings", _INSIDE_NOTE, _inside(probes)),
  ):
    if table:
      parts.append(f"## {heading}\n\n{note}\n\n{table}")
  return "\n\n".join(parts)


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
  "accuracy of a linear probe. CKA and Procrustes of class means. Entropies in nats, "
  "rows scaled to unit length."
)


def _probes(probes: Probes) -> str:
  columns = _names(probes, 1)
  header = ["training", *(f"{c}: source → target" for c in columns)]
  body = []
  for training in _names(probes, 0):
    cells = []
    for column in columns:
      rows = [v for k, v in probes.items() if k[:2] == (training, column)]
      cells.append(_probe_cell(rows))
    body.append([training, *cells])
  return pipe_table(header, body)


def _probe_cell(rows: Sequence[dict[str, float]]) -> str:
  if not rows:
    return "–"
  val = 100 * np.array([r["val"] for r in rows])
  target = 100 * np.array([r["target"] for r in rows])
  error = target.std(ddof=1) / np.sqrt(len(target)) if len(target) > 1 else np.nan
  return f"{val.mean():.1f} → {target.mean():.1f} ± {error:.1f}"


def _corrupted(probes: Probes) -> str:
  fused = _fused(probes)
  names = (k for rows in fused.values() for r in rows for k in r)
  kinds = dict.fromkeys(k.rsplit("/", 1)[0] for k in names if k.startswith(_CORRUPTED))
  body = []
  for kind in kinds:
    cells = []
    for rows in fused.values():
      clean = _mean([r["target"] for r in rows])
      values = [v for r in rows for k, v in r.items() if k.rsplit("/", 1)[0] == kind]
      lost = (clean - _mean(values)) / clean if clean else np.nan
      change = round(-100 * lost) if np.isfinite(lost) else np.nan
      cells.append(f"{100 * _mean(values):.1f} ({change:+} %)")
    modality, _, name = kind.removeprefix(_CORRUPTED).rpartition("/")
    body.append([f"{modality}: {name.replace('_', ' ')}", *cells])
  return pipe_table(["", *fused], body) if body else ""


def _missing(probes: Probes) -> str:
  fused = _fused(probes)
  names = (k for rows in fused.values() for r in rows for k in r)
  subsets = {k.removeprefix(_MISSING) for k in names if k.startswith(_MISSING)}
  body = []
  order = _names(probes, 1)
  places = lambda s: [order.index(m) for m in s.split("+") if m in order]
  for subset in sorted(subsets, key=lambda s: (s.count("+"), places(s), s)):
    cells = [
      " / ".join(
        f"{100 * _mean([r[prefix + subset] for r in rows]):.1f}"
        for prefix in (_MISSING, _MEAN)
      )
      for rows in fused.values()
    ]
    body.append([f"without {subset.replace('+', ' + ')}", *cells])
  return pipe_table(["", *fused], body) if body else ""


def _inside(probes: Probes) -> str:
  of_run: dict[tuple[str, str], list[dict[str, float]]] = {}
  for (training, probed, *_), values in probes.items():
    if "domain_accuracy" in values:
      of_run.setdefault((training, probed), []).append(values)
  keys = (k for rows in of_run.values() for r in rows for k in r)
  names = {k.split("/")[0] for k in keys if k not in ("val", "target")}
  names = [*(k for k in _INSIDE if k in names), *sorted(names - _INSIDE.keys())]
  shown = lambda name: _INSIDE.get(name, name.replace("_", " ", 1))
  body = [
    [training, modality, *(_inside_cell(rows, name) for name in names)]
    for (training, modality), rows in of_run.items()
  ]
  return pipe_table(["training", "modality", *map(shown, names)], body) if body else ""


def _inside_cell(rows: Sequence[dict[str, float]], name: str) -> str:
  scale, digits = (100, 1) if name == "domain_accuracy" else (1, 2)
  keys = [
    k for k in (name, f"{name}/val", f"{name}/target") if any(k in r for r in rows)
  ]
  means = [scale * _mean([r[k] for r in rows if k in r]) for k in keys]
  return " → ".join(f"{v:.{digits}f}" for v in means) or "–"


def _fused(probes: Probes) -> dict[str, list[dict[str, float]]]:
  """``{method: values of its runs}``."""
  found: dict[str, list[dict[str, float]]] = {}
  for (training, probed, *_), values in probes.items():
    if probed == "fused":
      found.setdefault(training, []).append(values)
  return found


def _names(probes: Probes, place: int) -> list[str]:
  return list(dict.fromkeys(str(key[place]) for key in probes))


def _mean(values: Sequence[float]) -> float:
  return float(np.mean(values)) if len(values) else float("nan")
