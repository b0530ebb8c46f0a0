"""Sdist to wheel to an empty environment to a table: what a user gets."""

import os
from pathlib import Path
import shutil
import subprocess
import sys
import zipfile

import pytest

import mer_dg
from tests.test_main import FLAGS

pytestmark = pytest.mark.slow


def _run(*words, cwd, **environment):
  clean = {
    k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")
  }
  done = subprocess.run(
    [*map(str, words)],
    cwd=cwd,
    env=clean | environment,
    capture_output=True,
    text=True,
    timeout=1800,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


@pytest.fixture(scope="module")
def wheel(repo_root, tmp_path_factory):
  """Built from the sdist, which was built from what git would publish."""
  folder = tmp_path_factory.mktemp("release")
  words = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
  names = _run(*words, cwd=repo_root).splitlines()
  for name in names:
    if (repo_root / name).is_file():
      (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / "tree" / name).write_bytes((repo_root / name).read_bytes())
  build = "from setuptools import build_meta as b; print(b.build_sdist('../dist'))"
  sdist = _run(sys.executable, "-c", build, cwd=folder / "tree").splitlines()[-1]
  pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
  _run(*pip, "-w", folder, folder / "dist" / sdist, cwd=folder)
  (found,) = folder.glob("*.whl")
  return found


def test_the_wheel_holds_the_package_and_its_configs(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  wanted = ["mer_dg/py.typed", "mer_dg/reporting/templates/page.html.j2"]
  wanted += ["configs/features.py", "configs/_stored.py", "data_prep/audit.py"]
  assert set(wanted) <= set(names)
  roots = {name.partition("/")[0] for name in names}
  assert {r for r in roots if not r.endswith("info")} == {
    *("mer_dg", "configs", "data_prep")
  }


def _interpreter(version: str) -> str:
  """A Python of this version: the running one, on the path or pyenv's; or a skip."""
  if sys.version_info[:2] == tuple(map(int, version.split("."))):
    return sys.executable
  root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
  found = [
    shutil.which(f"python{version}"),
    *root.glob(f"versions/{version}.*/bin/python"),
  ]
  says = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"
  for path in filter(None, found):  # A shim of pyenv is there without its Python.
    words = [str(path), "-c", says]
    said = subprocess.run(words, capture_output=True, text=True, check=False)
    if said.stdout.strip() == version:
      return str(path)
  pytest.skip(f"no Python {version} on this machine")


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_an_empty_environment_trains_a_table_in_an_empty_folder(
  wheel, tmp_path, version
):
  _run(_interpreter(version), "-m", "venv", "venv", cwd=tmp_path)
  programs = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
  python, command = programs / "python", programs / "mer-dg"
  _run(python, "-m", "pip", "install", "-q", wheel, cwd=tmp_path)
  losses = "import mer_dg, jax; print(mer_dg.entropy_regularizer)"
  assert "entropy_regularizer" in _run(python, "-c", losses, cwd=tmp_path)
  _run(python, "-m", "pip", "install", "-q", f"{wheel}[train]", cwd=tmp_path)
  _run(python, "-m", "pip", "check", cwd=tmp_path)
  empty = tmp_path / "empty"
  empty.mkdir()
  assert _run(command, "--version", cwd=empty) == f"mer-dg {mer_dg.__version__}\n"
  words = ("--config=cooccurrence", "--config.seeds=2", "--workdir=w", *FLAGS)
  out = _run(command, *words, "--config.methods=('erm','mer_kde')", cwd=empty)
  assert f"Workdir: {empty / 'w'}" in out
  assert out.endswith(f"Report: {empty / 'w' / 'report' / 'index.html'}\n")
  assert (empty / "w" / "report" / "index.html").stat().st_size > 10_000
  assert "mer-dg --config=cooccurrence" in (empty / "w" / "commands.txt").read_text()
  _run(python, "-m", "mer_dg", "--workdir=w", "--mode=report", cwd=empty)
