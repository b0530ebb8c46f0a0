"""A whole benchmark: sets x protocols x subsets of modalities, a table each.

Every table is an ordinary one, in a workdir of its own under ``tables/``: it resumes by
itself, can be looked at by itself, and is trained in waves on the resident driver. The
benchmark plans them, checks all of them before the first one trains, tells how far it
is, and reports on all of them together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

from mer_dg.experiments.board import Board
from mer_dg.experiments.config import SUBSETS, Config, ConfigError, as_dict, validate
from mer_dg.experiments.grid import trainings
from mer_dg.experiments.hosts import is_first_host
from mer_dg.experiments.linear import linear_first
from mer_dg.experiments.search import encoder_runs, final_runs, runs_before
from mer_dg.experiments.setup import Setup, check, load_dataset, make_setup
from mer_dg.experiments.tables import is_trained, report, shown, train_table
from mer_dg.experiments.workdir import Workdir, read_object
from mer_dg.protocol import file_name, write_atomic


class Cell(NamedTuple):
  """One table of a benchmark.

  Attributes:
    dataset: Name in ``config.benchmark.datasets``.
    name: ``dataset/protocol/modalities``.
    setup: Its setup.
    workdir: Its folder.
    trainings: Number of networks it trains, the search included.
  """

  dataset: str
  name: str
  setup: Setup
  workdir: Workdir
  trainings: int


def run_benchmark(
  config: Config, workdir: Workdir, name: str, command: str = "", opening: str = ""
) -> tuple[str, bool]:
  """Trains what is missing of every table, then reports on all of them.

  Args:
    config: From `validate`, with ``benchmark``.
    workdir: Folder of the benchmark.
    name: Heading of the report.
    command: The command line, for the reports.
    opening: Printed if there is anything to train.

  Returns:
    The Markdown of the report, and whether there was anything to train.

  Raises:
    ConfigError: For a table that cannot be trained; before any is.
  """
  cells = list(plan(config, workdir.path))
  lacking = {c.name for c in cells if not is_trained(c.setup, c.workdir)}
  if lacking:
    print(opening)
  with workdir.writing(command, name):
    _train(cells, lacking, config, workdir, command)
    text = report_all(workdir, config, name) if is_first_host() else ""
  return text, bool(lacking)


def _train(
  cells: Sequence[Cell],
  lacking: Collection[str],
  config: Config,
  workdir: Workdir,
  command: str,
) -> None:
  """Trains and reports table after table; tells how far it is."""
  if is_first_host():
    folders = {c.name: str(c.workdir.path.relative_to(workdir.path)) for c in cells}
    write_atomic(_listed(workdir), json.dumps(folders, indent=2) + "\n")
  board = Board(
    {cell.name: (cell.dataset, cell.trainings) for cell in cells},
    config.metric,
    workdir.path / "progress.md",
    config.selection,
  )
  for cell in cells:
    board.begin(cell.name)
    with cell.workdir.writing(command, cell.name):
      if is_first_host():
        linear_first(cell.setup, cell.workdir)
      _, began = train_table(cell.setup, cell.workdir, board.add)
      there = (cell.workdir.path / "report" / "report.md").exists()
      if is_first_host() and (began or not there):
        report(cell.workdir, cell.setup.config, cell.name)
    board.end(shown(cell.workdir)[0], told=bool(lacking))
  if is_first_host():
    workdir.finish({}, ())  # Each table has counted its own records.


def _listed(workdir: Workdir) -> Path:
  return workdir.path / "tables.json"


def is_benchmark(workdir: Workdir) -> bool:
  """Whether a benchmark was begun in a folder."""
  return _listed(workdir).exists()


def report_all(workdir: Workdir, config: Config, name: str) -> str:
  """Writes the report on all tables that have records; returns its Markdown.

  Raises:
    WorkdirError: If there are no records.
  """
  tables = {}
  for table, place in read_object(_listed(workdir)).items():
    folder = workdir.path / place
    if (folder / "config.json").exists():
      tables[table] = Workdir(folder, read_object(folder / "config.json"))
  return report(workdir, config, name, tables)


def plan(config: Config, folder: Path) -> Iterator[Cell]:
  """The tables of a benchmark, each checked; datasets are loaded once each.

  Raises:
    ConfigError: If a table cannot be trained; the message names it.
  """
  benchmark = config.benchmark
  sets = benchmark.datasets or {config.data.name: {}}
  for dataset, changes in sets.items():
    own = _merged(as_dict(config), changes) | {"benchmark": _NONE}
    if own.get("metric") != config.metric:
      raise ConfigError(
        f"config.benchmark.datasets.{dataset}.metric={own.get('metric')!r}: all tables "
        f"of a benchmark have one headline, config.metric={config.metric!r}."
      )
    try:
      whole = load_dataset(validate(own).data)
    except ValueError as error:
      raise ConfigError(f"config.benchmark.datasets.{dataset}: {error}") from error
    # Tables are told apart by it: two settings of one generator, say.
    whole = dataclasses.replace(whole, name=dataset)
    chosen = subsets(benchmark.subsets, whole.modalities)
    for protocol, modalities in itertools.product(benchmark.protocols, chosen):
      name = f"{dataset}/{protocol}/{'+'.join(modalities)}"
      data = own["data"] | {"modalities": list(modalities)}
      try:
        made = validate(own | {"protocol": protocol, "data": data})
        setup = make_setup(made, whole.select_modalities(modalities))
        check(setup)
      except ValueError as error:  # ConfigError, DataError, MethodError.
        raise ConfigError(f"table {name}: {error}") from error
      parts = map(file_name, (dataset, protocol, "+".join(modalities)))
      workdir = Workdir(folder.joinpath("tables", *parts), made)
      workdir.check_data(whole.version)
      yield Cell(dataset, name, setup, workdir, _trainings(setup))


# A table inside a benchmark is none itself.
_NONE = {"datasets": {}, "protocols": ["leave_one_domain_out"], "subsets": "all"}


def subsets(word: str, modalities: tuple[str, ...]) -> list[tuple[str, ...]]:
  """Sets of modalities to train on, largest first.

  Args:
    word: ``all``: all of them at once; ``fused``: every set of two or more; ``every``:
      single modalities, too.
    modalities: Those of the dataset.

  Example:
    >>> subsets("fused", ("v", "a", "f"))
    [('v', 'a', 'f'), ('v', 'a'), ('v', 'f'), ('a', 'f')]
  """
  if word not in SUBSETS:
    raise ConfigError(f"config.benchmark.subsets={word!r} must be one of {SUBSETS}.")
  most = len(modalities)
  least = {"all": most, "fused": min(2, most), "every": 1}[word]
  sizes = range(most, least - 1, -1)
  return [s for size in sizes for s in itertools.combinations(modalities, size)]


def _merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
  """The config with groups of fields changed, the rest as it is."""
  out = dict(config)
  for field, value in changes.items():
    old = out.get(field)
    both = isinstance(old, Mapping) and isinstance(value, Mapping)
    # What a search may draw, and what a recipe has, is replaced as a whole.
    out[field] = _merged(old, value) if both and field != "space" else value
  return out


def _trainings(setup: Setup) -> int:
  runs = [*encoder_runs(setup), *runs_before(setup)]
  return len(trainings([*runs, *final_runs(setup.config, setup.tasks, {})]))
