"""Tables are functions of records; the numbers are checked by hand."""

import csv
import io
import math

import numpy as np
import pytest

from mer_dg import reporting
from mer_dg.reporting import formats


@pytest.fixture
def table(experiment):
  return reporting.build_table(experiment, reference="erm")


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
  # All 6 paired differences are positive: p = 2 / 2^6.
  assert mer.difference.p == 2 / 2**6
  assert mer.p_holm == mer.difference.p  # One comparison: nothing to adjust.


def test_other_rules_take_other_steps_and_say_so(experiment):
  last = reporting.build_table(experiment, rule="last")
  oracle = reporting.build_table(experiment, rule="oracle")
  for t in (last, oracle):  # Both are step 30: 5 points more on the target.
    np.testing.assert_allclose(t.rows[-1].targets["a"].mean, 0.57)
  assert "ORACLE" in reporting.to_markdown(oracle)
  assert "last step" in reporting.to_markdown(last)


def test_markdown_has_marks_numbers_and_what_they_cost(table):
  text = reporting.to_markdown(table)
  lines = text.splitlines()
  header = [c.strip() for c in lines[0].strip("|").split("|")]
  cells = [[c.strip() for c in x.strip("|").split("|")] for x in lines[2:4]]
  assert header == [
    *("method", "source val.", "a", "b", "mean", "paired difference to erm")
  ]
  assert cells[0][:3] == ["erm", "90.0 ± 0.0", "*52.0 ± 5.0*"]
  # Seeds of mer: .50 + .09, .52 + .10, .54 + .11, deviation .03: half 7.5 points.
  assert cells[1][2] == "**62.0 ± 7.5**"
  assert cells[1][-1].startswith("+10.0 [+9.")
  assert cells[1][-1].endswith("p = 0.031")
  assert len({len(line) for line in lines[:4]}) == 1  # Reads well in a terminal.
  for said in (
    *("accuracy (%) on toy (video + audio)", "selected on source validation"),
    *("3 seeds per target", "1 hyperparameter setting tried", "data version 1.0"),
    *("2 cores of some CPU", "0123456789-dirty", "Student t", "sign-flip"),
  ):
    assert said in text, said


def test_a_missing_cell_is_a_dash_and_leaves_no_mean(experiment):
  part = [r for r in experiment if (r["method"], r["target"]) != ("mer", "b")]
  table = reporting.build_table(part, reference="erm")
  mer = table.rows[1]
  assert mer.mean is None
  assert mer.difference is None
  assert list(mer.differences) == ["a"]
  row = reporting.to_markdown(table).splitlines()[3]
  assert [c.strip() for c in row.strip("|").split("|")][3:] == ["–", "–", "–"]


def test_pairs_are_equal_seeds_only(experiment):
  part = [r for r in experiment if (r["method"], r["seed"]) != ("mer", 2)]
  mer = reporting.build_table(part, reference="erm").rows[1]
  # Seeds 0 and 1 have gains .09 and .10; unpaired means would differ by .085.
  np.testing.assert_allclose(mer.difference.mean, 0.095)
  assert mer.difference.n == 4


def test_holm_is_used_with_more_than_one_comparison(experiment):
  mm = [
    {**r, "method": "mm", "run_id": "mm" + r["run_id"]}
    for r in experiment
    if r["method"] == "mer"
  ]
  table = reporting.build_table(experiment + mm, reference="erm")
  assert [r.p_holm for r in table.rows[1:]] == [4 / 2**6, 4 / 2**6]
  assert "Holm-adjusted over 2" in reporting.to_markdown(table)


def test_a_search_is_resolved_and_owned_up_to(make):
  def run(w, seed, val, tgt):
    metrics = {"val/accuracy": val, "target/accuracy": tgt}
    return make(method="mer", hyper={"w": w}, seed=seed, metrics=metrics)

  runs = [run(w, s, 0.5 + w, 0.9 - w) for w in (0.0, 0.1, 0.2) for s in (0, 1)]
  table = reporting.build_table(runs)
  np.testing.assert_allclose(table.rows[0].targets["d3"].mean, 0.7)  # w = 0.2
  assert table.rows[0].trials == 3
  assert "3 hyperparameter settings tried" in reporting.to_markdown(table)


