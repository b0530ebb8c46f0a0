"""The report: the answer first, files in place, several datasets apart."""

import re

import pytest

from mer_dg import reporting


def test_report_answers_writes_every_file_and_labels_the_extras(tmp_path, experiment):
  text = reporting.write_report(tmp_path, experiment, title="Toy")
  folder = tmp_path / "report"
  names = {p.name for p in folder.iterdir()}
  plots = {
    f"{stem}.{end}"
    for stem in ("targets", "differences", "curves")
    for end in ("png", "svg")
  }
  assert names == {"index.html", "table.md", "table.csv", "table.tex", *plots}
  assert (folder / "table.md").read_text() == text
  assert all((folder / name).exists() for name in re.findall(r"\]\((.*?)\)", text))
  lines = text.splitlines()
  assert lines[0] == "# Toy"
  assert lines[2].startswith("- **mer** against erm: **better**; +10.0 [")
  assert lines[2].endswith("over 6 pairs; ahead on 2 of 2 targets.")
  headings = [line for line in lines if line.startswith("### ")]
  assert [h.split()[1] for h in headings] == ["Last", "Oracle"]
  assert (folder / "table.tex").read_text().count(r"\begin{table}") == 3


def test_no_verdict_without_significance(tmp_path, experiment):
  two = [r for r in experiment if r["seed"] < 2 and r["target"] == "a"]
  text = reporting.write_report(tmp_path, two)
  assert "**not shown to differ**; +9.5" in text  # Two pairs: p = 1/2.


def test_a_worse_method_is_called_worse(tmp_path, experiment):
  text = reporting.write_report(tmp_path, experiment, reference="mer")
  assert "**erm** against mer: **worse**; -10.0" in text


def test_several_datasets_get_their_own_tables(tmp_path, experiment):
  other = [
    {**r, "dataset": "other/set", "data_version": "9", "run_id": "o" + r["run_id"]}
    for r in experiment
    if r["step"] == 20
  ]
  text = reporting.write_report(tmp_path, experiment + other)
  assert "## toy (video + audio)" in text
  assert "## other/set (video + audio)" in text
  names = {p.name for p in (tmp_path / "report").iterdir()}
  assert "targets-toy-video-audio.png" in names
  assert "targets-other-set-video-audio.svg" in names
  assert "curves-other-set-video-audio.png" not in names  # One step has no curve.


def test_without_the_reference_there_is_a_table_and_a_remark(tmp_path, experiment):
  only = [r for r in experiment if r["method"] == "mer"]
  text = reporting.write_report(tmp_path, only)
  assert "No paired difference: no records of erm beside mer." in text
  assert not (tmp_path / "report" / "differences.png").exists()


def test_records_of_two_data_versions_are_refused_before_anything_is_written(
  tmp_path, make
):
  mixed = [make(), make(method="mer", data_version="2")]
  with pytest.raises(ValueError, match="different data_version"):
    reporting.write_report(tmp_path, mixed)
  assert not list((tmp_path / "report").glob("*"))


def test_an_empty_report_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="no records"):
    reporting.write_report(tmp_path, [])


def test_inner_runs_add_a_table_of_leave_one_source_out(tmp_path, make):
  def runs(w, target, sources, value):
    metrics = {"val/accuracy": 1 - w, "target/accuracy": value}
    fields = dict(hyper={"w": w}, target=target, sources=sources, metrics=metrics)
    return make(method="erm", **fields)

  # Source validation prefers w = 0, the left-out sources prefer w = 0.5.
  inner = [
    runs(w, s, [o], 0.4 + w) for w in (0.0, 0.5) for s, o in (("a", "b"), ("b", "a"))
  ]
  final = [runs(w, "t", ["a", "b"], 0.25 + w) for w in (0.0, 0.5)]
  text = reporting.write_report(tmp_path, final, inner=inner)
  head, _, rest = text.partition("### Setting and step chosen on left-out sources")
  assert "25.0" in head
  assert "75.0" in rest.partition("### Oracle")[0]
  assert "2 hyperparameter settings tried" in rest
  page = (tmp_path / "report" / "index.html").read_text()
  assert "Setting and step chosen on left-out sources" in page
  assert "leave_one_source_out" in (tmp_path / "report" / "table.csv").read_text()


def test_the_headline_may_be_repaired_validation(tmp_path, experiment):
  """Re-paired validation prefers step 30 here, which is 5 points better."""
  records = []
  for record in experiment:
    best = record["step"] == 30
    more = {"val/repaired/accuracy": 0.5 + 0.1 * best, "val/repaired/nll": 1.0}
    records.append(record | {"metrics": record["metrics"] | more})
  text = reporting.write_report(tmp_path, records, rule="repaired_val")
  head, _, rest = text.partition("### Checkpoint selected on source validation\n")
  # Means of ERM over targets at steps 30 and 20: (.52 + .32) / 2 with and without .05.
  assert "47.0" in head.split("| erm")[1].splitlines()[0]
  assert "42.0" in rest.split("| erm")[1].splitlines()[0]
  assert "modalities re-paired within class" in head
  # Records without it have no such table.
  plain = reporting.write_report(tmp_path / "old", experiment)
  assert "re-paired" not in plain
