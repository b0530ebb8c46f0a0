"""The bring-your-own format: one ``.npz`` file per dataset, without pickles.

``docs/data.md`` describes it for users. Required are ``modalities`` (names),
one array ``[N, ...]`` per modality under its name, ``label [N]`` and
``domain [N]``; every other key read here is optional, unknown keys are ignored.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import os
import pathlib
import re
from typing import Any
import unicodedata
import zipfile

import numpy as np

from mer_dg.data.archive import Archive, few, reason
from mer_dg.data.dataset import (
  ARRAY_KINDS,
  SPLITS,
  ArrayDataset,
  DataError,
  make_dataset,
)
from mer_dg.files import replacing

# Keys with a meaning of their own; no modality may be called so.
RESERVED = (
  "modalities",
  "label",
  "domain",
  "class_names",
  "domain_names",
  "group",
  "split",
  "id",
  "variant",
)
# Endings of the keys that belong to a modality.
SUFFIXES = ("len", "present", "kind", "rate")
# What our own tools note in a file, for people.
NOTES = ("preparation", "made_from")

LONGEST_NAME = 200
# Separators of paths; control characters, marks that turn the direction of writing,
# line separators, lone surrogates.
_UNSAFE = re.compile("[/\\\\\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def load_npz(
  path: str | os.PathLike,
  *,
  modalities: Sequence[str] = (),
  kinds: Mapping[str, str] | None = None,
) -> ArrayDataset:
  """Reads a dataset in the bring-your-own format.

  Nothing in the file is executed: arrays of Python objects are refused.

  * Labels count ``0..K-1`` into ``class_names``; without ``class_names`` any
    integers will do, classes are then named by them in increasing order.
  * Domains are integers that count into ``domain_names``, or names. Without
    ``domain_names`` they are named by their values, in sorted order. A listed
    domain without a single row is left out.
  * The batch's ``index`` is the row number in the file; ``id`` has to be unique
    and is otherwise left to the user.
  * ``variant``, a word on how the file was made, comes before the hash in
    ``Dataset.version``, and with it into every record.
  * Frames after ``<m>_len`` of a clip are replaced by the clip from its start,
    over and over: a clip has no padding that a network would have to skip.

  Args:
    path: The file.
    modalities: Which modalities to load, in this order; empty means all, in the
      order of the file.
    kinds: ``{modality: kind}``, in the place of what the file or its numbers say.

  Returns:
    The dataset, named after the file.

  Raises:
    DataError: The file is not such a file, is damaged, or was made to do harm; the
      message names file, key and, where there is one, the first bad row. Nothing else
      is raised, and no more memory taken than `Archive` allows.

  Example:
    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "toy.npz"
    >>> np.savez(path, modalities=["a"], a=np.zeros((4, 3), np.float32),
    ...          label=[0, 1, 0, 1], domain=["lab", "lab", "field", "field"])
    >>> toy = load_npz(path)
    >>> toy.name, toy.domain_names, toy.kinds
    ('toy', ('field', 'lab'), {'a': 'vector'})
  """
  path = pathlib.Path(path).expanduser()
  try:
    arrays, unread = _read(path, modalities)
    dataset = from_arrays(arrays, name=str(path), modalities=modalities, kinds=kinds)
  except DataError:
    raise
  except Exception as error:  # Arrays of a hostile file can make NumPy raise anything.
    what = f"{type(error).__name__}: {reason(error)}"
    raise DataError(f"{path}: its arrays make no data set ({what}).") from error
  return dataclasses.replace(dataset, name=path.stem, notes=(*unread, *dataset.notes))


def save_npz(data: ArrayDataset | Mapping[str, Any], path: str | os.PathLike) -> None:
  """Checks a dataset and writes it in the bring-your-own format, atomically.

  Args:
    data: An `ArrayDataset`, or the arrays under the keys of the format.
    path: File to write; an existing one is replaced.

  Raises:
    DataError: If the data are not valid; no file is written then.

  Example:
    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "toy.npz"
    >>> save_npz(dict(modalities=["a"], a=np.zeros((4, 3), np.float32),
    ...               label=[0, 1, 0, 1], domain=[0, 0, 1, 1]), path)
    >>> len(load_npz(path))
    4
  """
  path = pathlib.Path(path).expanduser()
  arrays = to_npz_arrays(data) if isinstance(data, ArrayDataset) else data
  arrays = {key: np.asarray(value) for key, value in arrays.items()}
  from_arrays(arrays, name=str(path))
  objects = [key for key, value in arrays.items() if value.dtype.hasobject]
  if objects:
    raise DataError(f"{path}: {objects} hold Python objects, which are never written.")
  path.parent.mkdir(parents=True, exist_ok=True)
  # Not numpy.savez: it has arguments of its own, and a modality may bear their name.
  with (
    replacing(path) as temporary,
    zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
  ):
    for key, value in arrays.items():
      with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, value, allow_pickle=False)


def to_npz_arrays(dataset: ArrayDataset) -> dict[str, np.ndarray]:
  """The arrays of a dataset under the keys of the format."""
  arrays: dict[str, Any] = {
    "modalities": np.array(dataset.modalities),
    "label": dataset.label,
    "domain": dataset.domain,
    "class_names": np.array(dataset.class_names),
    "domain_names": np.array(dataset.domain_names),
    "group": dataset.group,
    "id": dataset.index,
  }
  if dataset.split is not None:
    arrays["split"] = dataset.split
  if "/" in dataset.version:
    arrays["variant"] = np.array(dataset.version.partition("/")[0])
  for m, x in dataset.inputs.items():
    arrays[m] = x
    arrays[f"{m}_kind"] = np.array(dataset.kinds[m])
    if not dataset.present[m].all():
      arrays[f"{m}_present"] = dataset.present[m]
    if m in dataset.lengths:
      arrays[f"{m}_len"] = dataset.lengths[m]
  return arrays


def from_arrays(
  arrays: Mapping[str, Any],
  *,
  name: str,
  modalities: Sequence[str] = (),
  kinds: Mapping[str, str] | None = None,
) -> ArrayDataset:
  """A dataset from arrays under the keys of the format (see `load_npz`).

  Args:
    arrays: The arrays.
    name: Name of the dataset; every message begins with it.
    modalities: Which modalities, in which order; empty means all.
    kinds: As for `load_npz`.

  Returns:
    The dataset.

  Raises:
    DataError: As `load_npz`.
  """
  chosen = _modalities(name, arrays, modalities)
  required = (*chosen, "label", "domain")
  missing = [key for key in required if key not in arrays]
  if missing:
    raise DataError(
      f"{name}: {', '.join(map(repr, missing))} missing; the file has "
      f"{few(sorted(arrays))}. Required are 'modalities', 'label', 'domain' and one "
      "array per name in 'modalities'."
    )
  label, class_names = _labels(name, arrays)
  n = len(label)
  domain, domain_names = _domains(name, arrays, n)
  extras: dict[str, dict[str, Any]] = {
    suffix: {
      m: np.asarray(arrays[f"{m}_{suffix}"])
      for m in chosen
      if f"{m}_{suffix}" in arrays
    }
    for suffix in SUFFIXES
  }
  unknown = [m for m in kinds or {} if m not in _modalities(name, arrays, ())]
  if unknown:
    raise DataError(f"{name}: kinds are given for {few(unknown)}, no modality of it.")
  declared = {m: _kind(name, m, value) for m, value in extras["kind"].items()}
  declared |= {m: kind for m, kind in (kinds or {}).items() if m in chosen}
  if "id" in arrays:
    _check_ids(name, np.asarray(arrays["id"]), n)
  dataset = make_dataset(
    name=name,
    inputs={m: np.asarray(arrays[m]) for m in chosen},
    label=label,
    domain=domain,
    class_names=class_names,
    domain_names=domain_names,
    kinds=declared,
    rates={m: _rate(name, m, value) for m, value in extras["rate"].items()},
    present={m: _flags(name, m, value) for m, value in extras["present"].items()},
    lengths=extras["len"],
    group=_groups(name, arrays),
    split=_split(name, arrays, n),
  )
  if "variant" not in arrays:
    return dataset
  variant = _variant(name, np.asarray(arrays["variant"]))
  return dataclasses.replace(dataset, version=f"{variant}/{dataset.version}")


def _read(
  path: pathlib.Path, modalities: Sequence[str]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """The arrays of the format that are in a file, and lines on its other keys."""
  with Archive(path) as archive:
    if "modalities" not in archive.keys:
      raise DataError(
        f"{path}: 'modalities' (the names of the modalities) missing; the file has "
        f"{few(sorted(archive.keys))}."
      )
    names = {"modalities": archive.read("modalities")}
    there = _modalities(str(path), names, ())
    chosen = [*modalities] or there
    wanted = {*RESERVED, *chosen, *(f"{m}_{s}" for m in chosen for s in SUFFIXES)}
    wanted.remove("modalities")
    arrays = {key: archive.read(key) for key in archive.keys if key in wanted}
    unread = _unread(archive.keys, there)
  return names | arrays, unread


def _unread(keys: Sequence[str], modalities: Sequence[str]) -> tuple[str, ...]:
  """Lines on the keys of a file that nothing here reads."""
  known = {*RESERVED, *modalities, *(f"{m}_{s}" for m in modalities for s in SUFFIXES)}
  free = sorted(known.difference(keys))  # What is there was not meant by another key.
  lines, rest = [], []
  for key in keys:
    if key in known or key in NOTES:
      continue
    # Of `imu_lens` only the ending can be wrong; a long name must not outweigh it.
    whose = next((f"{m}_" for m in modalities if key.startswith(f"{m}_")), "")
    endings = [k.removeprefix(whose) for k in free if k.startswith(whose)]
    word, cutoff = key.removeprefix(whose), 0.6 if whose else 0.8
    close = difflib.get_close_matches(word[:LONGEST_NAME], endings, 1, cutoff)
    if close and len(lines) < 8:
      meant = f"did you mean {whose + close[0]!r}?"
      lines.append(f"key {key[:LONGEST_NAME]!r} of the file is not read; {meant}")
    else:
      rest.append(key[:LONGEST_NAME])
  if rest:
    lines.append(f"keys of the file that are not read: {few(rest)}.")
  return tuple(lines)


def _modalities(name: str, arrays: Mapping[str, Any], chosen: Sequence[str]):
  """Names of the modalities to load, checked against those of the file."""
  if "modalities" not in arrays:
    raise DataError(f"{name}: 'modalities' (the names of the modalities) missing.")
  there = _texts(name, "modalities", np.atleast_1d(np.asarray(arrays["modalities"])))
  of_others = {f"{m}_{suffix}" for m in there for suffix in SUFFIXES}
  taken = [m for m in there if m in RESERVED or m in of_others or not m]
  if taken or len(set(there)) != len(there) or not there:
    raise DataError(
      f"{name}: 'modalities' is {few(there)}; it must list different, non-empty names "
      f"other than {RESERVED} and the `<m>_len`, `<m>_present`, `<m>_kind`, "
      "`<m>_rate` of others."
    )
  _check_names(name, "modality", there)
  unknown = [m for m in chosen if m not in there]
  if unknown or len(set(chosen)) != len(chosen):
    raise DataError(
      f"{name}: modalities={tuple(chosen)!r} must be different names out of "
      f"{few(there)}."
    )
  return list(chosen) or there


def _texts(name: str, key: str, values: np.ndarray) -> list[str]:
  """A list of names from a 1-D array of str or bytes (or of numbers, as text)."""
  if values.ndim != 1 or values.dtype.kind not in "USiu":
    raise DataError(
      f"{name}: {key} must be a list of names, got {values.dtype} {values.shape}."
    )
  try:
    if values.dtype.kind == "S":
      values = np.char.decode(values, "utf-8")
    return [str(v) for v in values.tolist()]
  except (ValueError, SystemError) as error:  # What is no text, in either form.
    raise DataError(f"{name}: {key} is no readable text ({reason(error)}).") from error


def _check_names(name: str, what: str, names: Sequence[str]) -> None:
  """Refuses names that cannot be shown, or told apart, or that look like paths."""
  seen: dict[str, str] = {}
  for word in names:
    where = f"{name}: the {what} name {word[:LONGEST_NAME]!r}"
    if len(word) > LONGEST_NAME:
      raise DataError(f"{where} is longer than {LONGEST_NAME} characters.")
    if _UNSAFE.search(word):
      raise DataError(f"{where} has a path separator or a control character.")
    looks = " ".join(unicodedata.normalize("NFC", word).split())
    if looks in seen or not looks:
      raise DataError(
        f"{where} looks like {seen.get(looks, '')!r}; rename one of them."
      )
    seen[looks] = word


def _distinct(name: str, key: str, what: str, values: Any) -> list[str]:
  names = _texts(name, key, np.asarray(values))
  twice = sorted(v for v, count in collections.Counter(names).items() if count > 1)
  if twice or "" in names:
    raise DataError(
      f"{name}: {key} must be different, non-empty names; {few(twice or [''])} is not."
    )
  _check_names(name, what, names)
  return names


def _labels(name: str, arrays: Mapping[str, Any]) -> tuple[np.ndarray, list[str]]:
  label = np.asarray(arrays["label"])
  if label.ndim != 1 or label.dtype.kind not in "iub":
    raise DataError(
      f"{name}: label must be integers [N], got {label.dtype} {label.shape}."
    )
  label = label.astype(np.uint8) if label.dtype.kind == "b" else label
  if not len(label):
    raise DataError(f"{name}: label is empty.")
  values = np.unique(label)
  if len(values) < 2:
    raise DataError(f"{name}: every label is {values[0]}; two classes are the least.")
  if "class_names" not in arrays:
    return np.searchsorted(values, label), [str(v) for v in values.tolist()]
  class_names = _distinct(name, "class_names", "class", arrays["class_names"])
  bad = np.flatnonzero((label < 0) | (label >= len(class_names)))
  if bad.size:
    raise DataError(
      f"{name}: label is {label[bad[0]]} in row {bad[0]} ({bad.size} rows in all), but "
      f"class_names has {len(class_names)} names, so labels are "
      f"0..{len(class_names) - 1}. Without class_names any integers are allowed."
    )
  return label, class_names


def _domains(
  name: str, arrays: Mapping[str, Any], n: int
) -> tuple[np.ndarray, list[str]]:
  """Positions ``[N]`` in a list of the domains that have rows, and that list."""
  domain = np.asarray(arrays["domain"])
  if domain.shape != (n,) or domain.dtype.kind not in "iubUS":
    raise DataError(
      f"{name}: domain must be integers or names [{n}] (label has {n} rows), got "
      f"{domain.dtype} {domain.shape}."
    )
  if domain.dtype.kind in "US":
    domain = np.array(_texts(name, "domain", domain))
    if (domain == "").any():
      row = np.flatnonzero(domain == "")[0]
      raise DataError(f"{name}: domain is the empty string in row {row}.")
  values, position = np.unique(domain, return_inverse=True)
  found = [str(v) for v in values.tolist()]
  if "domain_names" in arrays:
    names = _distinct(name, "domain_names", "domain", arrays["domain_names"])
    found = _known_domains(name, domain, values, names)
    there = set(found)
    keep = [d for d in names if d in there]  # The order of the file.
    place = {d: i for i, d in enumerate(keep)}
    position = np.array([place[d] for d in found])[position]
  else:
    _check_names(name, "domain", found)
    keep = found
  if len(keep) < 2:
    raise DataError(
      f"{name}: every row is of domain {keep[0]!r}; leave-one-domain-out needs two."
    )
  return position, keep


def _known_domains(name, domain, values, names: list[str]) -> list[str]:
  """Names of the ``values`` that occur in ``domain``; unknown ones are an error."""
  if domain.dtype.kind == "U":
    unknown = ~np.isin(values, names)
    allowed = f"one of domain_names {few(names)}"
  else:
    unknown = (values < 0) | (values >= len(names))
    allowed = f"in 0..{len(names) - 1}, a position in domain_names {few(names)}"
  if unknown.any():
    value = values[unknown][0]
    row = np.flatnonzero(domain == value)[0]
    raise DataError(f"{name}: domain is {value.item()!r} in row {row}, not {allowed}.")
  return [v if isinstance(v, str) else names[int(v)] for v in values.tolist()]


def _kind(name: str, m: str, value: np.ndarray) -> str:
  kind = _texts(name, f"{m}_kind", value.reshape(-1))
  if len(kind) != 1 or kind[0] not in ARRAY_KINDS:
    raise DataError(
      f"{name}: {m}_kind is {few(kind)}; allowed is one of {ARRAY_KINDS}."
    )
  return kind[0]


def _rate(name: str, m: str, value: np.ndarray) -> float:
  if value.size != 1 or value.dtype.kind not in "iuf" or not 0 < value.item() < np.inf:
    raise DataError(f"{name}: {m}_rate must be samples per second, one number above 0.")
  return float(value.item())


def _variant(name: str, value: np.ndarray) -> str:
  words = _texts(name, "variant", value.reshape(-1))
  if len(words) != 1 or not re.fullmatch(r"[A-Za-z0-9.,=_+-]{1,100}", words[0]):
    raise DataError(
      f"{name}: variant is {few(words)}; it must be one word of letters, digits and "
      ".,=_+-"
    )
  return words[0]


def _flags(name: str, m: str, value: np.ndarray) -> np.ndarray:
  if value.dtype.kind not in "biu" or not np.isin(value, (0, 1)).all():
    raise DataError(f"{name}: {m}_present must hold booleans, got {value.dtype}.")
  return value.astype(bool)


def _groups(name: str, arrays: Mapping[str, Any]) -> np.ndarray | None:
  if "group" not in arrays:
    return None
  group = np.asarray(arrays["group"])
  if group.ndim != 1 or group.dtype.kind not in "iuUS":
    raise DataError(
      f"{name}: group must be integers or names [N], got {group.dtype} {group.shape}."
    )
  return group if group.dtype.kind in "iu" else np.unique(group, return_inverse=True)[1]


def _split(name: str, arrays: Mapping[str, Any], n: int) -> np.ndarray | None:
  if "split" not in arrays:
    return None
  split = np.asarray(arrays["split"])
  if split.shape != (n,) or split.dtype.kind not in "iuUS":
    raise DataError(
      f"{name}: split must be [{n}] out of {SPLITS} or 0, 1, 2, got {split.dtype} "
      f"{split.shape}."
    )
  if split.dtype.kind in "iu":
    return split
  names = np.array(_texts(name, "split", split))
  bad = np.flatnonzero(~np.isin(names, SPLITS))
  if bad.size:
    raise DataError(
      f"{name}: split is {str(names[bad[0]])!r} in row {bad[0]}; allowed is one of "
      f"{SPLITS}."
    )
  return np.array([SPLITS.index(s) for s in names.tolist()])


def _check_ids(name: str, ids: np.ndarray, n: int) -> None:
  if ids.shape != (n,):
    raise DataError(f"{name}: id must be [{n}], got shape {ids.shape}.")
  _, first, count = np.unique(ids, return_index=True, return_counts=True)
  if (count > 1).any():
    value = ids[first[count > 1][0]]
    rows = np.flatnonzero(ids == value)[:2].tolist()
    raise DataError(f"{name}: id {value.item()!r} stands in rows {rows}; ids differ.")
