"""The Python door: train, predict and compare without a config file or a folder.

The same code as the shell runs, and the same numbers: `fit` is a single run of
configs/features.py on a set in memory, `compare` its table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import contextlib
import io
import os
from pathlib import Path
import tempfile
from typing import Any

import pandas as pd

from mer_dg.data.dataset import Dataset, check_is_dataset
from mer_dg.data.npz import load_npz
from mer_dg.data.splits import Split, every_domain
from mer_dg.experiments.choice import with_encoder
from mer_dg.experiments.config import Config, ConfigError, as_dict, validate
from mer_dg.experiments.model import Model, load_model
from mer_dg.experiments.setup import check, make_setup
from mer_dg.experiments.tables import shown, train_table
from mer_dg.experiments.workdir import Workdir
from mer_dg.protocol import Assignment
from mer_dg.reporting import write_report
from mer_dg.reporting.tables import build_table

# What configs/features.py changes in the defaults of `Config`.
FEATURES = {
  "metric": "balanced_accuracy",
  "total_steps": 1200,
  "eval_every": 200,
  "network.input_transform": "range",
  # Coupled L2; docs/your_data.md has the study.
  "optimizer.weight_decay": 7e-3,
  "search.encoders": ("auto", "mlp"),
  "minutes": 10.0,
}


def load_dataset(path: str | os.PathLike[str]) -> Dataset:
  """A dataset in the bring-your-own format, see `mer_dg.data.load_npz`."""
  return load_npz(path)


def fit(
  data: Dataset,
  method: str = "heads+md",
  *,
  held_out: str | None = None,
  seed: int = 0,
  config: Mapping[str, Any] | None = None,
  workdir: str | os.PathLike[str] | None = None,
  progress: bool = True,
) -> Model:
  """Trains one network and returns the one that source validation selects.

  Args:
    data: A dataset, see `Dataset.from_arrays`.
    method: A recipe or several, ``"heads+md"``; docs/methods.md has all.
    held_out: A domain to leave out, which `Model.evaluate` can then be asked about;
      None trains on all of them, for use on domains that are not in ``data``.
    seed: Of initial weights, order of the data and noise.
    config: Fields that differ from configs/features.py, ``{"optimizer.lr": 1e-4}``.
    workdir: Folder of the run. The same call on the same folder resumes; by default it
      is a temporary one.
    progress: Whether to show steps, loss and the time that is left.

  Returns:
    The model.

  Raises:
    ConfigError: An unknown field or method, or one that does not fit the data.
    DataError: Data that leave nothing to train or to validate on.
    TrainingDiverged: If the loss stops being finite.
  """
  from mer_dg.experiments import single  # Orbax and Grain.

  check_is_dataset(data)
  if held_out is not None:
    data.domain_id(held_out)  # Raises, naming the domains there are.
  fields = {"target": held_out or data.domain_names[0], "method": method, "seed": seed}
  checked = _config(data, {**(config or {}), **fields})
  folds = None if held_out else _everywhere(checked, data)
  setup = make_setup(checked, data, folds)
  check(setup)
  with _folder(workdir) as path, _quiet(not progress):
    chosen = with_encoder(checked, Path(path), data, folds)
    if chosen is not checked:
      setup = make_setup(chosen, data, folds)
    folder = Workdir(path, chosen)
    folder.check_data(data.version)
    with folder.writing("mer_dg.fit"):
      single.train(setup, folder)
    return load_model(folder.path)


def compare(
  data: Dataset,
  methods: str | Sequence[str] | None = None,
  *,
  seeds: int | Sequence[int] = 3,
  held_out: str | Sequence[str] = (),
  config: Mapping[str, Any] | None = None,
  workdir: str | os.PathLike[str] | None = None,
  progress: bool = True,
) -> Comparison:
  """Trains every method on every held-out domain and seed, as one program each.

  Args:
    data: A dataset with two or more domains.
    methods: Recipes; the first is what the others are compared with. By default those
      of every table: plain fusion, the free baselines, both forms of MER.
    seeds: How many, or which.
    held_out: Domains to test on, one at a time; () is all.
    config: As in `fit`.
    workdir: Folder of the table. The same call resumes, another method joins.
    progress: As in `fit`.

  Returns:
    A data frame with a row for each method; ``.report(folder)`` writes the page.
  """
  check_is_dataset(data)
  names = lambda given: (given,) if isinstance(given, str) else tuple(given)
  fields: dict[str, Any] = {"targets": names(held_out)}
  fields["seeds"] = tuple(range(seeds)) if isinstance(seeds, int) else seeds
  fields["minutes"] = (config or {}).get("minutes", 0.0)  # As many as were asked for.
  if methods is not None:
    fields["methods"] = names(methods)
  checked = _config(data, {**(config or {}), **fields})
  setup = make_setup(checked, data)
  check(setup)
  with _folder(workdir) as path, _quiet(not progress):
    folder = Workdir(path, checked)
    folder.check_data(data.version)
    with folder.writing("mer_dg.compare"):
      train_table(setup, folder)
    records, left_out = shown(folder)
  return _comparison(records, left_out, checked, data.name)


class Comparison(pd.DataFrame):
  """Methods by what they score, a row each; `compare` makes it.

  Columns: ``mean`` over held-out domains with its interval ``low`` and ``high``,
  ``difference`` to the first method with ``difference_low`` and ``difference_high``,
  ``p`` (Holm), then the score of every held-out domain. Shares, not percent.
  """

  # pandas hands these on.
  _metadata: list[str] = ["records", "left_out", "config", "title"]  # noqa: RUF012

  @property
  def _constructor(self):
    return pd.DataFrame  # A part of it is no comparison.

  def report(self, folder: str | os.PathLike[str]) -> Path:
    """Writes ``report/`` with page, tables and figures; returns the page."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = self.config
    write_report(
      folder, self.records, metric=config.metric, reference=config.methods[0],
      title=self.title, rule=config.selection, methods=config.methods,
      left_out=self.left_out,
    )  # fmt: skip
    return folder / "report" / "index.html"


