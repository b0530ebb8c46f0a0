"""What a user gets from installing and importing the package, before any training."""

import ast
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
import tomllib

import pytest

import mer_dg
from tests import break_it

HEAVY = (
  "absl",
  "data_prep",
  "etils",
  "flax",
  "grain",
  "matplotlib",
  "ml_collections",
  "optax",
  "orbax",
  "pandas",
  "tensorboardX",
  "tensorflow",
  "tensorflow_datasets",
  "torch",
)


@pytest.fixture(scope="module")
def pyproject(repo_root):
  return tomllib.loads((repo_root / "pyproject.toml").read_text())


def _modules_after(statement: str, cwd) -> set[str]:
  """Names in sys.modules of a fresh interpreter that ran `statement`."""
  code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", code],
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_gives_the_losses_and_nothing_heavy(repo_root):
  before = _modules_after("import jax, jax.numpy", repo_root)
  after = _modules_after("import mer_dg", repo_root)
  roots = {name.partition(".")[0] for name in after - before}
  assert not roots & set(HEAVY)
  # Modules, not seconds, so that a busy machine cannot fail it. Beyond JAX itself the
  # package may add its own modules and a handful of others (one in 2026-11); one
  # framework among its imports would add hundreds (optax 250, flax.linen 400).
  foreign = [
    name for name in after - before if name.partition(".")[0] not in ("mer_dg", "jax")
  ]
  assert len(foreign) < 30, sorted(foreign)


def test_training_rooms_are_not_imported_by_the_package(repo_root):
  after = _modules_after("import mer_dg", repo_root)
  rooms = {name.split(".")[1] for name in after if name.startswith("mer_dg.")}
  assert not rooms & {
    "data",
    "evaluation",
    "experiments",
    "methods",
    "networks",
    "reporting",
    "training",
  }


@pytest.mark.parametrize("name", sorted(mer_dg.__all__))
def test_public_name_resolves_and_is_documented(name):
  value = getattr(mer_dg, name)
  if inspect.ismodule(value) or callable(value):
    assert (inspect.getdoc(value) or "").strip(), f"mer_dg.{name} has no docstring"


def test_all_is_sorted_out_of_duplicates_and_private_names():
  names = [name for name in mer_dg.__all__ if name != "__version__"]
  assert len(set(names)) == len(names)
  assert not [name for name in names if name.startswith("_")]


def test_one_version_everywhere(repo_root):
  assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", mer_dg.__version__)
  citation = (repo_root / "CITATION.cff").read_text()
  assert re.search(r"^version: (\S+)$", citation, re.M)[1] == mer_dg.__version__
  try:
    installed = importlib.metadata.version("mer-dg")
  except importlib.metadata.PackageNotFoundError:
    pytest.skip("mer-dg is on the path but not installed")
  assert installed == mer_dg.__version__


def test_core_needs_three_packages(pyproject):
  names = {
    re.match(r"[\w-]+", need)[0] for need in pyproject["project"]["dependencies"]
  }
  assert names == {"jax", "numpy", "scipy"}


def _imports(path) -> set[str]:
  """Full names that a source file imports, wherever in the file."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text(), str(path))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def test_only_networks_imports_flax_linen(repo_root):
  # The import contracts in pyproject.toml cannot name a part of a foreign package.
  package = repo_root / "mer_dg"
  allowed = package / "networks"
  offenders = {
    str(path.relative_to(repo_root)): sorted(bad)
    for path in package.rglob("*.py")
    if allowed not in path.parents
    and (bad := {n for n in _imports(path) if n.startswith(("flax.linen", "flax.nnx"))})
  }
  assert not offenders


def test_every_foreign_import_is_declared(repo_root, pyproject):
  """A name that works only because another package happens to pull it in is a trap."""
  module_of = {  # Distribution name -> module name, where they differ.
    "absl-py": "absl",
    "array-record": "array_record",
    "ml-collections": "ml_collections",
    "orbax-checkpoint": "orbax",
    "Pillow": "PIL",
    "scikit-learn": "sklearn",
    "tensorflow-datasets": "tensorflow_datasets",
  }

  def modules(requirements):
    names = (re.match(r"[\w-]+", need)[0] for need in requirements)
    return {module_of.get(name, name) for name in names}

  extras = pyproject["project"]["optional-dependencies"]
  core = modules(pyproject["project"]["dependencies"]) | {"jaxlib"}
  train = core | modules(extras["train"])
  data = train | modules(extras["data"])
  convert = data | modules(extras["reference"])  # PyTorch files are read by PyTorch.
  ours = {"mer_dg", "data_prep", "configs", "main"}
  for folder, declared in (
    ("mer_dg", data),  # Prepared sets are read through the data extra, where asked.
    ("configs", train),
    ("data_prep", convert),
  ):
    for path in (repo_root / folder).rglob("*.py"):
      roots = {name.partition(".")[0] for name in _imports(path)}
      foreign = roots - declared - ours - sys.stdlib_module_names
      assert not foreign, f"{path.relative_to(repo_root)} imports {sorted(foreign)}"


def test_readme_and_ci_install_and_test_by_the_same_command(repo_root):
  ci = (repo_root / ".ci" / "run").read_text()
  install = re.search(r"^install='(.+)'$", ci, re.M)[1]
  tests = re.search(r'^(pytest .+) "\$@"$', ci, re.M)[1]
  readme = (repo_root / "README.md").read_text()
  assert f"{install} && {tests}" in [line.strip() for line in readme.splitlines()]


def test_what_is_broken_on_purpose_is_there_to_be_broken(repo_root):
  for name, (file, old, new, tests) in break_it.BREAKS.items():
    assert (repo_root / "mer_dg" / file).read_text().count(old) == 1, name
    assert old != new
    assert (repo_root / "tests" / tests.split()[0]).exists(), name


def test_notebooks_are_committed_with_what_they_show(repo_root):
  notebooks = sorted((repo_root / "notebooks").glob("*.ipynb"))
  assert notebooks
  for path in notebooks:
    content = json.loads(path.read_text())
    assert content["metadata"]["kernelspec"]["language"] == "python", path.name
    cells = [c for c in content["cells"] if c["cell_type"] == "code"]
    # A cell that was edited since has no count: python notebooks/execute.py.
    counts = [c["execution_count"] for c in cells]
    assert counts == [*range(1, len(cells) + 1)], path.name
    assert not any("execution" in c["metadata"] for c in cells), f"{path.name}: times"
    outputs = [o for c in cells for o in c["outputs"]]
    assert outputs, path.name
    assert not [o for o in outputs if o["output_type"] == "error"], path.name
    assert not [o for o in outputs if o.get("name") == "stderr"], path.name
