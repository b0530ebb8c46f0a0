"""Tables are functions of records; the numbers are checked by hand."""

import io
import math
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from mer_dg import reporting
from mer_dg.reporting import names, tables


@pytest.fixture
def table(experiment):
  return reporting.build_table(experiment, reference="erm")


def cells(table):
  header, body = tables.grid(table)
  return {line[0]: dict(zip(header, line, strict=True)) for line in body}


def test_rows_hold_the_numbers_of_the_selected_step(table):
  assert [r.method for r in table.rows] == ["erm", "mer"]  # The reference first.
  assert table.targets == ("a", "b")
  erm, mer = table.rows
  np.testing.assert_allclose(erm.targets["a"].mean, 0.52)
  np.testing.assert_allclose(mer.targets["b"].mean, 0.42)
  np.testing.assert_allclose(erm.mean.mean, 0.42)
  np.testing.assert_allclose(erm.source_val.mean, 0.9)
  np.testing.assert_allclose(mer.difference.mean, 0.1)
  np.testing.assert_allclose(mer.differences["a"].mean, 0.1)
  # t(0.975, 2) = 4.3027; seeds .50 .52 .54 have a deviation of .02.
  half = 4.3027 * 0.02 / math.sqrt(3)
  np.testing.assert_allclose(erm.targets["a"].high, 0.52 + half, rtol=1e-4)
  # All 6 paired differences are positive: p = 2 / 2^6; one comparison adjusts nothing.
  assert mer.difference.p == mer.p_holm == 2 / 2**6


@pytest.mark.parametrize(
  ("rule", "mean"),
  [("source_val", 0.42), ("re-paired_val", 0.47), ("last", 0.47), ("oracle", 0.47)],
)
def test_every_rule_takes_its_step(experiment, rule, mean):
  # Re-paired validation of ERM is .7 at steps 10 and 30, with the lower NLL at 30.
  table = reporting.build_table(experiment, rule=rule, reference="erm")
  np.testing.assert_allclose(table.rows[0].mean.mean, mean)


def test_left_out_sources_choose_setting_and_step(make):
  def runs(w, target, sources, value):
    metrics = {"val/accuracy": 1 - w, "target/accuracy": value}
    return make(hyper={"w": w}, target=target, sources=sources, metrics=metrics)

  # Source validation prefers w = 0, the left-out sources prefer w = 0.5.
  inner = [runs(w, s, [o], 0.4 + w) for w in (0.0, 0.5) for s, o in ("ab", "ba")]
  final = [runs(w, "t", ["a", "b"], 0.25 + w) for w in (0.0, 0.5)]
  rule = "leave_one_source_out"
  (row,) = reporting.build_table(final, rule=rule, inner=inner).rows
  assert (row.mean.mean, row.trials) == (0.75, 2)
  (row,) = reporting.build_table(final, inner=inner).rows
  assert row.mean.mean == 0.25


def test_cells_show_numbers_marks_and_no_interval_of_few_seeds(table):
  found = cells(table)
  assert [*found["erm" if "erm" in found else "ERM"]] == [
    *("method", "mean", "difference to ERM", "source val.", "a", "b")
  ]
  # Three seeds: the t interval of a target would be ± 5.0, and is not shown.
  assert (found["ERM"]["a"], found["ERM"]["a"].mark) == ("52.0", "second")
  assert (found["mer"]["a"], found["mer"]["a"].mark) == ("62.0", "best")
  assert found["mer"]["mean"].startswith("52.0 ± ")
  assert found["ERM"]["difference to ERM"] == "–"
  assert re.fullmatch(
    r"\+10\.0 \[\+10\.0, \+10\.0\], p = 0\.031", found["mer"]["difference to ERM"]
  )


def test_four_seeds_have_an_interval(make):
  runs = [
    make(seed=s, metrics={"val/accuracy": 1, "target/accuracy": 0.5 + 0.1 * s})
    for s in range(4)
  ]
  # t(0.975, 3) = 3.182, deviation .1291: ± 20.5. One target: no column of means.
  assert cells(reporting.build_table(runs))["ERM"]["d3"] == "65.0 ± 20.5"
  assert cells(reporting.build_table(runs[:3]))["ERM"]["d3"] == "60.0"
  assert "mean" not in cells(reporting.build_table(runs))["ERM"]


