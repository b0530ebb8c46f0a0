"""The one command for a GPU, in tiny shapes on whatever there is."""

import subprocess

import pytest

from benchmarks import one_table


def test_rows_of_other_tables_become_rows_of_one():
  text = (
    "words\n| runs | runs/s | ratio |\n|---:|---:|---:|\n| 1 | 2.0 | **3** |\n\nend"
  )
  assert list(one_table.rows(text)) == [("runs 1", "runs/s 2.0; ratio **3**")]


@pytest.mark.slow
def test_every_benchmark_runs_and_the_table_has_a_row_of_each(repo_root, tmp_path):
  script = repo_root / "benchmarks" / "all_gpu.sh"
  subprocess.run([script, "--tiny", tmp_path], check=True, timeout=1500)
  lines = (tmp_path / "table.md").read_text().splitlines()
  names = {line.split("|")[1].strip() for line in lines[2:]}
  assert names == {"entropy", "grid", "resident", "encoders", "video_step"}
  assert not [line for line in lines if "failed with" in line]
