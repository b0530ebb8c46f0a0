"""Records to one long frame, and from it tables, figures and one page; no jax."""

from mer_dg.reporting.figures import save_figure
from mer_dg.reporting.frame import choose, pick, scores, to_frame
from mer_dg.reporting.names import pipe_table
from mer_dg.reporting.report import group_of, write_report
from mer_dg.reporting.tables import Row, Table, build_table, to_csv, to_latex

__all__ = [
  "Row",
  "Table",
  "build_table",
  "choose",
  "group_of",
  "pick",
  "pipe_table",
  "save_figure",
  "scores",
  "to_csv",
  "to_frame",
  "to_latex",
  "write_report",
]