def test_a_missing_cell_is_a_dash_and_leaves_no_mean(experiment):
  part = [r for r in experiment if (r["method"], r["target"]) != ("mer", "b")]
  table = reporting.build_table(part, reference="erm")
  mer = table.rows[1]
  assert mer.mean is mer.difference is None
  assert list(mer.differences) == ["a"]
  found = cells(table)["mer"]
  assert [found["b"], found["mean"], found["difference to ERM"]] == ["–"] * 3


def test_pairs_are_equal_seeds_only(experiment):
  part = [r for r in experiment if (r["method"], r["seed"]) != ("mer", 2)]
  mer = reporting.build_table(part, reference="erm").rows[1]
  # Seeds 0 and 1 have gains .09 and .10; unpaired means would differ by .085.
  np.testing.assert_allclose(mer.difference.mean, 0.095)
  assert mer.difference.n == 4


def as_method(records, name):
  own = [r for r in records if r["method"] == "mer"]
  return [r | {"method": name, "run_id": name + r["run_id"]} for r in own]


def test_holm_is_used_with_more_than_one_comparison(experiment):
  table = reporting.build_table(
    experiment + as_method(experiment, "mm"), reference="erm"
  )
  assert [r.p_holm for r in table.rows[1:]] == [4 / 2**6, 4 / 2**6]
  assert not any(row.sure for row in table.rows)


def test_a_search_is_resolved_and_owned_up_to(make):
  def run(w, seed):
    metrics = {"val/accuracy": 0.5 + w, "target/accuracy": 0.9 - w}
    return make(hyper={"w": w}, seed=seed, metrics=metrics, trials=2)

  table = reporting.build_table([run(w, s) for w in (0.0, 0.1, 0.2) for s in (0, 1)])
  np.testing.assert_allclose(table.rows[0].targets["d3"].mean, 0.7)  # w = 0.2
  assert table.rows[0].trials == 3


def of_values(make, metric="accuracy", **values):
  return [
    make(method=m, metrics={f"val/{metric}": 1, f"target/{metric}": v})
    for m, v in values.items()
  ]


@pytest.mark.parametrize(
  ("metric", "values", "marks"),
  [
    ("accuracy", (0.50001, 0.50002, 0.4), ("best", "best", "second")),  # As printed.
    ("accuracy", (math.nan, 0.5, 0.4), ("", "best", "second")),
    ("nll", (1.5, 1.0, 0.5), ("", "second", "best")),  # Lower is better.
    ("accuracy", (0.5, 0.5, 0.5), ("", "", "")),
  ],
)
def test_best_and_second_are_marked(make, metric, values, marks):
  runs = of_values(make, metric, **dict(zip("xyz", values, strict=True)))
  found = cells(reporting.build_table(runs, metric=metric))
  assert tuple(found[m]["d3"].mark for m in "xyz") == marks
  assert found["x"]["d3"] == names.number(values[0], metric)


def test_latex_is_escaped_balanced_labelled_and_fits(make, experiment):
  runs = of_values(make, mer_x=0.6, **{"50%": 0.5, "x": 0.1})
  runs = [r | {"target": "a&b_c"} for r in runs]
  text = reporting.to_latex(reporting.build_table(runs))
  for piece in (r"mer\_x", r"a\&b\_c", r"50\%", r"\textbf{60.0}", r"\underline{50.0}"):
    assert piece in text, piece
  for piece in (r"\toprule", r"\label{tab:toy-video-audio-source-val}", r"\caption{"):
    assert piece in text, piece
  assert "booktabs" in text.splitlines()[0]
  assert text.count("{") == text.count("}")
  assert r"\begin{tabular}{lr}" in text
  text = reporting.to_latex(reporting.build_table(experiment, reference="erm"))
  lines = [line for line in text.splitlines() if line.startswith(("ERM &", "mer &"))]
  assert re.fullmatch(r"mer & \\textbf{52\.0 \$\\pm\$ .*} & \+10\.0\* & .*", lines[1])
  assert max(map(len, lines)) < 100  # No interval per target, no source validation.


