"""Thousands of damaged and hostile files: documented errors, little memory and time."""

import json
import os
import secrets
import subprocess
import sys
import time

import pytest

from tests.system import _fuzz

COUNTS = {"npz": 3000, "pickle": 3000, "pth": 3000, "safetensors": 3000}


# Of seed 1: what once hung, took all memory, raised something undocumented or passed on
# the advice to trust the file.
FOUND = {
  "npz": (
    39,
    50,
    51,
    53,
    58,
    83,
    398,
    479,
    480,
    503,
    661,
    702,
    713,
    847,
    961,
    967,
    970,
  ),
  "pickle": (161,),
  "pth": (1, 4, 6, 72, 104, 122, 131, 165, 173, 200, 207, 212, 280, 337, 348, 351, 422),
}


@pytest.mark.parametrize("kind", FOUND)
def test_mutations_that_found_something(kind, tmp_path):
  if kind == "pth":
    pytest.importorskip("torch")
  files, change, read = _fuzz.KINDS[kind]()
  for i in FOUND[kind]:
    path = tmp_path / f"{i}.{kind}"
    path.write_bytes(_fuzz.mutation(files, change, 1, i))
    assert _fuzz.outcome(read, path)[1] == "", i


@pytest.mark.slow
@pytest.mark.parametrize("kind", COUNTS)
def test_mutated_files(kind, repo_root, capsys):
  """``MER_DG_SEED=N`` repeats a run; the seed is printed whatever comes of it."""
  if kind == "pth":
    pytest.importorskip("torch")  # It writes the files to begin with.
  seed = int(os.environ.get("MER_DG_SEED") or secrets.randbelow(2**31))
  start = time.monotonic()
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "tests.system._fuzz",
      kind,
      str(seed),
      "0",
      str(COUNTS[kind]),
    ],
    cwd=repo_root,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=1800,
  )
  said = f"{kind}, MER_DG_SEED={seed}, {time.monotonic() - start:.0f} s"
  with capsys.disabled():
    print(f"\n{said}: {done.stdout.strip()[:400]}")
  assert done.returncode == 0, f"{said}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
  result = json.loads(done.stdout.splitlines()[-1])
  assert not result["wrong"], f"{said}: {result['wrong'][:5]}"
  assert sum(result["outcomes"].values()) == COUNTS[kind]
  assert result["more_MB"] < 600, said  # 256 MB of an archive, twice, at most.
  # A fuzzer that damages nothing, or everything at once, would prove nothing.
  assert result["outcomes"]["read"] < 0.7 * COUNTS[kind]
  assert result["outcomes"]["read"] > 0
