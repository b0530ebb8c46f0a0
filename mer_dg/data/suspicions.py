"""What is odd about a dataset, in words: it trains, but perhaps not on what was meant.

The work is bounded whatever the size of the set: a few thousand rows and a few hundred
numbers of each are looked at, duplicates are found by a sample of every row's numbers
and then compared in full.
"""

from __future__ import annotations

import numpy as np

from mer_dg.data.archive import few
from mer_dg.data.dataset import ArrayDataset, Dataset
from mer_dg.data.evidence import spread

MAJORITY = 0.95  # Share of the largest class from which on accuracy says little.
MANY_DOMAINS = 100
NEARLY = 0.999  # Share of one value in a channel that hardly varies.
SCALES = 1e6  # Between deviations of channels of one modality.
UNITS = 100  # Between a domain and all others.
ROWS, COLUMNS = 4096, 512  # Looked at when columns are held against the labels.
# Looked at when rows are compared: rows, numbers of each, and pairs in full.
DUPLICATE_ROWS, DUPLICATE_COLUMNS, PAIRS = 200_000, 64, 1000


def suspicions(dataset: Dataset) -> list[str]:
  """Lines on what a reader of the results would want to have known.

  * a class with nearly all rows; domains with one class; domains like ids; a single
    row per class and domain;
  * a modality that is missing everywhere, or the same in all rows; numbers that hardly
    vary; numbers whose scales differ a millionfold; a domain in another unit;
  * samples that are the same, bit for bit, in two domains (leakage);
  * a number of a modality that tells the label all by itself (leakage);
  * keys of the file that were not read; arrays that are read as something else than
    their dtype and rank suggest.

  Args:
    dataset: Any; of sets whose inputs stay on disk only labels and domains are seen.

  Returns:
    One line each; empty if nothing is odd.

  Example:
    >>> from mer_dg.data.dataset import make_dataset
    >>> label = np.arange(40) % 2
    >>> suspicions(make_dataset(
    ...   name="toy", inputs={"a": np.eye(40), "b": label[:, None] * 3}, label=label,
    ...   domain=np.arange(40) // 20, class_names=["x", "y"], domain_names=["p", "q"]))
    ["'b' contains the label: number 0 of it tells the class by itself (leakage)."]
  """
  found = [*dataset.notes, *_of_labels(dataset)]
  if not isinstance(dataset, ArrayDataset):
    return found
  for m, x in dataset.inputs.items():
    rows = _spread(np.flatnonzero(dataset.present[m]), ROWS)
    if not len(rows):
      found.append(f"{m!r} is missing in every row.")
      continue
    columns = _columns(x, COLUMNS)
    values = x.reshape(len(x), -1)[rows[:, None], columns]
    if len(rows) > 1 and (values == values[0]).all():
      same = (
        "the same in every row" if len(rows) == len(x) else "the same wherever seen"
      )
      found.append(f"{m!r} is {same}: nothing can be learned from it.")
    else:
      found += _tells_label(dataset, m, values, rows, columns)
      found += _of_scales(dataset, m, rows)
  return [*found, *_duplicates(dataset)]