def _comparison(records, left_out, config: Config, title: str) -> Comparison:
  table = build_table(
    records, metric=config.metric, rule=config.selection, reference=config.methods[0]
  )
  rows = {}
  for row in table.rows:
    score, gain = row.mean, row.difference
    rows[row.method] = {
      "mean": score and score.mean,
      "low": score and score.low,
      "high": score and score.high,
      "difference": gain and gain.mean,
      "difference_low": gain and gain.low,
      "difference_high": gain and gain.high,
      "p": row.p_holm,
      **{target: found.mean for target, found in row.targets.items()},
    }
  made = Comparison(pd.DataFrame.from_dict(rows, orient="index", dtype=float))
  made.records, made.left_out, made.config = records, left_out, config
  made.title = title
  return made


def _config(data: Dataset, fields: Mapping[str, Any]) -> Config:
  """The config of configs/features.py with some fields changed."""
  given = as_dict(Config())
  for name, value in {**FEATURES, "data.name": "npz", **fields}.items():
    *groups, last = name.split(".")
    at = given
    for group in groups:
      at = at.get(group) if isinstance(at, dict) else None
    if not isinstance(at, dict) or last not in at:
      raise ConfigError(f"config: {name!r} is not a field; `mer-dg --help` lists them.")
    at[last] = value
  return validate(given)


def _everywhere(config: Config, data: Dataset) -> dict[Assignment, Split]:
  """A task that trains on every domain and tests on none."""
  split = every_domain(
    data, split_seed=config.split_seed, val_fraction=config.data.val_fraction
  )
  return {Assignment(split.target, ()): split}


@contextlib.contextmanager
def _folder(path: str | os.PathLike[str] | None):
  """A folder for a run: the given one, or one that is gone afterwards."""
  if path is not None:
    yield path
    return
  with tempfile.TemporaryDirectory(prefix="mer_dg_") as made:
    yield made


@contextlib.contextmanager
def _quiet(on: bool):
  """Swallows what a run prints."""
  with contextlib.ExitStack() as stack:
    if on:
      stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
      stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
    yield
