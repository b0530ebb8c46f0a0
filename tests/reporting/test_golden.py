"""The numbers of a report on a real table, as they were when this file was written.

``golden/results.jsonl`` are records of the program, thinned and rounded to 7 digits:

  python main.py --mode=diagnose --config=configs/cooccurrence.py \
    --config.total_steps=40 --config.eval_every=20 --config.log_every=20 \
    --config.seeds='(0,1)' --config.methods="('erm','heads','mer_kde','mm')"

(no training metrics, two corruptions at three severities, two entropies of the
embeddings). ``golden/expected.json`` are the numbers, intervals as mean, low, high.
"""

import json
import math
import pathlib

import pytest

from mer_dg import protocol, reporting
from mer_dg.reporting import embeddings, plots, reliance
from mer_dg.reporting.plots import curves

FOLDER = pathlib.Path(__file__).parent / "golden"


def interval(found):
  return None if found is None else [found.mean, found.low, found.high]


def row_numbers(row):
  return {
    "source_val": interval(row.source_val),
    "mean": interval(row.mean),
    "difference": interval(row.difference),
    "p": row.difference.p if row.difference else None,
    "p_holm": row.p_holm,
    "targets": {k: interval(v) for k, v in row.targets.items()},
    "differences": {k: [*interval(v), v.p] for k, v in row.differences.items()},
  }


@pytest.fixture(scope="module")
def records():
  return protocol.read_records(FOLDER / "results.jsonl")


@pytest.fixture(scope="module")
def expected():
  return json.loads((FOLDER / "expected.json").read_text())


def same(found, wanted, path=""):
  """Equal to eight digits; NaN is null."""
  if isinstance(wanted, dict):
    assert {str(k) for k in found} == set(wanted), path
    for k, v in found.items():
      same(v, wanted[str(k)], f"{path}/{k}")
  elif isinstance(wanted, list):
    assert len(found) == len(wanted), path
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
      same(a, b, f"{path}/{i}")
  elif wanted is None:
    assert found is None or math.isnan(found), path
  elif isinstance(wanted, str):
    assert found == wanted, path
  else:
    assert found == pytest.approx(wanted, rel=1e-8, abs=1e-12), path


def test_tables_of_every_rule(records, expected):
  for rule, wanted in expected["tables"].items():
    table = reporting.build_table(records, rule=rule, reference="erm")
    same({row.method: row_numbers(row) for row in table.rows}, wanted, rule)


def test_ranks(records, expected):
  table = reporting.build_table(records, reference="erm")
  found = protocol.rank_methods({row.method: row.values for row in table.rows})
  wanted = {"ranks": found.ranks, "cd": found.critical_difference, "p": found.p}
  same(wanted, expected["ranks"])


def test_stress(records, expected):
  found = reporting.missing_modality(records)
  cells = {m: {c: interval(i) for c, i in v.items()} for m, v in found.methods.items()}
  same({"rule": found.rule, "cells": cells}, expected["missing"])
  found = reporting.corrupted(records)
  cells = {
    "/".join(key): {
      m: {s: interval(i) for s, i in curve.items()} for m, curve in panel.items()
    }
    for key, panel in found.panels.items()
  }
  same({"rule": found.rule, "cells": cells}, expected["corrupted"])
  found = reporting.reliability(records).methods
  same(
    {m: [[b.share, b.confidence, b.accuracy] for b in v] for m, v in found.items()},
    expected["reliability"],
  )
  found = reliance.reliance(records).methods
  same({m: [*map(interval, v)] for m, v in found.items()}, expected["reliance"])


def test_inside_and_curves(records, expected):
  found = embeddings.representation(records)
  cells = {
    "/".join(k): {n: interval(i) for n, i in v.items()} for k, v in found.cells.items()
  }
  same(
    {"rule": found.rule, "names": list(found.names), "cells": cells},
    expected["inside"],
  )
  methods = list(expected["reliance"])
  of = lambda m: [r for r in records if r["method"] == m]
  same(
    {
      panel.title: {m: curves._curve(of(m), panel.name).tolist() for m in methods}
      for panel in plots.curve_panels(records)
    },
    expected["curves"],
  )
