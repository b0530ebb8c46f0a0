"""The time that is left is told once, from what follows compilation."""

import pytest

from mer_dg.training import progress


@pytest.mark.parametrize(
  ("seconds", "told"), [(1.0, []), (100.0, ["About 13 minutes are left. Fewer seeds."])]
)
def test_a_long_table_says_so_once(monkeypatch, seconds, told):
  clock = iter([500.0 + seconds * i for i in range(10)])  # The first chunk compiles.
  monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
  with progress.Progress(1000, 0, "", "Fewer seeds.") as bar:
    lines = []
    monkeypatch.setattr(bar, "write", lines.append)
    for _ in range(5):
      bar.add(100, {"loss": 1.0})
  assert lines == told
