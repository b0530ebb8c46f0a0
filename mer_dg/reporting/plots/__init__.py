"""Plots of records, as matplotlib figures."""

from mer_dg.reporting.plots.comparison import (
  can_rank,
  difference_plot,
  rank_plot,
  target_plot,
)
from mer_dg.reporting.plots.curves import curve_figures, curve_panels, learning_curves
from mer_dg.reporting.plots.embedding import embedding_map
from mer_dg.reporting.plots.overview import can_compare, overview_plot
from mer_dg.reporting.plots.stress import (
  missing_plot,
  reliability_plot,
  severity_plot,
)
from mer_dg.reporting.plots.style import save_figure

__all__ = [
  "can_compare",
  "can_rank",
  "curve_figures",
  "curve_panels",
  "difference_plot",
  "embedding_map",
  "learning_curves",
  "missing_plot",
  "overview_plot",
  "rank_plot",
  "reliability_plot",
  "save_figure",
  "severity_plot",
  "target_plot",
]