def test_one_target_has_no_mean_column_and_one_method_no_marks(make):
  runs = [make(seed=s) for s in range(2)]
  text = reporting.to_markdown(reporting.build_table(runs))
  assert "mean |" not in text
  assert "*" not in text
  assert "difference" not in text


def test_equal_numbers_as_printed_share_the_mark(make):
  def run(method, value):
    return make(method=method, metrics={"val/accuracy": 1, "target/accuracy": value})

  values = {"x": 0.50001, "y": 0.50002, "z": 0.4}
  text = reporting.to_markdown(
    reporting.build_table([run(*item) for item in values.items()])
  )
  assert text.count("**50.0**") == 2
  assert text.count("*40.0*") == 1


def test_lower_is_better_for_nll_in_nats(experiment):
  table = reporting.build_table(experiment, metric="nll", reference="erm")
  text = reporting.to_markdown(table)
  # Step 20 has the lowest val/nll; ERM on a: 2 - .52 = 1.48, MER 1.38 is better.
  assert "*1.480 ± 0.050*" in text
  assert "**1.380 ± 0.075**" in text
  assert "(nats)" in text


def test_a_diverged_run_shows_and_is_never_best(make):
  def run(method, value):
    return make(method=method, metrics={"val/accuracy": 1, "target/accuracy": value})

  runs = [run("x", math.nan), run("y", 0.5), run("z", 0.4)]
  text = reporting.to_markdown(reporting.build_table(runs, reference="y"))
  row = next(line for line in text.splitlines() if line.startswith("| x"))
  assert "NaN" in row
  assert "*" not in row


def test_latex_is_escaped_and_balanced(make):
  runs = [
    make(method=m, target="a&b_c", metrics={"val/accuracy": 1, "target/accuracy": v})
    for m, v in (("mer_kde", 0.6), ("50%", 0.5), ("x", 0.1))
  ]
  text = reporting.to_latex(reporting.build_table(runs))
  for piece in (r"mer\_kde", r"a\&b\_c", r"50\%", r"\textbf{60.0}", r"\toprule"):
    assert piece in text, piece
  assert r"\underline{50.0}" in text
  assert text.count("{") == text.count("}")
  body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
  counts = {x.replace(r"\&", "").count("&") for x in body.splitlines() if "&" in x}
  assert counts == {2}
  assert r"\begin{tabular}{lrr}" in text


def test_pipes_in_names_do_not_break_markdown(make):
  text = reporting.to_markdown(reporting.build_table([make(target="a|b")]))
  assert r"a\|b" in text


def test_csv_has_every_run_at_full_precision(experiment, table):
  oracle = reporting.build_table(experiment, rule="oracle", reference="erm")
  lines = list(csv.DictReader(io.StringIO(reporting.to_csv([table, oracle]))))
  assert len(lines) == 2 * 2 * 3  # Tables x methods x (targets and mean).
  assert tuple(lines[0]) == formats.CSV_FIELDS
  (mer,) = [
    x
    for x in lines
    if (x["selection"], x["method"], x["target"]) == ("source_val", "mer", "a")
  ]
  values = [float(v.split(":")[1]) for v in mer["values"].split()]
  np.testing.assert_allclose(values, [0.59, 0.62, 0.65])
  assert [v.split(":")[0] for v in mer["values"].split()] == ["0/0", "1/0", "2/0"]
  np.testing.assert_allclose(float(mer["difference"]), 0.1)
  assert mer["p_holm"] == ""  # Adjusted over methods for the mean only.
  assert lines[0]["difference"] == ""  # The reference has none.


@pytest.mark.parametrize("field", ["data_version", "config_hash", "dataset"])
def test_records_that_must_not_be_mixed_are_refused(make, field):
  with pytest.raises(ValueError, match=f"different {field}"):
    reporting.build_table([make(), make(method="mer", **{field: "other"})])


def test_bad_requests(experiment):
  with pytest.raises(ValueError, match=r"reference='irm' is not one of \('mer', 'erm"):
    reporting.build_table(experiment, reference="irm")
  with pytest.raises(ValueError, match="no metric 'val/f1'"):
    reporting.build_table(experiment, metric="f1")
  with pytest.raises(ValueError, match="no records"):
    reporting.build_table([])
