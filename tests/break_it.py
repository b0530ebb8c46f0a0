"""Breaks the code on purpose, one edit at a time; the quick tests must notice.

  python -m tests.break_it [WORD ...]  # all of them, or those whose name has the words

Each edit is made in a copy of the tree, where the tests that are named must pass
without it and fail with it. Not run by CI: for whoever makes tests cheaper or fewer.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]

# {what is broken: (file of mer_dg, text in it, what takes its place, tests)}
BREAKS = {
  "a mask: padding counts in a loss": (
    "losses/classification.py",
    "where = where.astype(values.dtype)", "where = jnp.ones_like(values)",
    "losses/test_rows.py tests/losses/test_classification.py"),
  "a mask: a missing modality is mixed": (
    "mixing/mix.py",
    "eligible[None, :] & has\n", "eligible[None, :] & jnp.ones_like(has)\n",
    "mixing/test_mix.py"),
  "a fold: validation rows train": (
    "data/splits.py",
    "train, val = rows[~in_val], rows[in_val]", "train, val = rows, rows[in_val]",
    "data/test_splits.py"),
  "a fold: the split depends on more than seed and domain": (
    "data/splits.py",
    "dataset, name, rows, split_seed, val_fraction\n    )",
    "dataset, name, rows, split_seed + len(train), val_fraction\n    )",
    "data/test_splits.py"),
  "a permutation: two modalities come from one sample": (
    "mixing/mix.py",
    "(shift % others + rank - 1) % others)", "shift % others)",
    "mixing/test_mix.py"),
  "a paired draw: draws of a term depend on who is beside it": (
    "methods/method.py",
    "key=named_key(moment.key, name),\n    model",
    "key=jax.random.fold_in(moment.key, len(moment.hyper)),\n    model",
    "methods/test_battery.py -k nobodys_draws"),
  "a paired draw: methods start from other weights": (
    "training/state.py",
    "key = jax.random.key(seed)\n", "key = jax.random.key(seed + len(method.terms))\n",
    "training/test_state.py"),
  "a resume: the data begin anew": (
    "training/loop.py",
    'driver.seek(int(state.step), meta["data"])', "driver.seek(0, None)",
    "training/test_loop.py"),
  "a resume: a record is doubled": (
    "protocol/records.py",
    "    if key in seen:\n", "    if False:\n",
    "protocol/test_records.py"),
  "an interval: one degree of freedom too many": (
    "protocol/statistics.py",
    "LEVEL / 2, x.size - 1)", "LEVEL / 2, x.size)",
    "protocol/test_statistics.py"),
  "a config check: the search uses seeds of the table": (
    "experiments/config.py",
    "if (search.trials or search.encoders) and shared:", "if False:",
    "experiments/test_config.py"),
  "a converter name: batch norms are called conv": (
    "networks/published/torch_names.py",
    'layer.replace("conv", "bn")', "layer",
    "networks/published/test_weights.py"),
  "a report number: the whole width for half of it": (
    "reporting/names.py",
    "(found.high - found.low) / 2", "(found.high - found.low)",
    "reporting/test_tables.py"),
  "a kill: a checkpoint comes before its record": (
    "training/loop.py",
    "        on_eval(step, evaluation)\n"
    '        checkpoints.save(step, state, {"data": driver.position()}, found)\n',
    '        checkpoints.save(step, state, {"data": driver.position()}, found)\n'
    "        on_eval(step, evaluation)\n",
    "training/test_loop.py"),
  "a kill: half a line stays before the next record": (
    "protocol/records.py",
    "    f.truncate(good_bytes)\n    f.seek(good_bytes)\n", "    f.seek(0, 2)\n",
    "protocol/test_records.py"),
}  # fmt: skip


def fails(root: pathlib.Path, tests: str) -> bool:
  words = [sys.executable, "-m", "pytest", "-qx", *f"tests/{tests}".split()]
  environment = os.environ | {"PYTHONPATH": str(root)}
  run = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True)
  if run.returncode not in (0, 1):
    sys.exit(run.stdout + run.stderr)
  return run.returncode == 1


def main() -> None:
  verdicts = []
  with tempfile.TemporaryDirectory() as folder:
    tree = pathlib.Path(folder) / "tree"
    skip = shutil.ignore_patterns(".*", "runs", "_build")  # Made here, not the code's.
    shutil.copytree(ROOT, tree, ignore=skip)
    for name, (file, old, new, tests) in BREAKS.items():
      if not all(word in name for word in sys.argv[1:]):
        continue
      path = tree / "mer_dg" / file
      text = path.read_text()
      if text.count(old) != 1:
        sys.exit(f"{name}: {old!r} is {text.count(old)} times in {file}, not once.")
      verdict = "fails unbroken" if fails(tree, tests) else "NOT NOTICED"
      path.write_text(text.replace(old, new))
      if verdict != "fails unbroken" and fails(tree, tests):
        verdict = "noticed"
      path.write_text(text)
      verdicts.append(verdict)
      print(f"{verdict:>14s}  {name}", flush=True)
  sys.exit(set(verdicts) != {"noticed"})


if __name__ == "__main__":
  main()
