"""A trained network that predicts, without the data that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from mer_dg.contracts import InputSpec, Network
from mer_dg.data.arrays import EVAL_BLOCK, Arrays, eval_blocks, to_arrays
from mer_dg.data.dataset import (
  ArrayDataset,
  DataError,
  Dataset,
  check_is_dataset,
  make_dataset,
)
from mer_dg.data.waveform import log_bands
from mer_dg.evaluation import classification_metrics
from mer_dg.networks import make_network
from mer_dg.protocol import write_atomic

# Of the files that `Model.save` writes. A reader refuses a larger number.
FORMAT = 1
_DESCRIPTION, _WEIGHTS = "model.json", "weights.safetensors"


class ModelError(ValueError):
  """A saved model that cannot be read; the message names the file and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A trained multimodal classifier; NumPy in, NumPy out.

  From `fit` or `load_model`. Inputs are ``{modality: array [N, ...]}`` as in training:
  any real dtype; a modality that is left out counts as missing in every row. Nothing
  but `EVAL_BLOCK` rows at a time leaves the host, so arrays may be memory-mapped.

  Attributes:
    specs: ``{modality: (kind, shape of one row as the network takes it, padded?)}``.
    class_names: Of the K classes, in the order of the columns of `predict_proba`.
    network: Options of `make_network`.
    variables: Of the network, NumPy arrays.
    waveforms: ``{modality: (samples of a row, per second)}`` of those that are given
      as waveforms and reach the network as log power in bands.
    about: Method, domains, seed, selected step and its scores, for a reader.
  """

  specs: Mapping[str, InputSpec]
  class_names: tuple[str, ...]
  network: Mapping[str, Any]
  variables: Mapping[str, Any]
  waveforms: Mapping[str, Any]
  about: Mapping[str, Any]

  @property
  def modalities(self) -> tuple[str, ...]:
    """Names, in the order of fusion."""
    return tuple(self.specs)

  @functools.cached_property
  def _network(self) -> Network:
    return make_network(self.specs, num_classes=len(self.class_names), **self.network)

  @functools.cached_property
  def _apply(self):
    return jax.jit(lambda v, x, here: self._network.apply(v, x, here, train=False)[0])

  @functools.cached_property
  def _fuse(self):
    return jax.jit(lambda v, z, here: self._network.fuse(v, z, here))

  def predict_proba(
    self,
    inputs: Mapping[str, Any],
    *,
    lengths: Mapping[str, Any] | None = None,
    present: Mapping[str, Any] | None = None,
  ) -> np.ndarray:
    """Probabilities of the classes, float32 ``[N, K]``.

    Args:
      inputs: ``{modality: [N, ...]}``.
      lengths: ``{modality: int [N]}``, valid steps of padded sequences.
      present: ``{modality: bool [N]}``, False where a modality is missing in a row.

    Raises:
      DataError: No or an unknown modality, rows of another shape, NaN or infinity where
        a modality is present, unequal numbers of rows, a row that lacks every modality;
        the message names it.
    """
    logits = self._rows(inputs, lengths, present, lambda out: out.logits)
    return scipy.special.softmax(logits, axis=1)

  def predict(self, inputs: Mapping[str, Any], **how: Any) -> np.ndarray:
    """The likeliest class of each row, its name ``[N]``; see `predict_proba`."""
    return np.array(self.class_names)[self.predict_proba(inputs, **how).argmax(axis=1)]

  def embed(
    self,
    inputs: Mapping[str, Any],
    *,
    lengths: Mapping[str, Any] | None = None,
    present: Mapping[str, Any] | None = None,
  ) -> dict[str, np.ndarray]:
    """``{modality: [N, D_m]}``, zeros where one is missing; see `predict_proba`."""
    found = self._rows(inputs, lengths, present, _embeddings)
    return {m: found[m] for m in self.specs}

  def evaluate(self, data: Dataset, domain: str | None = None) -> dict[str, float]:
    """Accuracy, balanced accuracy, NLL and calibration on labelled rows.

    Args:
      data: With the classes of this model.
      domain: Only rows of this domain; None is all of them.

    Raises:
      DataError: An unknown domain or class.
    """
    rows = self._of_domain(data, domain)
    logits = self._dataset_rows(rows, lambda out: out.logits)
    found = classification_metrics(jnp.asarray(logits), jnp.asarray(self._labels(rows)))
    return {name: float(value) for name, value in found.items()}

  def explain_modalities(
    self, data: Dataset, domain: str | None = None
  ) -> dict[str, float]:
    """The Shapley value of each modality for accuracy; they add up to accuracy - 1/K.

    Accuracy with every subset of the modalities present; that of none is taken as
    chance. Encoders run once, the fusion 2^M - 1 times (M <= 10).

    Args:
      data: With the classes of this model.
      domain: Only rows of this domain; None is all of them.
    """
    names = self.modalities
    if len(names) > 10:
      raise DataError(f"{len(names)} modalities have too many subsets; at most 10.")
    rows = self._of_domain(data, domain)
    label, z = self._labels(rows), self._dataset_rows(rows, _embeddings)
    worth = {frozenset(): 1.0 / len(self.class_names)}
    for size in range(1, len(names) + 1):
      for subset in itertools.combinations(names, size):
        here = {m: rows.present[m] & (m in subset) for m in names}
        logits = np.asarray(self._fuse(self.variables, z, here))
        worth[frozenset(subset)] = float((logits.argmax(axis=1) == label).mean())
    return {m: _shapley(m, names, worth) for m in names}

  def save(self, folder: str | os.PathLike[str]) -> Path:
    """Writes ``model.json`` and ``weights.safetensors``, the description last.

    No training data and no pickle; the description has a checksum of the weights.
    """
    from safetensors.numpy import save as serialize

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    flat = traverse_util.flatten_dict(dict(self.variables), sep="/")
    weights = serialize({k: np.ascontiguousarray(v) for k, v in flat.items()})
    write_atomic(folder / _WEIGHTS, weights)
    description = {
      "format": FORMAT,
      "weights_sha256": hashlib.sha256(weights).hexdigest(),
      "specs": {m: dataclasses.asdict(spec) for m, spec in self.specs.items()},
      "class_names": list(self.class_names),
      "network": dict(self.network),
      "waveforms": dict(self.waveforms),
      "about": dict(self.about),
    }
    text = json.dumps(description, indent=2) + "\n"
    write_atomic(folder / _DESCRIPTION, text)
    return folder

  def export(self, path: str | os.PathLike[str]) -> Path:
    """Writes the network with its weights as StableHLO, for any number of rows.

    ``jax.export.deserialize(path.read_bytes()).call(inputs, present)`` gives the
    probabilities ``[N, K]`` and needs jax alone. ``inputs`` are float32, padded
    sequences with a last channel that is 1 on valid steps; ``present`` are bool
    ``[N]``; both name every modality.
    """
    (rows,) = jax.export.symbolic_shape("n")
    like = lambda dtype, *shape: jax.ShapeDtypeStruct((rows, *shape), dtype)
    inputs = {m: like(np.float32, *spec.shape) for m, spec in self.specs.items()}
    present = {m: like(np.bool_) for m in self.specs}
    variables = jax.tree.map(jnp.asarray, self.variables)

    @jax.jit
    def probabilities(inputs, present):
      outputs, _ = self._network.apply(variables, inputs, present, train=False)
      return jax.nn.softmax(outputs.logits)

    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(probabilities, platforms=platforms)(inputs, present)
    write_atomic(Path(path), bytes(exported.serialize()))
    return Path(path)

  def __reduce__(self):
    # Programs that were compiled for it cannot be copied, and are not needed.
    return Model, tuple(getattr(self, f.name) for f in dataclasses.fields(self))

  def __repr__(self) -> str:
    said = ", ".join(f"{k}={v!r}" for k, v in self.about.items() if k != "scores")
    return (
      f"Model({', '.join(self.modalities)} -> {len(self.class_names)} classes, {said})"
    )

  def _rows(self, inputs, lengths, present, take) -> Any:
    """What ``take`` takes of the outputs on rows that have no label."""
    arrays, flags = self._given("inputs", inputs), self._given("present", present or {})
    lengths = self._given("lengths", lengths or {})
    if not arrays:
      raise DataError(
        f"inputs: no modality is given; the model has {', '.join(self.modalities)}."
      )
    sizes = {m: len(a) for m, a in arrays.items()}
    count = next(iter(sizes.values()))
    if set(sizes.values()) != {count}:
      raise DataError(f"inputs: unequal numbers of rows: {sizes}.")
    for name, of_rows in (("lengths", lengths), ("present", flags)):
      for m, a in of_rows.items():
        if m not in arrays:
          raise DataError(f"{name}: {m!r} is not in inputs {tuple(arrays)}.")
        if a.shape != (count,):
          raise DataError(f"{name}: {m!r} must be [{count}], got shape {a.shape}.")
    if arrays.keys() <= flags.keys():
      lost = np.flatnonzero(~np.any([flags[m] for m in arrays], axis=0))
      if lost.size:
        raise DataError(
          f"present: row {lost[0]} lacks every modality ({lost.size} rows in all)."
        )
    if not count:  # One row that is dropped again: shapes come from somewhere.
      arrays = {m: np.zeros((1, *a.shape[1:]), a.dtype) for m, a in arrays.items()}
      lengths, flags = {}, {}

    def part(rows: np.ndarray) -> ArrayDataset:
      block = (
        {m: a[rows] for m, a in tree.items()} for tree in (arrays, lengths, flags)
      )
      return self._as_dataset(*block, name=f"inputs[{rows[0]}:{rows[-1] + 1}]")

    out = self._in_blocks(max(count, 1), part, take)
    return jax.tree.map(lambda a: a[:count], out)

  def _given(self, name: str, tree: Any) -> dict[str, np.ndarray]:
    """``{modality: array}`` as a user gives it, each with an axis of rows."""
    known, arrays = ", ".join(self.modalities), {}
    if not isinstance(tree, Mapping):
      raise DataError(
        f"{name} must be {{modality: array [N, ...]}}, got {type(tree).__name__}; the "
        f"model has {known}."
      )
    for m, given in tree.items():
      if m not in self.specs:
        raise DataError(f"{name}: {m!r} is no modality; the model has {known}.")
      try:
        arrays[m] = np.asanyarray(given)
      except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"{name}: {m!r} is no array: {error}") from error
      if not arrays[m].ndim:
        raise DataError(f"{name}: {m!r} has no rows: {type(given).__name__}.")
    return arrays

  def _as_dataset(self, inputs, lengths, present, *, name: str) -> ArrayDataset:
    """Rows without labels as a dataset, every modality in place."""
    n = len(next(iter(inputs.values())))
    arrays, here = {}, {}
    for m, spec in self.specs.items():
      shape = spec.shape
      if spec.masked:
        shape = (*shape[:-1], shape[-1] - 1)
      given = inputs.get(m)
      if given is None:
        given, here[m] = np.zeros((n, *shape), np.float32), np.zeros(n, bool)
      else:
        if m in present:
          here[m] = np.asarray(present[m])
        if m in self.waveforms:
          given, lengths = self._bands(m, given, lengths)
      arrays[m] = given
      if spec.masked and m not in lengths:
        steps = shape[0] if m not in inputs else min(arrays[m].shape[1], shape[0])
        lengths = {**lengths, m: np.full(n, max(steps, 1))}
      if spec.kind == "sequence" and spec.masked:
        arrays[m] = _padded(arrays[m], shape[0])
    return make_dataset(
      name=name, inputs=arrays, present=here,
      kinds={m: spec.kind for m, spec in self.specs.items()},
      label=np.zeros(n, np.int32), domain=np.zeros(n, np.int32),
      class_names=self.class_names, domain_names=["new"],
      lengths={m: v for m, v in lengths.items() if self.specs[m].masked},
    )  # fmt: skip

  def _bands(self, m: str, given: np.ndarray, lengths) -> tuple[np.ndarray, dict]:
    """Log power in bands of a waveform, and the lengths with its frames."""
    steps, rate = self.waveforms[m]
    if given.ndim < 2 or given.shape[1] > steps:
      raise DataError(
        f"inputs: {m!r} has rows of shape {given.shape[1:]}, the model takes waveforms "
        f"of at most {steps} samples."
      )
    valid = lengths.get(m, np.full(len(given), given.shape[1]))
    bands, frames = log_bands(_padded(given, steps), rate=rate, lengths=valid)
    return bands, {**lengths, m: frames}

  def _dataset_rows(self, data: ArrayDataset, take) -> Any:
    """What ``take`` takes of the outputs on the rows of a dataset."""
    return self._in_blocks(len(data), data.take, take)

  def _in_blocks(
    self, count: int, part: Callable[[np.ndarray], ArrayDataset], take
  ) -> Any:
    """What ``take`` takes of the outputs on rows 0 to ``count``, cut into blocks.

    ``part(rows)`` makes the dataset of a block. The last block is filled up, so that
    one program serves any number of rows.
    """
    outs = []
    for rows, mask in zip(*eval_blocks(np.arange(count)), strict=True):
      arrays = self._fitting(part(rows[mask]))
      fill = np.minimum(np.arange(EVAL_BLOCK), mask.sum() - 1)
      pick = lambda tree, fill=fill: {m: tree[m][fill] for m in self.specs}
      out = take(self._apply(self.variables, pick(arrays.inputs), pick(arrays.present)))
      outs.append(jax.tree.map(lambda a, mask=mask: np.asarray(a)[mask], out))
    return jax.tree.map(lambda *a: np.concatenate(a), *outs)

  def _fitting(self, data: ArrayDataset) -> Arrays:
    """Arrays of rows that have the shapes which the network takes."""
    arrays = to_arrays(data)
    for m, spec in self.specs.items():
      own = arrays.inputs[m].shape[1:]
      if own != spec.shape:
        raise DataError(
          f"{data.name}: {m!r} has rows of shape {own}, the model takes {spec.shape} "
          f"({spec.kind}{', padded' * spec.masked})."
        )
    return arrays

  def _of_domain(self, data: Dataset, domain: str | None) -> ArrayDataset:
    check_is_dataset(data)
    if missing := [m for m in self.specs if m not in data.modalities]:
      raise DataError(f"{data.name} lacks the modalities {missing} of the model.")
    rows = data.in_memory().select_modalities(self.modalities)
    if domain is not None:
      rows = rows.take(np.flatnonzero(rows.domain == rows.domain_id(domain)))
    if not len(rows):
      raise DataError(f"{data.name} has no rows{f' of {domain!r}' if domain else ''}.")
    return rows

  def _labels(self, data: Dataset) -> np.ndarray:
    """Labels of a dataset as columns of this model: classes go by name."""
    unknown = [data.class_names[k] for k in np.unique(data.label)
               if data.class_names[k] not in self.class_names]  # fmt: skip
    if unknown:
      raise DataError(f"{data.name}: class {unknown[0]!r} is unknown to the model.")
    place = {name: k for k, name in enumerate(self.class_names)}
    table = np.array([place.get(name, 0) for name in data.class_names], np.int32)
    return table[data.label]


def load_model(folder: str | os.PathLike[str]) -> Model:
  """The model that `Model.save` wrote, or that a run left in its workdir.

  Args:
    folder: Of the model, or the workdir of a single run, which has it in ``model/``.

  Raises:
    ModelError: No model there, one of a newer version, a damaged or an edited one.
  """
  folder = Path(folder)
  if not (folder / _DESCRIPTION).is_file() and (folder / "model").is_dir():
    folder = folder / "model"
  try:
    text = (folder / _DESCRIPTION).read_text()
    weights = (folder / _WEIGHTS).read_bytes()
  except OSError as error:
    raise ModelError(
      f"{folder} holds no model: {error.filename}: {error.strerror}."
    ) from None
  try:
    said = json.loads(text)
    version = int(said["format"])
  except (ValueError, KeyError, TypeError, UnicodeDecodeError):
    raise ModelError(
      f"{folder / _DESCRIPTION} is damaged: not a description."
    ) from None
  if version > FORMAT:
    raise ModelError(
      f"{folder} is of format {version}, this version of mer_dg reads up to {FORMAT}: "
      "update mer_dg."
    )
  if hashlib.sha256(weights).hexdigest() != said.get("weights_sha256"):
    raise ModelError(f"{folder / _WEIGHTS} is not what was saved: damaged or edited.")
  from safetensors.numpy import load

  try:
    specs = {
      m: InputSpec(s["kind"], tuple(s["shape"]), masked=bool(s["masked"]))
      for m, s in said["specs"].items()
    }
    model = Model(
      specs,
      tuple(said["class_names"]),
      said["network"],
      traverse_util.unflatten_dict(load(weights), sep="/"),
      {m: (int(steps), rate) for m, (steps, rate) in said["waveforms"].items()},
      said["about"],
    )
    expected = jax.eval_shape(model._network.init, jax.random.key(0))
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise ModelError(
      f"{folder / _DESCRIPTION} was edited: {str(error).rstrip('.')}."
    ) from None
  shapes = lambda tree: jax.tree.map(jnp.shape, dict(tree))
  if shapes(expected) != shapes(model.variables):
    raise ModelError(f"{folder / _DESCRIPTION} was edited: another network's weights.")
  return model


def _embeddings(outputs) -> dict[str, jax.Array]:
  return outputs.embeddings


def _padded(array: np.ndarray, steps: int) -> np.ndarray:
  """A sequence ``[n, T, ...]`` filled up with zeros to ``steps``."""
  missing = max(steps - array.shape[1], 0)
  return np.pad(array, [(0, 0), (0, missing), *[(0, 0)] * (array.ndim - 2)])


def _shapley(m: str, names: Sequence[str], worth: Mapping[frozenset, float]) -> float:
  """What a modality adds, averaged over the orders in which modalities may come."""
  others, total = [n for n in names if n != m], 0.0
  for size in range(len(names)):
    share = math.factorial(size) * math.factorial(len(names) - size - 1)
    for before in map(frozenset, itertools.combinations(others, size)):
      total += share * (worth[before | {m}] - worth[before])
  return total / math.factorial(len(names))
