"""A file system that is full, really: one sentence, nothing lost, and it goes on.

A single run, a table and a benchmark write to a small file system of their own (a
tmpfs, which only root can mount) that is full at a random moment. Made larger, it takes
the same command to the end; the records are those of a run that always had room.
"""

import os
import random
import secrets
import subprocess

import pytest

from tests.system.test_kills import KINDS, read_all, start

SIZES = 4


def _mount(*options, folder):
  found = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)],
    capture_output=True,
    text=True,
    check=False,
  )
  if found.returncode:
    pytest.skip(f"no tmpfs can be mounted: {found.stderr.strip()}")


def _ends(kind, folder, repo_root):
  process = start(KINDS[kind], folder, repo_root)
  out, _ = process.communicate(timeout=900)
  return process.returncode, out


@pytest.fixture
def disk(tmp_path):
  folder = tmp_path / "disk"
  folder.mkdir()
  yield folder
  subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_full_at_a_random_moment(kind, repo_root, tmp_path, disk, capsys):
  seed = int(os.environ.get("MER_DG_SEED", secrets.randbits(32)))
  rng = random.Random(seed)
  _mount("size=256m", folder=disk)
  assert _ends(kind, disk / "whole", repo_root)[0] == 0
  # Blocks of 4 KiB, as the disk counts them.
  used = sum(-(-f.stat().st_size // 4096) for f in disk.rglob("*") if f.is_file())
  expected = read_all(disk / "whole")
  subprocess.run(["umount", str(disk)], check=True)
  told = []
  for share in [0.02, *(rng.uniform(0.05, 0.95) for _ in range(SIZES - 1))]:
    size = max(4, int(4 * used * share))
    _mount(f"size={size}k", folder=disk)
    code, out = _ends(kind, disk / "w", repo_root)
    if code:  # Else what is written over and over fits after all.
      *_, last = out.strip().splitlines()
      assert "Traceback" not in out, out[-3000:]
      assert "No space left" in last, out[-3000:]
      assert str(disk) in last, last
      told.append(last)
    _mount("remount", "size=256m", folder=disk)
    code, out = _ends(kind, disk / "w", repo_root)
    assert code == 0, out[-3000:]
    assert read_all(disk / "w") == expected
    assert {p.name for p in (disk / "w").iterdir()} >= {"done", "report"}
    subprocess.run(["umount", str(disk)], check=True)
  with capsys.disabled():
    print(f"\n{kind}: MER_DG_SEED={seed}, full in {len(told)} of {SIZES} times")
  assert len(told) >= 2
