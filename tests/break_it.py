"""Breaks the code on purpose, one edit at a time; the quick tests must notice.

  python -m tests.break_it [WORD ...]  # all of them, or those whose name has a word

Each edit is made in a copy of the tree, where the tests that are named must pass
without it and fail with it. Not run by CI: for whoever makes tests cheaper or fewer.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Break(NamedTuple):
  """``old`` in ``file`` becomes ``new``; one of ``tests`` must fail."""

  file: str
  old: str
  new: str
  tests: str


BREAKS = {
  "mask: padding counts in a loss": Break(
    "mer_dg/losses/classification.py",
    "where = where.astype(values.dtype)",
    "where = jnp.ones_like(values)",
    "tests/losses/test_rows.py tests/losses/test_classification.py",
  ),
  "mask: a missing modality is mixed": Break(
    "mer_dg/mixing/mix.py",
    "member = eligible[None, :] & has",
    "member = eligible[None, :] & jnp.ones_like(has)",
    "tests/mixing/test_mix.py",
  ),
  "fold: validation rows train": Break(
    "mer_dg/data/splits.py",
    "train, val = rows[~in_val], rows[in_val]",
    "train, val = rows, rows[in_val]",
    "tests/data/test_splits.py",
  ),
  "fold: the split depends on more than seed and domain": Break(
    "mer_dg/data/splits.py",
    "dataset, name, rows, split_seed, val_fraction\n    )",
    "dataset, name, rows, split_seed + len(train), val_fraction\n    )",
    "tests/data/test_splits.py",
  ),
  "permutation: two modalities come from one sample": Break(
    "mer_dg/mixing/mix.py",
    "(shift % others + rank - 1) % others)",
    "shift % others)",
    "tests/mixing/test_mix.py",
  ),
  "paired draw: a term's draws depend on who is beside it": Break(
    "mer_dg/methods/method.py",
    "key=named_key(moment.key, name),\n    model",
    "key=jax.random.fold_in(moment.key, len(moment.hyper)),\n    model",
    "tests/methods/test_battery.py -k nobodys_draws",
  ),
  "paired draw: methods start from other weights": Break(
    "mer_dg/training/state.py",
    "key = jax.random.key(seed)\n",
    "key = jax.random.key(seed + len(method.terms))\n",
    "tests/training/test_state.py",
  ),
  "resume: the data begin anew": Break(
    "mer_dg/training/loop.py",
    'driver.seek(int(state.step), meta["data"])',
    "driver.seek(0, None)",
    "tests/training/test_loop.py",
  ),
  "resume: a record is doubled": Break(
    "mer_dg/protocol/records.py",
    "    if key in seen:\n",
    "    if False:\n",
    "tests/protocol/test_records.py",
  ),
  "interval: one degree of freedom too many": Break(
    "mer_dg/protocol/statistics.py",
    "LEVEL / 2, x.size - 1)",
    "LEVEL / 2, x.size)",
    "tests/protocol/test_statistics.py",
  ),
  "config check: the search uses seeds of the table": Break(
    "mer_dg/experiments/config.py",
    "if search.trials and shared:",
    "if False:",
    "tests/experiments/test_config.py",
  ),
  "converter name: batch norms are called conv": Break(
    "mer_dg/networks/published/torch_names.py",
    'layer.replace("conv", "bn")',
    "layer",
    "tests/networks/published/test_weights.py",
  ),
  "report number: the whole width for half of it": Break(
    "mer_dg/reporting/names.py",
    "(found.high - found.low) / 2",
    "(found.high - found.low)",
    "tests/reporting/test_tables.py",
  ),
  "kill: the checkpoint comes before its record": Break(
    "mer_dg/training/loop.py",
    "        on_eval(step, evaluation)\n"
    '        checkpoints.save(step, state, {"data": driver.position()}, found)\n',
    '        checkpoints.save(step, state, {"data": driver.position()}, found)\n'
    "        on_eval(step, evaluation)\n",
    "tests/training/test_loop.py",
  ),
  "kill: half a line stays before the next record": Break(
    "mer_dg/protocol/records.py",
    "    f.truncate(good_bytes)\n    f.seek(good_bytes)\n",
    "    f.seek(0, 2)\n",
    "tests/protocol/test_records.py",
  ),
}  # fmt: skip


def fails(root: pathlib.Path, tests: str) -> bool:
  environment = os.environ | {"PYTHONPATH": str(root)}
  words = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider"]
  run = subprocess.run([*words, *tests.split()], cwd=root, env=environment,
                       capture_output=True, text=True, check=False)  # fmt: skip
  if run.returncode not in (0, 1):
    sys.exit(run.stdout + run.stderr)
  return run.returncode == 1


def main() -> None:
  names = [n for n in BREAKS if all(word in n for word in sys.argv[1:])]
  unnoticed = 0
  with tempfile.TemporaryDirectory() as folder:
    tree = pathlib.Path(folder) / "tree"
    # What is installed beside the tree, and what it made, stay where they are.
    skip = shutil.ignore_patterns(".*", "runs", "_build", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=skip)
    for name in names:
      file, old, new, tests = BREAKS[name]
      text = (tree / file).read_text()
      if text.count(old) != 1:
        sys.exit(f"{name}: {file} has {old!r} {text.count(old)} times, not once.")
      healthy = not fails(tree, tests)
      (tree / file).write_text(text.replace(old, new))
      noticed = healthy and fails(tree, tests)
      (tree / file).write_text(text)
      unnoticed += not noticed
      word = "noticed" if noticed else "NOT NOTICED" if healthy else "FAILS UNBROKEN"
      print(f"{word}  {name}  ({tests})", flush=True)
  sys.exit(unnoticed)


if __name__ == "__main__":
  main()
