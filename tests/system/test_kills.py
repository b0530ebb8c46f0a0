"""Random SIGKILLs: whatever is killed ends, started again, as if nothing had happened.

A single run, a table and a benchmark are killed at random moments, several times each,
until they end; their records are then those of a run that nobody disturbed.
"""

import os
import random
import secrets
import signal
import subprocess
import sys
import time

import pytest

from mer_dg.protocol import read_records

TINY = """
total_steps=60 eval_every=10 log_every=5 wave=1 network.embedding_dim=8
network.hidden_dim=16 network.classifier_dim=16 network.projector_dim=16
network.projection_dim=8 data.cooccurrence.num_domains=3
data.cooccurrence.train_per_domain=40 data.cooccurrence.val_per_domain=30
data.cooccurrence.test_per_domain=30 data.cooccurrence.widths=(6,5)
"""
FLAGS = [f"--config.{word}" for word in TINY.split()]
KINDS = {
  "single": ["--config=configs/cooccurrence.py:d1", "--config.method=mer_kde+mm+ema"],
  "table": [
    "--config=configs/cooccurrence.py",
    "--config.methods=('erm','mer_kde')",
    "--config.seeds=(0,1)",
  ],
  "benchmark": [
    "--mode=benchmark",
    "--config=configs/cooccurrence.py",
    "--config.methods=('erm',)",
    "--config.seeds=(0,)",
    "--config.benchmark.protocols=('leave_one_domain_out','target_alone')",
  ],
}
KILLS = 6


def start(words, folder, repo_root):
  return subprocess.Popen(
    [sys.executable, "main.py", *words, *FLAGS, f"--workdir={folder}"],
    cwd=repo_root,
    env=os.environ | {"PYTHONPATH": ""},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _seconds(words, folder, repo_root):
  """Runs to the end; how long it took."""
  began = time.monotonic()
  process = start(words, folder, repo_root)
  out, _ = process.communicate(timeout=900)
  assert process.returncode == 0, out[-2000:]
  return time.monotonic() - began


def read_all(folder):
  """Everything that must be equal, of all tables in a folder, in a fixed order."""
  found = []
  for path in sorted(folder.rglob("results.jsonl")):
    for record in read_records(path):
      kept = {k: v for k, v in record.items() if k not in ("wall_time_s", "time")}
      found.append((str(path.relative_to(folder)), kept["run_id"], kept["step"], kept))
  return sorted(found, key=lambda row: row[:3])


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_killed_again_and_again(kind, repo_root, tmp_path, capsys):
  seed = int(os.environ.get("MER_DG_SEED", secrets.randbits(32)))
  rng = random.Random(seed)
  _seconds(KINDS[kind], tmp_path / "whole", repo_root)
  # Again: what is compiled is kept, and a kill must come before the end.
  whole = _seconds(KINDS[kind], tmp_path / "warm", repo_root)
  killed = tmp_path / "killed"
  moments = []
  for _ in range(KILLS):
    after = rng.uniform(0.2, 0.9) * whole
    process = start(KINDS[kind], killed, repo_root)
    try:
      out, _ = process.communicate(timeout=after)
      assert process.returncode == 0, out[-2000:]
      break
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      process.communicate()
      moments.append(round(after, 2))
  with capsys.disabled():
    print(f"\n{kind}: MER_DG_SEED={seed}, killed after {moments} of {whole:.1f} s")
  _seconds(KINDS[kind], killed, repo_root)
  assert moments
  assert read_all(killed) == read_all(tmp_path / "whole")
  assert {p.name for p in killed.iterdir()} >= {"done", "report"}
