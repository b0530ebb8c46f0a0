"""The runs under docs/results still give the numbers that are written beside them."""

import re

import pandas as pd
import pytest

from mer_dg import reporting
from tests.factories import record


def sections(text):
  """``(name, {method: {column: text}})`` of the first table of every set."""
  for block in text.split("\n## ")[1:]:
    lines = [[cell.strip(" *") for cell in line.strip("|").split("|")]
             for line in block.splitlines() if line.startswith("|")]  # fmt: skip
    if lines[0][0] == "method":
      rows = [dict(zip(lines[0], line, strict=True)) for line in lines[2:8]]
      yield block.splitlines()[0], {row["method"]: row for row in rows}


def records(runs):
  return [
    record(
      method=r.method, target=r.target, sources=["s"], seed=r.seed,
      split_seed=r.split_seed,
      metrics={f"val/{r.metric}": 0.5, f"target/{r.metric}": r.value},
    )
    for r in runs.itertuples()
  ]  # fmt: skip


def numbers(text):
  found = re.sub(r"−", "-", text)
  return [float(x) for x in re.findall(r"[-+]?\d+\.\d+", found)]


@pytest.mark.parametrize("name", ["benchmark", "benchmark_protocols"])
def test_runs_give_the_written_tables(repo_root, name):
  folder = repo_root / "docs" / "results" / name
  runs = pd.read_csv(folder / "table.csv").query("selection == 'source_val'")
  count = 0
  for title, rows in sections((folder / "report.md").read_text()):
    data, _, assigned = title.partition("), ")
    dataset, _, modalities = data.rstrip(")").partition(" (")
    key = dataset, modalities.replace(" + ", "+")
    key = (*key, (assigned or "leave one domain out").replace(" ", "_"))
    own = records(runs.set_index(["dataset", "modalities", "protocol"]).loc[key])
    made = reporting.build_table(own, metric="balanced_accuracy", reference="erm")
    assert {row.method for row in made.rows} == set(rows)
    for row in made.rows:
      shown = rows[row.method]
      intervals = {"mean": row.mean, **row.targets}
      for column, found in intervals.items():
        half = (found.high - found.low) / 2
        assert numbers(shown[column]) == pytest.approx(
          [100 * found.mean, 100 * half], abs=0.051
        ), (title, row.method, column)
        count += 1
      if d := row.difference:
        wanted = [100 * d.mean, 100 * d.low, 100 * d.high, row.p_holm]
        shown = shown["paired difference to erm"].replace("p < 0.001", "p = 0.000")
        tolerance = [0.051, 0.051, 0.051, 0.0011]
        for a, b, t in zip(numbers(shown), wanted, tolerance, strict=True):
          assert a == pytest.approx(b, abs=t), (title, row.method)
  assert count > 80
