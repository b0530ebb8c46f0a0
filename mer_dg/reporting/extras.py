"""What evaluations say beside the headline, each a group-by on the long frame.

Modalities missing, corrupted or re-paired, calibration, the inside of embeddings,
curves. All of it is optional: a method whose records lack it is left out, and what only
the last evaluations have (those that ``--mode=diagnose`` examines) is read there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mer_dg import protocol
from mer_dg.protocol import Interval
from mer_dg.reporting import frame, names

# A missing modality is declared missing, or gets the mean embedding in its place.
_WITHHELD = {"without_": "without ", "mean_for_": "mean for "}
# What is shown of embeddings first, and as what; then the entropies.
INSIDE = {
  "domain_accuracy": "domain told (%)",
  "cka": "CKA",
  "cka_debiased": "CKA, debiased",
  "procrustes": "Procrustes",
  "effective_rank": "effective rank",
}
# What is lost by re-pairing, and how it is measured: metric ("" is the headline), and
# whose partners.
RELIANCE = {
  "lost": ("", "re-paired"),
  "lost, same domain": ("", "re-paired_within"),
  "NLL": ("nll", "re-paired"),
  "NLL, same domain": ("nll", "re-paired_within"),
  "margin": ("margin", "re-paired"),
  "margin, same domain": ("margin", "re-paired_within"),
}
SCORED = {"source validation": "val", "target": "target"}  # Curves on one axis.
_UNITS = {"entropy": "nats", "effective_rank": "dimensions"}
_QUALITY = ("accuracy", "balanced_accuracy", "nll", "brier", "ece")

Frames = Mapping[str, pd.DataFrame]  # {rule: selected evaluations}
Curves = Mapping[str, Mapping[int, Interval]]  # {method: {x: interval}}


def where_recorded(frames: Frames, rule: str, start: str) -> tuple[pd.DataFrame, str]:
  """The selected evaluations, or the last ones if only they have all such conditions.

  Args:
    frames: With those of ``last``.
    rule: Of the headline.
    start: Regular expression on the beginning of conditions.

  Returns:
    The evaluations and their rule.
  """
  count = {r: frames[r]["condition"].str.match(start).sum() for r in (rule, "last")}
  shown = "last" if count["last"] > count[rule] else rule
  return frames[shown], shown


def _place(modality: str, rows: pd.DataFrame) -> tuple[int, str]:
  """Sorts modalities in the order of the config, sets of them behind."""
  order = rows["modalities"].iloc[0]
  return order.index(modality) if modality in order else len(order), modality


def missing(
  frames: Frames, metric: str, rule: str
) -> tuple[dict[str, dict[str, Interval]], str]:
  """Target score with modalities missing, mean over targets; and the rule shown.

  Returns:
    ``{condition: {method: interval}}``: all present, then ``without <modality>``, then
    ``mean for <modality>``, each in the order of the config; empty if not recorded.
  """
  shown, rule = where_recorded(frames, rule, "|".join(_WITHHELD))
  rows = shown[(shown["split"] == "target") & (shown["metric"] == metric)]
  found: dict[str, dict[str, Interval]] = {}
  for prefix, said in _WITHHELD.items():
    conditions = {c for c in rows["condition"] if c.startswith(prefix)}
    for condition in sorted(conditions, key=lambda c: _place(c[len(prefix) :], rows)):
      name = said + condition.removeprefix(prefix).replace("+", " + ")
      found[name] = frame.intervals(rows[rows["condition"] == condition])
  methods = {method for cells in found.values() for method in cells}
  whole = rows[(rows["condition"] == "") & rows["method"].isin(methods)]
  return ({"all present": frame.intervals(whole), **found} if found else {}), rule


def corrupted(frames: Frames, metric: str, rule: str) -> tuple[dict[str, Curves], str]:
  """``{"modality: corruption": {method: {severity: interval}}}``; 0 is the clean input.

  Modalities in the order of the config; and the rule shown.
  """
  shown, rule = where_recorded(frames, rule, "corrupted/")
  rows = shown[(shown["split"] == "target") & (shown["metric"] == metric)]
  rows = rows[rows["condition"].str.match("corrupted/")]
  clean = frame.intervals(frame.pick(shown, metric))
  panels: dict[tuple[str, str], dict[str, dict[int, Interval]]] = {}
  for (condition, method), value in frame.intervals(rows, ["condition"]).items():
    modality, kind, severity = condition.removeprefix("corrupted/").rsplit("/", 2)
    panel = panels.setdefault((modality, kind), {})
    panel.setdefault(method, {0: clean[method]})[int(severity)] = value
  order = sorted(panels, key=lambda key: (_place(key[0], rows), key[1]))
  return {f"{m}: {k.replace('_', ' ')}": panels[m, k] for m, k in order}, rule


def severity_mean(curve: Mapping[int, Interval], metric: str) -> str:
  """``43.4 (−9 %)``: mean over severities, and its distance from the clean score."""
  hurt = [found.mean for severity, found in curve.items() if severity > 0]
  mean, clean = sum(hurt) / len(hurt), curve[0].mean
  shown = names.number(mean, metric)
  if not (clean > 0 and mean == mean):
    return shown
  return f"{shown} ({round(100 * (mean / clean - 1)):+} %)".replace("-", names.MINUS)


def reliability(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
  """``{method: share, confidence and accuracy of each bin}``, pooled over runs.

  Every run counts the same; within a bin runs weigh as many predictions as they have
  there. Empty bins are left out.
  """
  rows = rows[rows["condition"].str.match("reliability/")]
  if not len(rows):
    return {}
  index, parts = ["method", "run_id", "condition"], ["confidence", "accuracy"]
  bins = rows.pivot_table(index=index, columns="metric", values="value", sort=False)
  bins = bins[bins["share"] > 0].reset_index()
  bins[parts] = bins[parts].mul(bins["share"], axis=0)
  found = bins.groupby(["method", "condition"])[["share", *parts]].sum()
  found[parts] = found[parts].div(found["share"], axis=0)
  runs = rows.groupby("method", sort=False)["run_id"].nunique()
  of = {m: found.loc[m] for m in runs.index if m in found.index.levels[0]}
  return {m: own.assign(share=own["share"] / runs[m]) for m, own in of.items()}


def reliance(rows: pd.DataFrame, metric: str) -> dict[str, dict[str, Interval]]:
  """What each method loses on the sources when modalities are re-paired.

  Returns:
    ``{method: {column: mean over targets}}``, `RELIANCE` and the score of the target;
    empty for a single modality, which cannot be re-paired, and where a run lacks it.
  """
  if len(rows["modalities"].iloc[0]) < 2:
    return {}
  parts = {"source val.": frame.pick(rows, metric, "val")}
  for name, (of, condition) in RELIANCE.items():
    val = frame.pick(rows, of or metric, "val")
    moved = frame.pick(rows, of or metric, "val", condition)
    if min(len(val), len(moved)) < rows["run_id"].nunique():
      continue  # Records of older versions.
    if name == "lost":
      parts["re-paired"] = moved
    other = val["run_id"].map(moved.set_index("run_id")["value"])
    sign = -1 if of in protocol.LOWER_IS_BETTER else 1
    parts[name] = val.assign(value=sign * (val["value"] - other))
  if "lost" not in parts:
    return {}
  parts["target"] = frame.pick(rows, metric)
  found = {name: frame.intervals(part) for name, part in parts.items()}
  return {m: {name: found[name][m] for name in parts} for m in found["target"]}


def inside(
  frames: Frames, rule: str
) -> tuple[dict[str, dict[str, dict[str, dict[str, Interval]]]], str]:
  """``{modality: {name: {method: {side: mean over targets}}}}``; and the rule shown.

  The side is ``val`` or ``target``, or empty where there is one number for both.
  """
  shown, rule = where_recorded(frames, rule, "embeddings/")
  rows = shown[shown["condition"].str.match("embeddings/")]
  out: dict[str, Any] = {}
  found = frame.intervals(rows, ["condition", "metric", "split"])
  order = [*INSIDE, *sorted(set(rows["metric"]) - INSIDE.keys())]
  place = lambda key: (
    _place(key[0].removeprefix("embeddings/"), rows),
    order.index(key[1]),
  )
  for condition, name, side, method in sorted(found, key=place):
    of_name = out.setdefault(condition.removeprefix("embeddings/"), {})
    of_method = of_name.setdefault(name, {}).setdefault(method, {})
    of_method[side] = found[condition, name, side, method]
  return out, rule


def inside_text(sides: Mapping[str, Interval], name: str) -> str:
  """``2.31 → 2.05``: source validation and target, or the one number there is."""
  factor, digits = (100, 1) if name == "domain_accuracy" else (1, 2)
  values = [sides[side].mean for side in ("", "val", "target") if side in sides]
  shown = " → ".join(f"{factor * value:.{digits}f}" for value in values)
  return shown.replace("-", names.MINUS)


def quality(rows: pd.DataFrame, metric: str) -> dict[str, dict[str, Interval]]:
  """``{other metric: {method: interval}}`` of the target, where every run has it."""
  parts = {m: frame.pick(rows, m) for m in _QUALITY if m != metric}
  whole = [m for m, part in parts.items() if len(part) == rows["run_id"].nunique()]
  return {m: frame.intervals(parts[m]) for m in whole}


def curves(rows: pd.DataFrame, metric: str) -> dict[tuple[str, str], Curves]:
  """``{(title, unit): {method: {step: interval}}}``.

  Scores on source validation and target, then entropy and effective rank of every
  modality. Means over targets and seeds, intervals over seeds.
  """
  score = names.metric_name(metric)
  panels = {(k, score): frame.pick(rows, metric, side) for k, side in SCORED.items()}
  for kind, unit in _UNITS.items():
    own = rows[(rows["metric"] == kind) & (rows["split"] == "")]
    for m in sorted(set(own["condition"]), key=lambda m: _place(m, rows)):
      title = f"{kind.replace('_', ' ')} of {m}"
      panels[title, unit] = own[own["condition"] == m]
  return {
    key: {str(m): frame.curve(g) for m, g in part.groupby("method", sort=False)}
    for key, part in panels.items()
    if len(part)
  }
