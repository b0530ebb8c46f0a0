"""The encoder of a single run: its sources choose it, as those of a table do."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from pathlib import Path

from mer_dg.data.dataset import Dataset
from mer_dg.data.splits import Split
from mer_dg.experiments.config import Config
from mer_dg.experiments.search import encoder_runs, own_encoder
from mer_dg.experiments.setup import chooses_encoder, make_setup
from mer_dg.experiments.tables import train_encoders
from mer_dg.experiments.workdir import Workdir
from mer_dg.protocol import Assignment


def with_encoder(
  config: Config,
  path: Path,
  dataset: Dataset,
  folds: Mapping[Assignment, Split] | None = None,
) -> Config:
  """The config of a run with the encoder that its sources choose.

  What chooses are the runs of a table with this one target (`search.encoder_runs`);
  they lie in ``encoders/`` of the run's workdir, and are trained once.

  Args:
    config: Of a single run.
    path: Its workdir.
    dataset: Its dataset.
    folds: The splits of its task, where that is no protocol's.

  Returns:
    ``config``, its method with ``@<encoder>`` where another than that of the config was
    chosen, else ``config`` itself.
  """
  if not chooses_encoder(config) or own_encoder(config, config.method):
    return config
  table = dataclasses.replace(config, target="", targets=(config.target,))
  setup = make_setup(table, dataset, folds)
  if not encoder_runs(setup):
    return config
  folder = Workdir(path / "encoders", table)
  folder.check_data(dataset.version)
  with folder.writing("encoders"):
    (chosen,) = train_encoders(setup, folder).values()
  if chosen == config.network.encoder:
    return config
  return dataclasses.replace(config, method=f"{config.method}@{chosen}")
