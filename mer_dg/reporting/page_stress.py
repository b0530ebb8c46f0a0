"""Parts of the page: modalities missing or corrupted, and embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import math

from mer_dg import protocol
from mer_dg.reporting import embeddings, formats, reliance, stress
from mer_dg.reporting import page_blocks as blocks
from mer_dg.reporting.maps import EmbeddingMaps
from mer_dg.reporting.markup import Markup, join, tag
from mer_dg.reporting.plots import style
from mer_dg.reporting.plots.embedding import embedding_map
from mer_dg.reporting.plots.stress import missing_plot, severity_figures


def pairings(found: reliance.Reliance | None) -> Markup:
  """What is lost when modalities are re-paired."""
  if found is None:
    return Markup()
  header, body = reliance.cell_texts(found)
  return join(
    tag("h3", "Leaning on pairings"),
    blocks.grid(header, *body),
    tag("p", reliance.CAPTION, class_="note"),
  )


def missing(found: stress.MissingModality | None, ids: Iterator[str]) -> Markup:
  """Bars, and a table of every subset."""
  if found is None:
    return Markup()
  show = lambda cell: formats.format_interval(cell, found.metric)
  body = [
    [condition, *(show(cells.get(condition)) for cells in found.methods.values())]
    for condition in found.conditions
  ]
  caption = (
    "Target score when a modality is withheld at test time from a network trained "
    "with all. A large fall means that the network leans on that modality. “Without”: "
    "it is declared missing."
  )
  if any(condition.startswith("mean for") for condition in found.conditions):
    caption += (
      " “Mean for”: its mean embedding in source training rows stands in its place."
    )
  return join(
    tag("h3", "With a modality missing"),
    blocks.figure(
      missing_plot(found), next(ids), caption + _last(found.rule), wide=True
    ),
    blocks.grid(["", *found.methods], *body),
  )


def corrupted(
  found: stress.Corrupted | None, methods: Sequence[str], ids: Iterator[str]
) -> Markup:
  """A small plot for each modality and corruption."""
  if found is None:
    return Markup()
  figures = {
    f"{title}, target score against severity": fig
    for title, fig in severity_figures(found, methods).items()
  }
  caption = (
    "One modality corrupted at test time, from clean to severity 5; mean over targets, "
    "bands are 95 % intervals. What counts is how fast a curve falls, and from where."
  )
  shown = [m for m in methods if any(m in panel for panel in found.panels.values())]
  body = [
    [
      f"{modality}: {kind.replace('_', ' ')}",
      *(_severity_mean(panel.get(m, {}), found.metric) for m in shown),
    ]
    for (modality, kind), panel in found.panels.items()
  ]
  note = "Mean over severities 1 to 5, and what that changes of the clean score."
  return join(
    tag("h3", "With a modality corrupted"),
    blocks.panels(figures, methods, ids, caption + _last(found.rule)),
    blocks.grid(["", *shown], *body),
    tag("p", note, class_="note"),
  )


def _severity_mean(curve: dict[int, protocol.Interval], metric: str) -> str:
  """``43.4 (-9 %)``: mean over severities, and its distance from the clean score."""
  hurt = [interval.mean for severity, interval in curve.items() if severity > 0]
  mean = sum(hurt) / len(hurt) if hurt else math.nan
  if math.isnan(mean):
    return "–"
  shown = f"{style.scale(metric) * mean:.1f}"
  clean = curve[0].mean if 0 in curve else 0.0
  return f"{shown} ({round(100 * (mean / clean - 1)):+} %)" if clean > 0 else shown


def inside(found: embeddings.Representation | None) -> Markup:
  """A table for each modality, of numbers about its embeddings."""
  if found is None:
    return Markup()
  shown = lambda name: embeddings.LABELS.get(name, name.replace("_", " ", 1))
  grids = []
  for m in dict.fromkeys(modality for _, modality in found.cells):
    columns = {method: own for (method, of), own in found.cells.items() if of == m}
    body = [
      [shown(name), *(_cell(own, name) for own in columns.values())]
      for name in found.names
    ]
    grids.append(blocks.grid([m, *columns], *body))
  note = (
    "Means over targets and seeds; source validation → target where there are two "
    "numbers, with as many rows of each class. Domain told: balanced accuracy of a "
    "linear probe that tells source from target, 50 is chance. CKA (1: alike) and "
    "Procrustes (0: alike) compare class means. Entropies in nats, rows on the unit "
    "sphere; those of one estimator compare, different ones do not."
  )
  return join(
    tag("h3", "Inside the embeddings"),
    grids,
    tag("p", note + _last(found.rule), class_="note"),
  )


def _cell(own: dict[str, protocol.Interval], name: str) -> str:
  keys = [k for k in (name, f"{name}/val", f"{name}/target") if k in own]
  percent = name == "domain_accuracy"
  show = lambda v: f"{100 * v:.1f}" if percent else f"{v:.2f}"
  return " → ".join(show(own[k].mean) for k in keys) or "–"


def maps(found: EmbeddingMaps | None, ids: Iterator[str]) -> Markup:
  """A figure for each network."""
  if found is None or not found.maps:
    return Markup()
  note = (
    f"Two principal components of the embeddings of source validation and target rows; "
    f"{found.target} held out, seed {found.seed}. Numbers stand at the median of a "
    "class in the sources, framed in the target: a framed number far from its own, or "
    "at another, is a class that has moved. Classes that overlap here may lie apart in "
    "the directions that are not shown."
  )
  said = lambda t: (
    "Encoders trained alone." if t == "alone" else f"Encoders trained with {t}."
  )
  figures = [
    blocks.figure(embedding_map(found, t), next(ids), said(t), wide=True)
    for t in found.trainings
  ]
  return join(
    tag("h3", "Embeddings in two dimensions"), tag("p", note, class_="note"), figures
  )


def _last(rule: str) -> str:
  return " Networks of the last step." if rule == "last" else ""
