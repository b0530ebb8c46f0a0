"""What a person sees while a benchmark trains: its tables, how far, how long still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import datetime
from pathlib import Path
import sys
import time

import numpy as np

from mer_dg.experiments.grid import Wave, trainings
from mer_dg.experiments.hosts import is_first_host, this_host
from mer_dg.protocol import Record, write_atomic
from mer_dg.reporting import pick, pipe_table, to_frame
from mer_dg.reporting.frame import choose, intervals, name_settings
from mer_dg.reporting.names import display


class Board:
  """A live table of a benchmark, and the time that is left.

  Printed when a table is done; ``path`` is written after each wave (look at it with
  ``watch cat``). What is left is reckoned per dataset, from the trainings it has had;
  a dataset that has had none counts like the mean of the others.

  Args:
    planned: ``{table: (dataset, number of trainings)}``, in order.
    metric: Headline metric.
    path: Markdown file.
    rule: Selection rule of the means, that of the report.
  """

  def __init__(
    self,
    planned: Mapping[str, tuple[str, int]],
    metric: str,
    path: Path,
    rule: str = "source_val",
  ) -> None:
    self._planned, self._metric, self._path = dict(planned), metric, path
    self._rule = rule
    # Of several hosts each trains its share.
    self._share = {
      name: -(-count // this_host()[1]) for name, (_, count) in planned.items()
    }
    self._done = dict.fromkeys(planned, 0)
    self._means: dict[str, dict[str, float]] = {}
    self._spent: dict[str, float] = {}
    self._trained: dict[str, int] = {}
    self._now, self._began = "", time.perf_counter()

  def begin(self, name: str) -> None:
    """A table comes next."""
    self._now, self._began = name, time.perf_counter()

  def add(self, wave: Wave) -> None:
    """A wave of the present table is done."""
    dataset, count = self._planned[self._now][0], len(trainings(wave.runs))
    now = time.perf_counter()
    self._spent[dataset] = self._spent.get(dataset, 0.0) + now - self._began
    self._trained[dataset] = self._trained.get(dataset, 0) + count
    self._done[self._now] += count
    self._began = now
    self._write()
    print(f"{self._now}: {self.status()}", file=sys.stderr)

  def end(self, records: Sequence[Record], *, told: bool = True) -> None:
    """The present table is done, or was before; ``told`` prints the board."""
    self._done[self._now] = self._share[self._now]
    self._means[self._now] = _means(records, self._metric, self._rule)
    self._write()
    if told and is_first_host():
      print(f"\n{self.markdown()}\n", file=sys.stderr)

  def seconds_left(self) -> float:
    """Of all tables; NaN before the first wave."""
    rates = {d: self._spent[d] / n for d, n in self._trained.items()}
    if not rates:
      return float("nan")
    other = float(np.mean(list(rates.values())))
    return sum(
      (self._share[name] - self._done[name]) * rates.get(dataset, other)
      for name, (dataset, _) in self._planned.items()
    )

  def status(self) -> str:
    """``120 of 480 networks, about 0:05:12 left``."""
    done, total = sum(self._done.values()), sum(self._share.values())
    left = self.seconds_left()
    if np.isnan(left) or done == total:
      return f"{done} of {total} networks"
    eta = f", about {datetime.timedelta(0, round(left))} left"
    return f"{done} of {total} networks{eta}"

  def markdown(self) -> str:
    """The table as it stands."""
    methods = list(dict.fromkeys(m for row in self._means.values() for m in row))
    methods = methods or [""]
    lines = []
    for name in self._planned:
      means = self._means.get(name, {})
      cells = [f"{100 * means[m]:.1f}" if m in means else "" for m in methods]
      if name in self._means and not means:
        cells = ["every run diverged"] + [""] * (len(methods) - 1)
      mark = " (now)" if name == self._now and name not in self._means else ""
      lines.append([name + mark, f"{self._done[name]}/{self._share[name]}", *cells])
    rows = pipe_table(["table", "networks", *map(display, methods)], lines)
    kind = self._metric.replace("_", " ")
    return f"{self.status()}; target {kind}, mean over targets (%)\n\n{rows}"

  def _write(self) -> None:
    if is_first_host():
      write_atomic(self._path, self.markdown() + "\n")


def _means(records: Sequence[Record], metric: str, rule: str) -> dict[str, float]:
  """Mean target score of each method, checkpoints selected by the rule."""
  if not records:
    return {}
  chosen = to_frame(choose(name_settings(records), rule, metric=metric))
  return {m: found.mean for m, found in intervals(pick(chosen, metric)).items()}
