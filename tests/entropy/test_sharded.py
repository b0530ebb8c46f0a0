import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_value_and_gradient_on_eight_devices():
  # A hung collective ignores SIGTERM, hence -k.
  script = pathlib.Path(__file__).with_name("sharded_check.py")
  run = subprocess.run(
    ["timeout", "-k", "5", "300", sys.executable, str(script)],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 0, run.stdout + run.stderr
  lines = run.stdout.splitlines()
  assert len(lines) == 2 * 7  # two ways, 7 estimators
  assert all(line.startswith("ok ") for line in lines), run.stdout
