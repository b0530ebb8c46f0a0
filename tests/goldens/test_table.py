"""The whole program gives the records of the committed file."""

import numpy as np

from mer_dg import protocol
from tests.goldens import table


def _by_run(path):
  key = lambda r: (r["method"], r["target"], r["seed"], r["step"])
  return {key(r): r["metrics"] for r in protocol.read_records(path)}


def test_the_small_table_is_that_of_the_file(tmp_path):
  expected = _by_run(table.PATH)
  found = _by_run(table.train(tmp_path / "table"))
  assert set(found) == set(expected)
  for run, metrics in expected.items():
    assert set(found[run]) >= set(metrics), run
    for name, value in metrics.items():
      # Another processor rounds otherwise, and one row of 40 may change its side.
      near = dict(atol=0.03) if "accuracy" in name else dict(rtol=5e-3, atol=5e-3)
      if "reliability" in name or name.endswith("ece"):
        continue  # A row that changes its bin moves these at will.
      np.testing.assert_allclose(
        found[run][name], value, **near, err_msg=f"{run} {name}"
      )
