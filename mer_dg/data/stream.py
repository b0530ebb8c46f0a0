"""Batches read row by row with Grain: for sets that do not fit on the device.

A stream yields, at every step, the very batch that the resident driver would draw
(`arrays.sample_batch`): which rows make up the batch of a step is a pure function of
(key, step), evaluated here ahead of time. A stream's whole state is therefore the
next step, whatever the number of threads or worker processes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
import json
import multiprocessing
import threading
from typing import Any, Protocol

from absl import flags
import grain
import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.contracts import Batch
from mer_dg.data.arrays import Arrays, gather_batch, to_arrays
from mer_dg.data.dataset import ArrayDataset, DataError, Dataset
from mer_dg.data.sampling import Pool, draw_batch

# Steps drawn by one compiled call; two blocks are kept, since threads that work
# around the end of one need both.
_BLOCK = 256
_LAST_STEP = 2**31 - 1  # Steps are int32 on the device.

Row = dict[str, Any]


class RowSource(Protocol):
  """Random access to rows, e.g. a TFDS data source or a folder of decoded files."""

  def __len__(self) -> int: ...

  def __getitem__(self, row: int, /) -> Any:
    """``{"inputs": {m: array}, "present": {m: bool}, "label": int, "index": int}``.

    Arrays of one modality have one shape in all rows; where a modality is missing
    they are zero. A row that also has ``"damaged": WHAT`` is masked, like padding, and
    told to the ``note(row, what)`` of a source that has one, in this process.
    Sources of other elements come with a ``read_row``. A source that
    augments has ``read(row, step)`` instead, and gets the step of the batch.
    """
    ...


class ArraySource:
  """Row access to an `ArrayDataset`, with the arrays of `to_arrays`.

  Example:
    >>> from mer_dg.data.dataset import make_dataset
    >>> source = ArraySource(make_dataset(
    ...   name="toy", inputs={"a": np.eye(2)}, label=[0, 1], domain=[0, 1],
    ...   class_names=["x", "y"], domain_names=["p", "q"]))
    >>> len(source), source[1]["inputs"]["a"].tolist()
    (2, [0.0, 1.0])
  """

  def __init__(self, dataset: ArrayDataset):
    self.arrays = to_arrays(dataset)

  def __len__(self) -> int:
    return len(self.arrays.label)

  def __getitem__(self, row: int, /) -> Row:
    return jax.tree.map(lambda a: a[row], self.arrays)._asdict()


def stream_batches(
  data: Dataset | RowSource,
  *,
  key: jax.Array,
  pool: Pool,
  per_domain: int,
  start_step: int = 0,
  num_threads: int = 4,
  prefetch: int = 4,
  num_workers: int = 0,
  read_row: Callable[[Any], Row] | None = None,
) -> BatchStream:
  """An endless stream of training batches, from ``start_step`` on.

  Args:
    data: A dataset, or any `RowSource`.
    key: Key of the data order, as for `sampling.draw_batch`.
    pool: Rows of the source domains.
    per_domain: Rows per domain.
    start_step: Step of the first batch.
    num_threads: Threads that read batches; 0 reads in the caller's thread.
    prefetch: Batches read ahead by the threads of each process.
    num_workers: Processes that read; 0 reads in this one. For decoding that holds
      Python's global lock; ``data`` and ``read_row`` must then be picklable.
    read_row: Turns an element of ``data`` into the row of a `RowSource`, by default
      nothing. Runs in the threads and processes.

  Returns:
    The stream. Its batches are numpy arrays (see `DevicePrefetch`).

  Raises:
    DataError: ``pool`` names rows that ``data`` does not have.
    ValueError: A number out of range.
  """
  counts = {"per_domain": (per_domain, 1), "start_step": (start_step, 0)}
  counts |= {"num_threads": (num_threads, 0), "prefetch": (prefetch, 1)}
  for name, (value, least) in (counts | {"num_workers": (num_workers, 0)}).items():
    if value < least:
      raise ValueError(f"{name} must be at least {least}, got {value}.")
  source = data.reader(train=True) if isinstance(data, Dataset) else data
  last = int(np.max(np.asarray(pool.rows)))
  if last >= len(source):
    raise DataError(f"pool names row {last}, but the data has {len(source)} rows.")
  load = _Loader(source, _Plan(key, pool, per_domain), read_row)
  return BatchStream(load, start_step, num_threads, prefetch, num_workers)


def stream_blocks(
  source: RowSource,
  rows: np.ndarray,
  domain: np.ndarray,
  mask: np.ndarray,
  *,
  num_threads: int = 4,
  prefetch: int = 4,
  num_workers: int = 0,
) -> BatchStream:
  """The batches of given rows, in order and once: for evaluation.

  Args:
    source: Where rows come from.
    rows: int ``[blocks, B]``, from `arrays.eval_blocks`.
    domain: int ``[blocks, B]``, goes into the batches.
    mask: bool ``[blocks, B]``, False on padding.
    num_threads: As for `stream_batches`.
    prefetch: As for `stream_batches`.
    num_workers: As for `stream_batches`.

  Returns:
    The stream; it ends after the last block.
  """
  load = _Loader(source, _Blocks(rows, domain, mask), None)
  return BatchStream(load, 0, num_threads, prefetch, num_workers, end=len(rows))


class BatchStream(Iterator[Batch]):
  """Iterator of batches whose state is the step of the batch to come.

  It has what ``grain.checkpoint.CheckpointSave`` and ``CheckpointRestore`` ask for.
  Made by `stream_batches`.
  """

  def __init__(
    self,
    load: _Loader,
    start_step: int,
    num_threads: int,
    prefetch: int,
    num_workers: int,
    *,
    end: int = _LAST_STEP,
  ):
    self._load, self._end = load, end
    self._options = grain.ReadOptions(
      num_threads=num_threads, prefetch_buffer_size=prefetch
    )
    self._num_workers = num_workers
    self._prefetch = prefetch
    self._step = start_step
    self._batches: Any = None

  def __next__(self) -> Batch:
    if self._batches is None:
      self._batches = self._open(self._step)
    batch, damaged = next(self._batches)
    for row, what in damaged:
      self._load.note(row, what)
    self._step += 1
    return batch

  def _open(self, step: int) -> Any:
    steps = grain.MapDataset.range(step, self._end)
    batches = steps.map(self._load).to_iter_dataset(self._options)
    if self._num_workers:
      if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags.
        flags.FLAGS.mark_as_parsed()
      batches = batches.mp_prefetch(
        grain.MultiprocessingOptions(
          num_workers=self._num_workers, per_worker_buffer_size=self._prefetch
        )
      )
    return iter(batches)

  @property
  def step(self) -> int:
    """Step of the batch that the next call of ``next`` returns."""
    return self._step

  def get_state(self) -> bytes:
    """The state as JSON; valid for any number of threads and workers."""
    return json.dumps({"step": self._step}).encode()

  def set_state(self, state: bytes) -> None:
    """Moves to a state of `get_state`; what was read ahead is dropped."""
    step = json.loads(state)["step"]
    self.close()
    self._step = step

  def start_prefetch(self) -> None:
    """Begins to read ahead before the first batch is asked for."""
    if self._batches is None:
      self._batches = self._open(self._step)
      if hasattr(self._batches, "start_prefetch"):
        self._batches.start_prefetch()

  def close(self) -> None:
    """Ends threads and processes; the stream can go on and starts new ones."""
    if hasattr(self._batches, "close"):
      self._batches.close()
    self._batches = None


class DevicePrefetch(Iterator[Batch]):
  """Keeps ``size`` batches of a stream on their way to the device.

  Its state is that of the batch handed out next, not of the batch read last, so a
  checkpoint between two steps repeats and skips nothing.
  """

  def __init__(self, stream: BatchStream, *, size: int = 2, device: Any = None):
    """Wraps a stream.

    Args:
      stream: The stream; nobody else may advance it.
      size: Batches in flight, at least 1.
      device: Device or sharding, as for ``jax.device_put``.
    """
    if size < 1:
      raise ValueError(f"size must be at least 1, got {size}.")
    self._stream, self._size, self._device = stream, size, device
    self._waiting: deque[tuple[bytes, Batch]] = deque()

  def __next__(self) -> Batch:
    while len(self._waiting) < self._size:
      state = self._stream.get_state()
      batch = jax.device_put(next(self._stream), self._device)
      self._waiting.append((state, batch))
    return self._waiting.popleft()[1]

  def get_state(self) -> bytes:
    """State of the batch that comes next; see `BatchStream.get_state`."""
    return self._waiting[0][0] if self._waiting else self._stream.get_state()

  def set_state(self, state: bytes) -> None:
    """Moves to a state of `get_state`."""
    self._waiting.clear()
    self._stream.set_state(state)

  def start_prefetch(self) -> None:
    """Begins to read ahead before the first batch is asked for."""
    self._stream.start_prefetch()

  def close(self) -> None:
    """Ends the threads and processes of the stream."""
    self.set_state(self.get_state())


class _Plan:
  """Rows of the batch of any step: `draw_batch`, many steps per compiled call.

  Holds numpy arrays only, so that a worker process can be given a copy.
  """

  def __init__(self, key: jax.Array, pool: Pool, per_domain: int):
    self._key = np.asarray(jax.random.key_data(key))
    self._key_impl = str(jax.random.key_impl(key))
    self._pool = Pool(*map(np.asarray, pool))
    self._per_domain = per_domain
    self._reset()

  def _reset(self) -> None:
    self._lock = threading.Lock()
    self._blocks: OrderedDict[int, Any] = OrderedDict()
    self._draw: Any = None

  def __getstate__(self):
    made_here = ("_lock", "_blocks", "_draw")
    return {k: v for k, v in self.__dict__.items() if k not in made_here}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._reset()

  def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    block, place = divmod(step, _BLOCK)
    with self._lock:
      if block not in self._blocks:
        self._draw = self._draw or self._compile()
        steps = np.arange(_BLOCK, dtype=np.int64) + block * _BLOCK
        self._blocks[block] = self._draw(np.minimum(steps, _LAST_STEP).astype(np.int32))
        while len(self._blocks) > 2:
          self._blocks.popitem(last=False)
      rows, domain, mask = self._blocks[block]
    return rows[place], domain[place], mask[place]

  def _compile(self):
    """``steps [n] -> rows, domain, mask, each [n, B]``, on the host's processor."""
    if multiprocessing.parent_process() is not None:
      # A worker must not take the accelerator from the training process.
      jax.config.update("jax_platforms", "cpu")
    try:
      device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told to use an accelerator only.
      device = jax.local_devices()[0]
    key = jax.random.wrap_key_data(jnp.asarray(self._key), impl=self._key_impl)
    key, pool = jax.device_put((key, self._pool), device)
    draw = jax.jit(jax.vmap(draw_batch, (None, 0, None, None)), static_argnums=3)
    return lambda steps: jax.device_get(draw(key, steps, pool, self._per_domain))


