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
from mer_dg.reporting import extras

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
  found = protocol.rank_methods(table.scores)
  wanted = {"ranks": found.ranks, "cd": found.critical_difference, "p": found.p}
  same(wanted, expected["ranks"])


@pytest.fixture(scope="module")
def frames(records):
  chosen = {rule: reporting.choose(records, rule) for rule in ("source_val", "last")}
  return {rule: reporting.to_frame(rows) for rule, rows in chosen.items()}


def by_method(lines):
  """``{method: {line: interval}}`` as the file has it."""
  methods = dict.fromkeys(m for cells in lines.values() for m in cells)
  return {m: {k: interval(v[m]) for k, v in lines.items()} for m in methods}


def test_missing_and_corrupted(frames, expected):
  found, rule = extras.missing(frames, "accuracy", "source_val")
  same({"rule": rule, "cells": by_method(found)}, expected["missing"])
  found, rule = extras.corrupted(frames, "accuracy", "source_val")
  cells = {
    key.replace(": ", "/"): {
      m: {s: interval(i) for s, i in curve.items()} for m, curve in panel.items()
    }
    for key, panel in found.items()
  }
  same({"rule": rule, "cells": cells}, expected["corrupted"])


def test_reliability_and_reliance(frames, expected):
  found = extras.reliability(frames["source_val"])
  assert found.keys() == expected["reliability"].keys()
  for m, bins in found.items():
    filled = [b for b in expected["reliability"][m] if b[0]]
    same(bins.to_numpy().tolist(), filled, m)
  found = extras.reliance(frames["source_val"], "accuracy")
  columns = ("source val.", "re-paired", "lost", "target")
  parts = {m: [interval(own[c]) for c in columns] for m, own in found.items()}
  same(parts, expected["reliance"])
  assert list(next(iter(found.values()))) == [*columns[:3], "NLL", "target"]


def test_inside(frames, expected):
  found, rule = extras.inside(frames, "source_val")
  cells = {}
  for modality, lines in found.items():
    for name, methods in lines.items():
      for m, sides in methods.items():
        own = cells.setdefault(f"{m}/{modality}", {})
        own |= {f"{name}/{k}".rstrip("/"): interval(v) for k, v in sides.items()}
  wanted = expected["inside"]
  same({"rule": rule, "names": list(found["m0"]), "cells": cells}, wanted)


def test_curves(records, expected):
  found = extras.curves(reporting.to_frame(records), "accuracy")
  cells = {
    title: {m: [[s, *interval(v)] for s, v in c.items()] for m, c in curves.items()}
    for (title, _), curves in found.items()
  }
  same(cells, expected["curves"])
