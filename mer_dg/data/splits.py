"""Train, validation and target rows; a function of (split seed, domain) only."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from mer_dg.contracts import seed_of
from mer_dg.data.dataset import SPLITS, DataError, Dataset

NOBODY = "(none)"  # The target of a task that trains on every domain.


@dataclasses.dataclass(frozen=True)
class Split:
  """Rows of one task.

  Attributes:
    target: Name of the domain that is tested on.
    sources: Names of the source domains; domain labels in batches are
      positions in this tuple.
    train: ``{source: rows}`` used by the step.
    val: ``{source: rows}`` used by model selection; a source too small to give
      any may have none, as long as another has some.
    test: Rows of the target domain; none of them is in ``train`` or ``val``.
  """

  target: str
  sources: tuple[str, ...]
  train: dict[str, np.ndarray]
  val: dict[str, np.ndarray]
  test: np.ndarray


def leave_one_domain_out(
  dataset: Dataset,
  target: str,
  *,
  split_seed: int,
  val_fraction: float,
  sources: tuple[str, ...] = (),
  drop_unseen_classes: bool = False,
) -> Split:
  """Splits a dataset into source train, source validation and target rows.

  Validation rows are whole groups, stratified by class. Rows of one domain
  depend on the split seed and that domain only, so the same rows validate
  whichever domain is the target and whichever method is trained. If the file
  brings a ``split``, it is used instead: validation is ``val`` (or ``test``
  where a source has no ``val``), the target is evaluated on its ``test`` rows
  (or all rows where it has none, or if ``dataset.target_rows`` is "all").

  Args:
    dataset: The whole set.
    target: Name of the held-out domain.
    split_seed: Seed of the validation rows.
    val_fraction: Share of each source domain that validates, in (0, 1).
    sources: Source domains; empty means all but the target.
    drop_unseen_classes: Drop target rows whose class no source has.

  Returns:
    The rows of the task.

  Raises:
    DataError: Unknown names, target among the sources, a class seen only in
      the target, a source without training rows, no validation rows in any source,
      ``val_fraction`` out of range.
  """
  _check_fraction(val_fraction)
  dataset.domain_id(target)
  sources = tuple(sources) or tuple(d for d in dataset.domain_names if d != target)
  if target in sources:
    raise DataError(f"{dataset.name}: target {target!r} is also a source {sources}.")
  if not sources:
    raise DataError(f"{dataset.name}: no source domain is left besides {target!r}.")
  if len(set(sources)) != len(sources):
    raise DataError(f"{dataset.name}: sources {sources} name a domain twice.")
  train, val = _split_sources(dataset, sources, split_seed, val_fraction)
  test = np.flatnonzero(dataset.domain == dataset.domain_id(target))
  if dataset.split is not None and dataset.target_rows == "test":
    marked = test[dataset.split[test] == SPLITS.index("test")]
    test = marked if marked.size else test
  seen = np.unique(dataset.label[np.concatenate(list(train.values()))])
  unseen = np.setdiff1d(np.unique(dataset.label[test]), seen)
  if unseen.size and not drop_unseen_classes:
    names = [dataset.class_names[k] for k in unseen]
    raise DataError(
      f"{dataset.name}: class {', '.join(map(repr, names))} occurs in the target "
      f"{target!r} but in no source training row; set "
      "config.data.drop_unseen_classes=True to leave those target rows out."
    )
  test = test[np.isin(dataset.label[test], seen)]
  if not test.size:
    raise DataError(f"{dataset.name}: target {target!r} has no rows to test on.")
  return Split(target, sources, train, val, test)


def every_domain(dataset: Dataset, *, split_seed: int, val_fraction: float) -> Split:
  """Splits every domain into train and validation rows; nothing is left to test on.

  Args and errors as `leave_one_domain_out`.
  """
  _check_fraction(val_fraction)
  train, val = _split_sources(dataset, dataset.domain_names, split_seed, val_fraction)
  return Split(NOBODY, dataset.domain_names, train, val, np.zeros(0, np.int64))


def target_alone(
  dataset: Dataset, target: str, *, split_seed: int, val_fraction: float
) -> Split:
  """Splits one domain into train, validation and test rows.

  Test rows are those that validate this domain where it is a source
  (`leave_one_domain_out`), or the ``test`` rows that the file marks; validation rows
  are ``val`` rows of the file or else a share of the rest, split in the same way. So a
  network of this task trains on fewer rows than a source has elsewhere.

  Args:
    dataset: The whole set.
    target: Name of the domain.
    split_seed: Seed of test and validation rows.
    val_fraction: Share that tests, and share of the rest that validates, in (0, 1).

  Returns:
    The rows; ``sources`` is the target itself.

  Raises:
    DataError: An unknown name, or a domain too small to be split in three.
  """
  _check_fraction(val_fraction)
  rows = np.flatnonzero(dataset.domain == dataset.domain_id(target))
  pick = lambda rows, seed: _stratified_groups(
    dataset.label[rows], dataset.group[rows], val_fraction, seed
  )
  code = None if dataset.split is None else dataset.split[rows]
  if code is not None and (code == SPLITS.index("test")).any():
    test, rest = rows[code == SPLITS.index("test")], rows[code != SPLITS.index("test")]
    val = rows[code == SPLITS.index("val")]
  else:
    held = pick(rows, domain_rng(split_seed, target))
    test, rest, val = rows[held], rows[~held], rows[:0]
  if not val.size:
    # By the former name of this protocol: its records stay reproducible.
    val = rest[pick(rest, domain_rng(split_seed, f"{target}/in_domain"))]
  train = np.setdiff1d(rest, val)
  if not (train.size and val.size and test.size):
    raise DataError(
      f"{dataset.name}: domain {target!r} ({rows.size} rows) leaves {train.size} "
      f"training, {val.size} validation and {test.size} test rows; target_alone needs "
      "some of each."
    )
  return Split(target, (target,), {target: train}, {target: val}, test)


def with_target(
  dataset: Dataset,
  target: str,
  *,
  sources: Sequence[str] = (),
  split_seed: int,
  val_fraction: float,
) -> Split:
  """Trains on the sources and on rows of the target: the upper bound.

  The target's rows are those of `target_alone`, and so is what tests; validation rows
  are of all domains that train.

  Args and errors as `target_alone`; ``sources`` are all other domains by default.
  """
  own = target_alone(dataset, target, split_seed=split_seed, val_fraction=val_fraction)
  for name in sources:
    dataset.domain_id(name)
  others = tuple(d for d in sources or dataset.domain_names if d != target)
  train, val = _split_sources(dataset, others, split_seed, val_fraction)
  everyone = (*others, target)
  return Split(target, everyone, {**train, **own.train}, {**val, **own.val}, own.test)


def _check_fraction(val_fraction: float) -> None:
  if not 0 < val_fraction < 1:
    raise DataError(f"val_fraction={val_fraction} must lie between 0 and 1.")


def _split_sources(dataset, sources, split_seed, val_fraction):
  """``{source: rows}`` that train, and that validate."""
  train, val = {}, {}
  for name in sources:
    rows = np.flatnonzero(dataset.domain == dataset.domain_id(name))
    train[name], val[name] = _split_domain(
      dataset, name, rows, split_seed, val_fraction
    )
  if not any(rows.size for rows in val.values()):
    counts = {name: len(rows) for name, rows in train.items()}
    raise DataError(
      f"{dataset.name}: no source domain is large enough to leave validation rows; "
      f"training rows: {counts}. Model selection needs some."
    )
  return train, val


def _split_domain(dataset, name, rows, split_seed, val_fraction):
  """Rows of one domain as (train, validation)."""
  if dataset.split is not None:
    code = dataset.split[rows]
    train = rows[code == SPLITS.index("train")]
    val = rows[code == SPLITS.index("val")]
    val = val if val.size else rows[code == SPLITS.index("test")]
  else:
    in_val = _stratified_groups(
      dataset.label[rows],
      dataset.group[rows],
      val_fraction,
      domain_rng(split_seed, name),
    )
    train, val = rows[~in_val], rows[in_val]
  if not train.size:
    raise DataError(
      f"{dataset.name}: source domain {name!r} ({rows.size} rows) leaves no training "
      f"and {val.size} validation rows."
    )
  return train, val


def domain_rng(seed: int, domain: str) -> np.random.Generator:
  """Generator that depends on (seed, domain name) and nothing else."""
  return np.random.default_rng(seed_of(f"{seed}/{domain}"))


def _stratified_groups(label, group, fraction, rng) -> np.ndarray:
  """Picks whole groups so that each class has about ``fraction`` of its rows.

  Greedy over shuffled groups: a group joins the validation set if that brings
  the class counts closer to their goals, summed over classes. At least one
  group stays on either side wherever there are two.
  """
  classes, label = np.unique(label, return_inverse=True)
  ids, member = np.unique(group, return_inverse=True)
  counts = np.zeros((len(ids), len(classes)))
  np.add.at(counts, (member, label), 1.0)
  goal = fraction * counts.sum(axis=0)
  have = np.zeros(len(classes))
  chosen = np.zeros(len(ids), bool)
  for i in rng.permutation(len(ids)):
    gain = np.abs(goal - have).sum() - np.abs(goal - have - counts[i]).sum()
    if gain > 0 and chosen.sum() < len(ids) - 1:
      chosen[i] = True
      have += counts[i]
  if not chosen.any() and len(ids) > 1:
    chosen[np.argmin(counts.sum(axis=1))] = True
  return chosen[member]
