"""Leaning on pairings: validation lost by re-pairing, from records alone."""

import pytest

from mer_dg import reporting
from mer_dg.reporting import reliance


@pytest.fixture
def records(make):
  """Two methods on two targets; ERM loses 0.4 and 0.2 by re-pairing, MER 0.1."""
  rows = []
  for method, losses in (("erm", (0.4, 0.2)), ("mer", (0.1, 0.1))):
    for target, loss in zip("ab", losses, strict=True):
      for step, val in ((10, 0.5), (20, 0.9)):
        metrics = {
          "val/accuracy": val,
          "val/nll": 1.0,
          "val/repaired/accuracy": val - loss,
          "val/repaired/nll": 1.0,
          "target/accuracy": 0.6,
        }
        rows.append(make(method=method, target=target, step=step, metrics=metrics))
  return rows


def test_what_is_lost_is_that_of_the_selected_step(records):
  found = reliance.reliance(records)
  means = {m: [part.mean for part in parts] for m, parts in found.methods.items()}
  assert means["erm"] == pytest.approx([0.9, 0.6, 0.3, 0.6])
  assert means["mer"] == pytest.approx([0.9, 0.8, 0.1, 0.6])
  header, body = reliance.cell_texts(found)
  assert header[3] == "lost"
  assert [line[3] for line in body] == ["+30.0", "+10.0"]


def test_it_stands_in_the_report_and_on_the_page(records, tmp_path):
  text = reporting.write_report(tmp_path, records)
  assert "### Leaning on pairings" in text
  page = (tmp_path / "report" / "index.html").read_text()
  assert "Leaning on pairings" in page
  assert "+30.0" in page


def test_nothing_is_shown_without_repaired_rows_or_of_one_modality(records, make):
  assert reliance.reliance([make()]) is None
  single = [r | {"modalities": ["video"]} for r in records]
  assert reliance.reliance(single) is None
  assert reliance.reliance([]) is None
