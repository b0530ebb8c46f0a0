"""What a dataset is; and the one in memory: modalities, labels, domains, masks."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import numpy as np

from mer_dg.contracts import KINDS, Batch, InputSpec
from mer_dg.data.evidence import Reading, channel_axis, read_kind
from mer_dg.data.waveform import log_bands

if TYPE_CHECKING:
  from mer_dg.data.stream import RowSource  # It knows this module.

# What an array may be declared as; a waveform becomes a sequence of log band powers.
ARRAY_KINDS = (*KINDS, "waveform")
SPLITS = ("train", "val", "test")

TARGET_ROWS = ("test", "all")


class DataError(ValueError):
  """Bad data: the message names the file or set, the array and the row."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Dataset(abc.ABC):
  """A multimodal classification set with domains; where its inputs are is its affair.

  Sets in memory (`ArrayDataset`) and sets on disk (`video.VideoDataset`) satisfy it.

  Attributes:
    name: Name used in records.
    label: int32 ``[N]`` in ``0..K-1``.
    domain: int32 ``[N]``, position in ``domain_names``.
    class_names: K names.
    domain_names: Names of all domains, sources and target alike.
    group: int64 ``[N]``; rows with one value are never separated by a split.
    split: int8 ``[N]`` position in `SPLITS`, or None for our own splits.
    index: int32 ``[N]`` stable sample id.
    version: Hash of the content, written into every record.
    target_rows: Which rows test a held-out domain where there is a ``split``: "test",
      its test rows (all, if it has none), or "all".
    notes: One line each on what the reader of the file left unread, and on modalities
      that are read as something else than dtype and rank suggest.
  """

  name: str
  label: np.ndarray
  domain: np.ndarray
  class_names: tuple[str, ...]
  domain_names: tuple[str, ...]
  group: np.ndarray
  split: np.ndarray | None
  index: np.ndarray
  version: str
  target_rows: str = "test"
  notes: tuple[str, ...] = ()

  on_disk: ClassVar[bool] = False  # Whether `in_memory` raises.

  @property
  @abc.abstractmethod
  def specs(self) -> dict[str, InputSpec]:
    """What a network has to know of each modality, in their order."""

  @abc.abstractmethod
  def select_modalities(self, modalities: Sequence[str]) -> Self:
    """The set with the named modalities.

    Raises:
      DataError: A name that is not one of ``modalities``, or none.
    """

  @abc.abstractmethod
  def reader(self, *, train: bool, seed: int = 0) -> RowSource:
    """Row after row, for `stream.stream_batches` and `stream.stream_blocks`.

    A row is made of new arrays each time: on a CPU a program may read them in place
    after the next row was asked for.

    Args:
      train: Whether rows are augmented, where the set does that.
      seed: Of the augmentation.
    """

  @abc.abstractmethod
  def in_memory(self) -> ArrayDataset:
    """The set with all its inputs in memory.

    Raises:
      DataError: If they do not fit there.
    """

  @abc.abstractmethod
  def scaling(self, rows: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Scaling of the inputs, from ``rows`` only; see `arrays.fit_scaling`."""

  def device_inputs(
    self, batch: Batch, *, key: jax.Array | None = None, epoch: Any = 0
  ) -> dict[str, Any]:
    """Inputs of the network from those of a batch: on the device, inside the step.

    Args:
      batch: A batch of rows.
      key: Of the training noise, where the set has one; None in evaluation.
      epoch: The step, in training.
    """
    del key, epoch
    return batch["inputs"]

  @property
  def num_damaged(self) -> int:
    """Rows that could not be read so far and were left out."""
    return 0

  @property
  def tags(self) -> dict[str, str]:
    """What records have to say of the set beside its version."""
    return {}

  @classmethod
  def from_arrays(
    cls, inputs: Mapping[str, Any], *, label: Any, domain: Any, name: str = "data",
    **more: Any,
  ) -> Dataset:  # fmt: skip
    """A dataset from arrays in memory, checked as a file would be.

    Args:
      inputs: ``{modality: [N, ...]}``; its order is the order of modalities.
      label: ``[N]``, integers from 0 or names of classes.
      domain: ``[N]``, names or integers.
      name: Of the set, for records and messages.
      **more: Other keys of the format (docs/data.md): ``class_names``, ``group``,
        ``split``, ``id``, ``<modality>_len``, ``<modality>_present``,
        ``<modality>_kind``.

    Raises:
      DataError: As `mer_dg.data.load_npz`.

    Example:
      >>> from mer_dg.data import Dataset
      >>> arrays = {"video": np.ones((4, 3)), "audio": np.ones((4, 9, 2))}
      >>> d = Dataset.from_arrays(arrays, label=["run", "sit", "run", "sit"],
      ...                         domain=["lab", "lab", "home", "home"])
      >>> d.class_names, d.domain_names, d.modalities
      (('run', 'sit'), ('home', 'lab'), ('video', 'audio'))
    """
    from mer_dg.data.npz import from_arrays  # It knows this module.

    if not isinstance(inputs, Mapping) or not inputs:
      raise DataError(
        f"{name}: inputs must be {{modality: array [N, ...]}}, got "
        f"{'none' if isinstance(inputs, Mapping) else type(inputs).__name__}."
      )
    label, domain = _names(label), _names(domain)
    if label.dtype.kind in "US":
      more["class_names"], label = np.unique(label, return_inverse=True)
    given = {"modalities": list(inputs), **inputs, "label": label, "domain": domain}
    return from_arrays({**given, **more}, name=name)

  def __len__(self) -> int:
    return len(self.label)

  def __repr__(self) -> str:
    shapes = ", ".join(f"{m} {list(s.shape)}" for m, s in self.specs.items())
    return (
      f"{type(self).__name__}({self.name!r}: {len(self)} rows, {shapes}; "
      f"{self.num_classes} classes, {self.num_domains} domains)"
    )

  @functools.cached_property
  def warnings(self) -> list[str]:
    """What is odd about the set; see `mer_dg.data.suspicions`."""
    from mer_dg.data.suspicions import suspicions  # It knows this module.

    return suspicions(self)

  @property
  def modalities(self) -> tuple[str, ...]:
    return tuple(self.specs)

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @property
  def num_domains(self) -> int:
    return len(self.domain_names)

  def domain_id(self, name: str) -> int:
    """Position of a domain name; a `DataError` lists the names there are."""
    if name not in self.domain_names:
      raise DataError(
        f"{self.name}: domain {name!r} is not one of {list(self.domain_names)}."
      )
    return self.domain_names.index(name)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ArrayDataset(Dataset):
  """A set held in memory.

  Arrays keep the dtype in which they were stored (uint8 images, float16
  sequences); scaling to float32 happens on the device, inside the step.

  Attributes:
    inputs: ``{modality: [N, ...]}``; its order is the order of modalities.
    kinds: ``{modality: kind}``, one of `KINDS`; fixes the rank of the inputs.
    present: ``{modality: bool [N]}``; False where that modality is missing.
    lengths: ``{modality: int32 [N]}`` valid steps of zero-padded sequences;
      modalities without padding are absent.
    why: ``{modality: words}``, why it has its kind, and what was made of it.
    waveforms: ``{modality: (samples of a row, per second)}`` of what was a waveform
      before it became log power in bands; the rate is None where it is not known.
  """

  inputs: Mapping[str, np.ndarray]
  kinds: Mapping[str, str]
  present: Mapping[str, np.ndarray]
  lengths: Mapping[str, np.ndarray]
  why: Mapping[str, str] = dataclasses.field(default_factory=dict)
  waveforms: Mapping[str, tuple[int, float | None]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def specs(self) -> dict[str, InputSpec]:
    specs = {}
    for m, x in self.inputs.items():
      shape, masked = x.shape[1:], m in self.lengths
      if masked:  # `to_arrays` appends the validity channel.
        shape = (*shape[:-1], shape[-1] + 1)
      specs[m] = InputSpec(self.kinds[m], shape, masked=masked)
    return specs

  @property
  def modalities(self) -> tuple[str, ...]:
    return tuple(self.inputs)

  def reader(self, *, train: bool, seed: int = 0) -> RowSource:
    from mer_dg.data.stream import ArraySource  # It needs Grain.

    return ArraySource(self)

  def in_memory(self) -> ArrayDataset:
    return self

  def scaling(self, rows: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    from mer_dg.data.arrays import fit_scaling  # It knows this module.

    return fit_scaling(self, rows)

  def take(self, rows: np.ndarray) -> ArrayDataset:
    """The dataset restricted to ``rows`` (ids, groups and names unchanged)."""
    pick = lambda tree: {m: a[rows] for m, a in tree.items()}
    return dataclasses.replace(
      self,
      inputs=pick(self.inputs),
      present=pick(self.present),
      lengths=pick(self.lengths),
      label=self.label[rows],
      domain=self.domain[rows],
      group=self.group[rows],
      index=self.index[rows],
      split=None if self.split is None else self.split[rows],
    )

  def select_modalities(self, modalities: Sequence[str]) -> ArrayDataset:
    """The dataset with the named modalities, in the order given."""
    unknown = [m for m in modalities if m not in self.inputs]
    if unknown or not modalities:
      raise DataError(
        f"{self.name}: modalities={tuple(modalities)!r} must be one or more of "
        f"{self.modalities}."
      )
    pick = lambda tree: {m: tree[m] for m in modalities if m in tree}
    return dataclasses.replace(
      self,
      inputs=pick(self.inputs),
      kinds=pick(self.kinds),
      present=pick(self.present),
      lengths=pick(self.lengths),
      why=pick(self.why),
    )


def _names(column: Any) -> np.ndarray:
  """A column of a table; pandas keeps strings as objects."""
  column = np.asarray(column)
  texts = column.dtype.kind in "OT" and all(isinstance(v, str) for v in column.flat)
  return column.astype(str) if texts and column.size else column


def check_is_dataset(data: Any) -> None:
  """Raises `DataError` for what a user may give in the place of a dataset.

  Example:
    >>> check_is_dataset("set.npz")
    Traceback (most recent call last):
    mer_dg.data.dataset.DataError: data must be a Dataset, got str: ...
  """
  if not isinstance(data, Dataset):
    raise DataError(
      f"data must be a Dataset, got {type(data).__name__}: "
      "mer_dg.Dataset.from_arrays({modality: array}, label=..., domain=...) or "
      'mer_dg.load_dataset("set.npz") make one.'
    )


def make_dataset(
  *,
  name: str,
  inputs: Mapping[str, np.ndarray],
  label: np.ndarray,
  domain: np.ndarray,
  class_names: Sequence[str],
  domain_names: Sequence[str],
  kinds: Mapping[str, str] | None = None,
  rates: Mapping[str, float] | None = None,
  present: Mapping[str, np.ndarray] | None = None,
  lengths: Mapping[str, np.ndarray] | None = None,
  group: np.ndarray | None = None,
  split: np.ndarray | None = None,
  index: np.ndarray | None = None,
) -> ArrayDataset:
  """Builds an `ArrayDataset`, filling what is optional and checking all of it.

  Inputs are brought to the rank of their kind: grey images and clips get a
  channel axis, colours that stand first go last, trailing axes of a sequence become
  channels, a waveform becomes a sequence of log band powers (`mer_dg.data.waveform`).

  Args:
    name: Name for records and messages.
    inputs: ``{modality: [N, ...]}`` numbers. uint8, int8, int16, float16 and float32
      are stored as they are, everything else as float32.
    label: Integers ``[N]`` in ``0..len(class_names)-1``.
    domain: Integers ``[N]`` in ``0..len(domain_names)-1``.
    class_names: K names.
    domain_names: Names of the domains.
    kinds: ``{modality: kind}``; by default what the array shows to be, see
      `mer_dg.data.evidence.read_kind`.
    rates: ``{modality: samples per second}`` of waveforms.
    present: ``{modality: bool [N]}``; default all True.
    lengths: ``{modality: int [N]}`` valid steps of padded sequences; the padding
      of clips is overwritten by looping the valid frames, so that it needs no mask.
    group: Integers ``[N]``; default each row its own group.
    split: Integers ``[N]``, position in `SPLITS`; default None.
    index: Stable ids ``[N]``; default ``arange(N)``.

  Returns:
    The dataset.

  Raises:
    DataError: Unequal lengths, NaN or infinity in a row where the modality is
      present, labels or domains out of range, lengths outside ``1..T``.

  Example:
    >>> d = make_dataset(name="toy", inputs={"a": np.zeros((4, 2), np.float32)},
    ...                  label=[0, 1, 0, 1], domain=[0, 0, 1, 1],
    ...                  class_names=["x", "y"], domain_names=["p", "q"])
    >>> d
    ArrayDataset('toy': 4 rows, a [2]; 2 classes, 2 domains)
  """
  if not inputs:
    raise DataError(f"{name}: no modalities.")
  n = len(np.asarray(label))
  stored = {m: _storable(name, m, np.asarray(a)) for m, a in inputs.items()}
  label = _integers(name, "label", label, n, len(class_names))
  domain = _integers(name, "domain", domain, n, len(domain_names))
  for m, a in stored.items():
    if a.shape[:1] != (n,):
      have = f"{len(a)} rows" if a.ndim else "no rows"
      raise DataError(f"{name}: {m!r} has {have} but label has {n}.")
  present = {
    m: np.asarray((present or {}).get(m, np.ones(n, bool)), bool) for m in stored
  }
  for m, flags in present.items():
    if flags.shape != (n,):
      raise DataError(f"{name}: {m}_present must be [{n}], got shape {flags.shape}.")
  lengths = dict(lengths or {})
  readings = {
    m: _reading(name, m, a, (kinds or {}).get(m), present[m], m in lengths)
    for m, a in stored.items()
  }
  kinds = {m: reading.kind for m, reading in readings.items()}
  arrays = {m: _to_rank(name, m, a, kinds[m]) for m, a in stored.items()}
  lengths = {
    m: _check_lengths(name, m, np.asarray(v), arrays[m], kinds[m], present[m])
    for m, v in lengths.items()
  }
  if n and not any(flags.any() for flags in present.values()):
    raise DataError(f"{name}: every modality is missing in every row.")
  for m, a in arrays.items():
    _check_finite(name, m, a, present[m], lengths.get(m))
  why = {m: reading.why for m, reading in readings.items()}
  notes = tuple(
    _odd_line(m, stored[m], reading) for m, reading in readings.items() if reading.odd
  )
  waveforms: dict[str, tuple[int, float | None]] = {}
  for m in [m for m in arrays if kinds[m] == "waveform"]:
    rate = (rates or {}).get(m)
    waveforms[m] = arrays[m].shape[1], rate
    arrays[m], frames = _bands(name, m, arrays[m], rate, present[m], lengths.get(m))
    if frames is not None:
      lengths[m] = frames
    kinds[m] = "sequence"
    at = f" at {rate:g} Hz" if rate else ""
    why[m] = f"waveform: {why[m]}; log power in bands{at}"
  for m in [m for m in lengths if kinds[m] == "clip"]:
    arrays[m] = _looped(arrays[m], lengths.pop(m))
  group = np.arange(n) if group is None else np.asarray(group)
  if group.shape != (n,):
    raise DataError(f"{name}: group must be [{n}], got shape {group.shape}.")
  if not np.issubdtype(group.dtype, np.integer):
    group = np.unique(group, return_inverse=True)[1]
  if split is not None:
    split = _integers(name, "split", split, n, len(SPLITS)).astype(np.int8)
  return ArrayDataset(
    name=name,
    inputs=arrays,
    kinds=kinds,
    label=label,
    domain=domain,
    class_names=tuple(map(str, class_names)),
    domain_names=tuple(map(str, domain_names)),
    present=present,
    lengths=lengths,
    group=group.astype(np.int64),
    split=split,
    index=np.asarray(np.arange(n) if index is None else index, np.int32),
    version=_content_hash(
      arrays, label, domain, group, split, lengths, present, class_names, domain_names
    ),
    notes=notes,
    why=why,
    waveforms=waveforms,
  )


def infer_kind(array: np.ndarray, *, name: str = "array") -> str:
  """Kind of a modality from dtype and shape alone: where its numbers do not tell.

  ``[N, D]`` vector; float ``[N, T, ...]`` sequence; uint8 ``[N, H, W]``
  or ``[N, H, W, 1|3|4]`` image; other uint8 ``[N, T, H, W]`` (or with a
  channel axis) clip.

  Args:
    array: The modality, numbers.
    name: What the message calls it.

  Returns:
    One of `KINDS`.

  Raises:
    DataError: If dtype and rank fit none of them.

  Example:
    >>> infer_kind(np.zeros((5, 8, 32, 32), np.uint8))
    'clip'
  """
  rank, dtype = array.ndim, array.dtype
  if rank == 2:
    return "vector"
  if dtype == np.uint8:
    if rank == 3 or (rank == 4 and array.shape[-1] in (1, 3, 4)):
      return "image"
    if rank in (4, 5):
      return "clip"
  elif rank >= 3:
    return "sequence"
  raise DataError(
    f"{name} with dtype {dtype} and shape {array.shape} is none of: numbers [N, D] "
    "(vector), numbers [N, T, ...] (sequence), uint8 [N, H, W(, 1|3|4)] (image), "
    "uint8 [N, T, H, W(, C)] (clip)."
  )


def _storable(name: str, m: str, a: np.ndarray) -> np.ndarray:
  """Kept if lossless on any device; other numbers (float64, int64) as float32."""
  if a.dtype.kind not in "fiub":
    raise DataError(f"{name}: {m!r} must hold numbers, got {a.dtype}.")
  if a.dtype in (np.uint8, np.int8, np.int16, np.float16, np.float32):
    return a
  with np.errstate(over="ignore"):  # What overflows is reported as infinity.
    return a.astype(np.float32)


def _reading(name, m, a, kind, present, has_lengths) -> Reading:
  """The kind that is given, or what the array shows to be."""
  if kind is None:
    by_rank = infer_kind(a, name=f"{name}: {m!r}")
    here = a if present.all() else a[present]
    if 0 in here.shape:
      return Reading(by_rank, f"by its {a.ndim} axes")
    return read_kind(here, by_rank=by_rank, has_lengths=has_lengths)
  if kind not in ARRAY_KINDS:
    raise DataError(f"{name}: {m}_kind={kind!r} is not one of {ARRAY_KINDS}.")
  return Reading(kind, "as given")


def _odd_line(m: str, a: np.ndarray, reading: Reading) -> str:
  """What a modality is taken for, and how to say that it is not."""
  rank = infer_kind(a)
  other = rank if rank != reading.kind else "vector"
  shape = f"[N, {', '.join(map(str, a.shape[1:]))}]"
  return (
    f"{m!r} {shape} is read as {reading.kind} ({reading.why}); "
    f"--config.data.kinds.{m}={other} if it is none."
  )


def _bands(name, m, a, rate, present, lengths):
  try:
    bands, frames = log_bands(
      np.where(present[:, None, None], a, 0), rate=rate, lengths=lengths
    )
  except ValueError as error:
    raise DataError(f"{name}: {m!r} is no waveform: {error}") from error
  return bands, frames


def _to_rank(name: str, m: str, a: np.ndarray, kind: str) -> np.ndarray:
  rank = KINDS["sequence" if kind == "waveform" else kind]
  if kind == "vector":
    a = a.reshape(len(a), -1)
  elif kind in ("sequence", "waveform"):
    a = a.reshape(*a.shape[:2], -1) if a.ndim >= 2 else a
  elif a.ndim == rank:  # grey: no channel axis
    a = a[..., None]
  elif first := channel_axis(a.shape, kind):
    a = np.moveaxis(a, first, -1)
  if a.ndim != rank + 1 or 0 in a.shape[1:]:
    raise DataError(f"{name}: {m!r} with shape {a.shape} is not of kind {kind!r}.")
  return np.ascontiguousarray(a)


def _integers(name: str, key: str, values, n: int, limit: int) -> np.ndarray:
  values = np.asarray(values)
  if values.ndim != 1 or len(values) != n:
    raise DataError(f"{name}: {key} must be [{n}], got shape {values.shape}.")
  if not np.issubdtype(values.dtype, np.integer):
    raise DataError(f"{name}: {key} must hold integers, got {values.dtype}.")
  bad = np.flatnonzero((values < 0) | (values >= limit))
  if bad.size:
    raise DataError(
      f"{name}: {key} is {values[bad[0]]} in row {bad[0]}; allowed 0..{limit - 1}"
      f" ({bad.size} rows are out of range)."
    )
  return values.astype(np.int32)


def _check_lengths(name, m, lengths, array, kind, present) -> np.ndarray:
  if kind not in ("sequence", "clip", "waveform"):
    raise DataError(f"{name}: {m}_len is given, but {m!r} is of kind {kind!r}.")
  if lengths.shape != (len(array),) or not np.issubdtype(lengths.dtype, np.integer):
    raise DataError(
      f"{name}: {m}_len must be integers [{len(array)}], got {lengths.dtype} "
      f"{lengths.shape}."
    )
  bad = np.flatnonzero(((lengths < 1) | (lengths > array.shape[1])) & present)
  if bad.size:
    raise DataError(
      f"{name}: {m}_len is {lengths[bad[0]]} in row {bad[0]}; allowed "
      f"1..{array.shape[1]} where the modality is present."
    )
  return np.where(present, lengths, 1).astype(np.int32)


def _check_finite(name, m, array, present, lengths) -> None:
  if not np.issubdtype(array.dtype, np.floating):
    return
  finite = np.isfinite(array)
  if lengths is not None:  # What lies in the padding is never read.
    steps = np.arange(array.shape[1])[None, :] >= lengths[:, None]
    finite |= steps[..., None]
  bad = np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1) & present)
  if bad.size:
    raise DataError(
      f"{name}: {m!r} holds NaN or infinity in row {bad[0]} ({bad.size} rows in all)."
      f" Mark rows that lack it: {m}_present of a set, present of predict."
    )


def _looped(clips: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  """Clips ``[N, T, ...]`` that start again after their last valid frame."""
  frame = np.arange(clips.shape[1])[None, :] % lengths[:, None]  # [N, T]
  return clips[np.arange(len(clips))[:, None], frame]


def _content_hash(
  arrays, label, domain, group, split, lengths, present, class_names, domain_names
) -> str:
  names = (list(map(str, class_names)), list(map(str, domain_names)))
  digest = hashlib.sha256(repr(names).encode())
  parts = [*arrays.items(), ("label", label), ("domain", domain), ("group", group)]
  parts += [(f"{m}_len", v) for m, v in lengths.items()]
  parts += [(f"{m}_present", v) for m, v in present.items()]
  parts += [] if split is None else [("split", split)]
  for key, value in parts:
    digest.update(f"{key}{value.dtype}{value.shape}".encode())
    digest.update(np.ascontiguousarray(value).data)
  return digest.hexdigest()[:12]
