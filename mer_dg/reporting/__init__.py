"""Records of evaluations, and the tables and plots made from them alone."""

from mer_dg.reporting.files import write_atomic
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
from mer_dg.reporting.records import (
  Record,
  append_records,
  device_name,
  git_revision,
  make_record,
  read_records,
  stable_hash,
)
from mer_dg.reporting.report import write_report
from mer_dg.reporting.stress import corrupted, missing_modality, reliability
from mer_dg.reporting.tables import Row, Table, build_table

__all__ = [
  "Record",
  "Row",
  "Table",
  "append_records",
  "build_table",
  "corrupted",
  "device_name",
  "difference_plot",
  "git_revision",
  "learning_curves",
  "make_record",
  "missing_modality",
  "missing_plot",
  "rank_plot",
  "read_records",
  "reliability",
  "reliability_plot",
  "save_figure",
  "severity_plot",
  "stable_hash",
  "target_plot",
  "to_csv",
  "to_latex",
  "to_markdown",
  "write_atomic",
  "write_report",
]
