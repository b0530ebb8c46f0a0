"""Pages that are made from what they describe."""

import importlib.util
import re

import pytest


@pytest.fixture(scope="module")
def pages(repo_root):
  spec = importlib.util.spec_from_file_location("_pages", repo_root / "docs/_pages.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_leaderboard_is_that_of_the_records(pages, repo_root):
  text = pages.leaderboard()
  assert (repo_root / "docs" / "leaderboard.md").read_text() == text
  assert text.count("\n## ") >= 6
  # docs/results/field_cooccurrence/report.md has the same numbers.
  assert "71.5 ± 3.7 | +28.5 [+26.7, +30.4]" in text


def test_pages_quote_reports_as_they_are(pages, tmp_path, monkeypatch):
  for page in pages.QUOTING:
    assert pages.quoted(page.read_text()) == page.read_text()
  monkeypatch.setattr(pages, "DOCS", tmp_path)
  (tmp_path / "results" / "x").mkdir(parents=True)
  report = "# x\n\n### All of it\n\nnew\n\n### More\n\nother\n"
  (tmp_path / "results" / "x" / "report.md").write_text(report)
  page = "a\n<!-- x/report.md: All of it -->\n\n{}\n\n<!-- end -->\nb\n"
  assert pages.quoted(page.format("old")) == page.format("new")


def test_results_can_be_read_to_the_end(repo_root):
  assert len((repo_root / "docs/results.md").read_text().splitlines()) <= 300


def test_the_gallery_has_a_figure_of_every_table(pages):
  text, drawn = pages.gallery()
  assert text.count("\n## ") == pages.leaderboard().count("\n## ")
  assert {*re.findall(r"\]\(gallery/(\S+\.svg)\)", text)} == drawn.keys()
  (field,) = (svg for name, svg in drawn.items() if name.startswith("field_cooc"))
  assert b"SimMMDG" in field
  assert b"MER (kde)" in field


def test_the_page_of_fields_has_every_field_with_default_and_comment(pages):
  from configs import common

  config = common.get_config()
  rows = dict(
    line.split(" | ", 1) for line in pages.fields().splitlines() if line[:3] == "| `"
  )
  names = {name.strip("| `") for name in rows}
  leaves = {
    ".".join(path) for path in _leaves(config) if path[0] not in ("recipes", "search")
  }
  assert leaves - {"benchmark.datasets"} <= names
  assert rows["| `data.val_fraction`"].startswith("`0.2` | Of each source domain")


def _leaves(config, above=()):
  for name, value in config.items():
    if hasattr(value, "items"):
      yield from _leaves(value, (*above, name))
    else:
      yield (*above, name)