def _of_labels(dataset: Dataset) -> list[str]:
  found = []
  n, domains = len(dataset), dataset.num_domains
  counts = np.bincount(dataset.label, minlength=dataset.num_classes)
  if counts.max() > MAJORITY * n:
    share, name = counts.max() / n, dataset.class_names[int(counts.argmax())]
    found.append(
      f"class {name!r} has {share:.1%} of the rows: so has the accuracy of always "
      "answering it; look at macro accuracy."
    )
  cells, rows = np.unique(
    dataset.domain.astype(np.int64) * dataset.num_classes + dataset.label,
    return_counts=True,
  )
  classes = np.bincount(cells // dataset.num_classes, minlength=domains)
  single = np.flatnonzero(classes == 1)
  if single.size:
    names = few([dataset.domain_names[d] for d in single[:8]])
    found.append(f"{single.size} of {domains} domains have a single class: {names}.")
  if domains > MANY_DOMAINS:
    found.append(
      f"{domains} domains for {n} rows: each would be held out in turn. If they are "
      "recordings or people, name coarser domains and put these into 'group'."
    )
  if rows.max() == 1:
    found.append(
      "a single row per class and domain: no row of a source can be kept for "
      "validation without losing its class there."
    )
  return found


def _of_scales(dataset: ArrayDataset, m: str, rows: np.ndarray) -> list[str]:
  """Channels that hardly vary or differ in scale; domains in another unit."""
  x = dataset.inputs[m]
  if x.dtype == np.uint8 or x.ndim > 3 or len(rows) < 20:
    return []
  channels = _spread(np.arange(x.shape[-1]), COLUMNS)
  steps = _spread(np.arange(x.shape[1]), 32) if x.ndim == 3 else None
  values = x[rows][:, channels] if steps is None else x[np.ix_(rows, steps, channels)]
  values = values.astype(np.float64).reshape(len(rows), -1, len(channels))
  if m in dataset.lengths and steps is not None:
    here = steps[None, :] < dataset.lengths[m][rows][:, None]
    values = np.where(here[:, :, None], values, np.nan)
  what = "number" if x.ndim == 2 else "channel"
  flat = values.reshape(-1, len(channels))
  flat = flat[np.isfinite(flat).all(axis=1)]
  if len(flat) < 20:
    return []
  found = []
  mode = np.median(flat, axis=0)
  same = (flat == mode).mean(axis=0)
  stuck = np.flatnonzero(same >= NEARLY)
  if stuck.size:
    which = few(channels[stuck].tolist(), 4).strip("[]")
    found.append(
      f"{stuck.size} of the {x.shape[-1]} {what}s of {m!r} hardly vary (the same value "
      f"in {same[stuck].min():.0%} of the places or more): {what} {which}."
    )
  size = flat.std(axis=0)
  moving = size > 1e-6 * np.abs(flat.mean(axis=0))
  if moving.sum() > 1:
    at = np.flatnonzero(moving)
    low, high = at[size[at].argmin()], at[size[at].argmax()]
    if size[high] > SCALES * size[low]:
      found.append(
        f"the {what}s of {m!r} differ in scale by {size[high] / size[low]:.0e} ({what} "
        f"{channels[high]} varies by {size[high]:.2g}, {channels[low]} by "
        f"{size[low]:.2g}); each is scaled by itself, but are all of them meant?"
      )
  return found + _other_units(dataset, m, rows, values)


def _other_units(dataset: Dataset, m: str, rows, values) -> list[str]:
  """Domains whose numbers are a hundred times those of all others, or a hundredth."""
  domain = dataset.domain[rows]
  enough = [d for d in np.unique(domain).tolist() if (domain == d).sum() >= 10]
  if not 2 <= len(enough) <= MANY_DOMAINS:
    return []
  sizes = []
  for d in enough:
    of = values[domain == d].reshape(-1, values.shape[-1])
    middle = np.nanmedian(of, axis=0)
    sizes.append(np.nanmedian(np.abs(of - middle), axis=0) + np.abs(middle))
  sizes = np.stack(sizes)  # [domains, channels]
  found = []
  for i, d in enumerate(enough):
    others = np.delete(sizes, i, axis=0)
    known = (sizes[i] > 0) & (others > 0).all(axis=0)
    if known.sum() * 2 <= sizes.shape[1]:
      continue
    up = np.median((sizes[i] / np.where(known, others.max(axis=0), 1))[known])
    down = np.median((sizes[i] / np.where(known, others.min(axis=0), 1))[known])
    if up > UNITS or down < 1 / UNITS:
      times = (
        f"{up:.0f} times larger" if up > UNITS else f"{1 / down:.0f} times smaller"
      )
      name = dataset.domain_names[d]
      found.append(f"{m!r} is {times} in {name!r} than elsewhere: another unit?")
  # Of two domains each is the odd one.
  return found[:1] if len(enough) == 2 else found


def _tells_label(dataset, m: str, values, rows, columns) -> list[str]:
  """Columns whose order sorts the rows into their classes without one exception."""
  label = dataset.label[rows]
  classes = len(np.unique(label))
  if classes < 2 or len(rows) < 5 * classes:
    return []
  order = np.argsort(values, axis=0, kind="stable")
  change = np.diff(label[order], axis=0) != 0  # [rows - 1, columns]
  with np.errstate(invalid="ignore"):  # What stands in padding may be infinite.
    step = np.diff(np.take_along_axis(values, order, axis=0).astype(float), axis=0)
  clean = (change.sum(axis=0) == classes - 1) & (~change | (step > 0)).all(axis=0)
  # One-hot: one value in a single class, another one in all others.
  low, high = values.min(axis=0), values.max(axis=0)
  binary = ((values == low) | (values == high)).all(axis=0) & (high > low)
  is_high = (values == high).astype(np.float64)
  per_class = np.eye(dataset.num_classes)[label].T @ is_high  # [classes, columns]
  size = np.bincount(label, minlength=dataset.num_classes)[:, None]
  pure = ((per_class == 0) | (per_class == size)).all(axis=0)
  hits = np.flatnonzero(clean | (binary & pure))
  if not hits.size:
    return []
  which = (
    few(columns[hits].tolist(), 3).strip("[]") if hits.size > 1 else columns[hits[0]]
  )
  verb = "tells" if hits.size == 1 else "each tell"
  return [
    f"{m!r} contains the label: number {which} of it {verb} the class by itself "
    "(leakage)."
  ]


def _duplicates(dataset: ArrayDataset) -> list[str]:
  """Samples that another domain has too."""
  there = np.zeros(len(dataset), bool)
  for present in dataset.present.values():
    there |= present
  rows = _spread(np.flatnonzero(there), DUPLICATE_ROWS)
  if not dataset.inputs or len(rows) < 2:
    return []
  parts = []
  for m, x in dataset.inputs.items():
    part = x.reshape(len(x), -1)[rows[:, None], _columns(x, DUPLICATE_COLUMNS)]
    part = np.where(dataset.present[m][rows, None], part, 0)
    parts.append(np.ascontiguousarray(part).view(np.uint8).reshape(len(rows), -1))
  keys = np.concatenate(parts, axis=1)
  keys = np.ascontiguousarray(keys).view(f"V{keys.shape[1]}").ravel()
  order = np.argsort(keys, kind="stable")
  alike = keys[order[1:]] == keys[order[:-1]]
  first, second = rows[order[:-1][alike]], rows[order[1:][alike]]
  apart = dataset.domain[first] != dataset.domain[second]
  pairs = np.stack([first[apart], second[apart]], axis=1)
  equal = [(a, b) for a, b in pairs[:PAIRS].tolist() if _same(dataset, a, b)]
  if not equal:
    return []
  a, b = equal[0]
  names = [dataset.domain_names[dataset.domain[row]] for row in (a, b)]
  more = "at least " if len(pairs) > PAIRS or len(rows) < there.sum() else ""
  return [
    f"{more}{len(equal)} rows stand in another domain too, bit for bit, for instance "
    f"{a} ({names[0]!r}) and {b} ({names[1]!r}): what is trained on is tested on "
    "(leakage)."
  ]


def _same(dataset: ArrayDataset, a: int, b: int) -> bool:
  for m, x in dataset.inputs.items():
    present = dataset.present[m]
    if present[a] != present[b] or (present[a] and not np.array_equal(x[a], x[b])):
      return False
  return True


def _spread(rows: np.ndarray, limit: int) -> np.ndarray:
  return rows[spread(len(rows), limit)]


def _columns(x: np.ndarray, limit: int) -> np.ndarray:
  """Positions in a flattened row: the first, the last, and some between."""
  return _spread(np.arange(int(np.prod(x.shape[1:]))), limit)