class _Blocks:
  """Rows of the batch of a step, from a table; as `_Plan`."""

  def __init__(self, *columns: np.ndarray):
    self._columns = columns

  def __call__(self, step: int) -> tuple[np.ndarray, ...]:
    return tuple(column[step] for column in self._columns)


class _Loader:
  """``step -> batch, [(row, what is wrong with it)]``, run by Grain.

  In its threads, or in its processes, to which a copy is sent.
  """

  def __init__(
    self,
    source: Any,
    plan: Callable[[int], tuple[np.ndarray, ...]],
    read_row: Callable[[Any], Row] | None,
  ):
    self._source, self._plan, self._read_row = source, plan, read_row

  def __call__(self, step: int) -> tuple[Batch, list[tuple[int, str]]]:
    rows, domain, mask = self._plan(int(step))
    if isinstance(self._source, ArraySource) and self._read_row is None:
      return gather_batch(self._source.arrays, rows, domain, mask), []
    wanted, place = np.unique(rows, return_inverse=True)  # Padding repeats rows.
    elements = [self._row(int(r), int(step)) for r in wanted]
    what = [e.get("damaged", "") for e in elements]
    whole = np.array([not w for w in what])
    stacked = _stack(elements, wanted)
    batch = gather_batch(stacked, place, domain, mask & whole[place])
    return batch, [(int(r), str(w)) for r, w in zip(wanted, what, strict=True) if w]

  def note(self, row: int, what: str) -> None:
    """Tells the source, in the process that iterates, of a damaged row."""
    if hasattr(self._source, "note"):
      self._source.note(row, what)

  def _row(self, row: int, step: int) -> Row:
    if hasattr(self._source, "read"):  # Its augmentation depends on the step.
      return self._source.read(row, step)
    element = self._source[row]
    return element if self._read_row is None else self._read_row(element)


def _stack(elements: list[Row], rows: np.ndarray):
  """`Arrays` of a few rows."""
  first = elements[0]
  for element, row in zip(elements, rows, strict=True):
    for m, value in first["inputs"].items():
      shape, expected = np.shape(element["inputs"][m]), np.shape(value)
      if shape != expected:
        raise DataError(
          f"row {row}: {m!r} has shape {shape}, but row {rows[0]} has {expected}; "
          "pad or crop in read_row."
        )
  column = lambda get, dtype=None: np.stack(
    [np.asarray(get(e), dtype) for e in elements]
  )
  return Arrays(
    inputs={m: column(lambda e, m=m: e["inputs"][m]) for m in first["inputs"]},
    present={m: column(lambda e, m=m: e["present"][m], bool) for m in first["inputs"]},
    label=column(lambda e: e["label"], np.int32),
    index=column(lambda e: e["index"], np.int32),
  )
