"""Records of evaluations, and the tables and plots made from them alone."""

from mer_dg.reporting.formats import to_csv, to_latex, to_markdown
from mer_dg.reporting.plots import (
  difference_plot,
  learning_curves,
  missing_plot,
  rank_plot,
  reliability_plot,
  save_figure,
  severity_plot,
  target_plot,
)
from mer_dg.reporting.report import write_report
from mer_dg.reporting.stress import corrupted, missing_modality, reliability
from mer_dg.reporting.tables import Row, Table, build_table

__all__ = [
  "Row",
  "Table",
  "build_table",
  "corrupted",
  "difference_plot",
  "learning_curves",
  "missing_modality",
  "missing_plot",
  "rank_plot",
  "reliability",
  "reliability_plot",
  "save_figure",
  "severity_plot",
  "target_plot",
  "to_csv",
  "to_latex",
  "to_markdown",
  "write_report",
]