def test_latex_of_many_domains_is_a_column_and_a_page(make):
  runs = [
    r | {"target": f"person {t}", "run_id": f"{t} {r['run_id']}"}
    for t in range(9)
    for r in of_values(make, **{"erm": 0.5, "heads+md": 0.6, "mer_kde": 0.1})
  ]
  table = reporting.build_table(runs, reference="erm")
  column, page = reporting.to_latex(table).split("\n\n")
  # 33 letters of 4 points beside two short columns: 3.25 inches are 234 points.
  assert r"\begin{tabular}{lrr}" in column
  assert "method & mean & difference \\\\" in column
  assert "Difference: paired, to ERM" in column
  assert r"\begin{table*}" in page
  assert r"\end{table*}" in page
  assert "difference & person 0 & " in page
  assert len({*re.findall(r"\\label{(.+?)}", column + page)}) == 2


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX here")
def test_latex_compiles_in_a_column(tmp_path, experiment):
  text = reporting.to_latex(reporting.build_table(experiment, reference="erm"))
  source = r"\documentclass[twocolumn]{article}\usepackage{booktabs}\begin{document}"
  (tmp_path / "t.tex").write_text(source + "\n" + text + r"\end{document}")
  words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
  done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stdout[-2000:]
  assert "Overfull" not in done.stdout  # It fits.


def test_csv_is_tidy_and_exact(experiment):
  frames = [reporting.to_frame(reporting.choose(experiment, r)) for r in names.RULES
            if r != "leave_one_source_out"]  # fmt: skip
  found = pd.read_csv(io.StringIO(reporting.to_csv(frames, "accuracy")))
  assert len(found) == 4 * 2 * 2 * 3  # Rules x methods x targets x seeds.
  assert found["modalities"].unique().tolist() == ["video+audio"]
  mean = found.groupby(["selection", "method", "target"])["value"].mean()
  np.testing.assert_allclose(mean["source_val", "mer", "a"], 0.62)
  one = found.query("selection == 'oracle' and method == 'erm' and target == 'b'")
  runs = [r for r in experiment if (r["method"], r["target"]) == ("erm", "b")]
  wanted = [r["metrics"]["target/accuracy"] for r in runs if r["step"] == 30]
  assert one["value"].tolist() == wanted
  assert one["source_val"].tolist() == [0.8] * 3
  assert one["step"].tolist() == [30] * 3


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@SUM(A1)", "\tx"])
def test_csv_holds_no_formula(make, name):
  rows = reporting.to_frame(reporting.choose([make(method=name, target=name)]))
  found = pd.read_csv(io.StringIO(reporting.to_csv([rows], "accuracy")))
  assert found.loc[0, "method"] == found.loc[0, "target"] == "'" + name


def test_markdown_cells_are_no_markup():
  text = names.pipe_table(["a|b"], [["<script>x"], ["[a](b)\n`c`"]])
  head, _, first, second = (line.strip("| ") for line in text.splitlines())
  assert (head, first, second) == (r"a\|b", "&lt;script>x", r"[a]\(b) 'c'")


@pytest.mark.parametrize("field", ["data_version", "config_hash", "dataset"])
def test_records_that_must_not_be_mixed_are_refused(make, field):
  with pytest.raises(ValueError, match=f"different {field}"):
    reporting.build_table([make(), make(method="mer", **{field: "other"})])


def test_bad_requests(experiment, make):
  with pytest.raises(ValueError, match=r"reference='irm' is not one of \('mer', 'erm"):
    reporting.build_table(experiment, reference="irm")
  with pytest.raises(ValueError, match="no metric 'val/f1'"):
    reporting.build_table(experiment, metric="f1")
  with pytest.raises(ValueError, match="no metric 'target/accuracy'"):
    reporting.build_table([make(metrics={"val/accuracy": 1})])
  with pytest.raises(ValueError, match="no records"):
    reporting.build_table([])
