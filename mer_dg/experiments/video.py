"""A run on clips: rows read from disk, inputs made on the device, small checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mer_dg.contracts import Network, named_key
from mer_dg.data.arrays import Batch, eval_blocks
from mer_dg.data.dataset import Dataset
from mer_dg.data.stream import stream_blocks
from mer_dg.evaluation.evaluators import Evaluator, make_streamed_evaluate
from mer_dg.experiments.config import ReaderFields
from mer_dg.experiments.setup import TaskArrays
from mer_dg.training.checkpoints import Checkpoints
from mer_dg.training.progress import progress_bar
from mer_dg.training.state import TrainState
from mer_dg.training.step import Step


class TrunklessCheckpoints(Checkpoints):
  """Checkpoints without the frozen trunks, which come from the weights files.

  A run with other weights files is another run, in another folder.
  """

  def save(self, step, state, meta, rank) -> None:
    """As `Checkpoints.save`."""
    super().save(step, _without_trunk(state), meta, rank)

  def restore(self, template, step):
    """As `Checkpoints.restore`; the trunks are those of the template."""
    state, meta = super().restore(_without_trunk(template), step)
    trunks = {k: v for k, v in template.model_state.items() if k == "frozen"}
    return state.replace(model_state={**state.model_state, **trunks}), meta


def _without_trunk(state: TrainState) -> TrainState:
  kept = {name: group for name, group in state.model_state.items() if name != "frozen"}
  return state.replace(model_state=kept)


def with_inputs(step: Step, dataset: Dataset) -> Step:
  """The training step on batches as they are read; inputs are made inside."""

  def prepared(state: TrainState, batch: Batch, key: jax.Array):
    # Far from the keys that the step splits off: those are folded in with 0 and 1.
    noise = named_key(key, "spectrogram")
    inputs = dataset.device_inputs(batch, key=noise, epoch=state.step)
    return step(state, {**batch, "inputs": inputs}, key)

  return prepared


def make_evaluate(
  network: Network,
  asked: Sequence[Evaluator],
  dataset: Dataset,
  task: TaskArrays,
  options: ReaderFields,
) -> Callable[[Mapping[str, Any]], Any]:
  """Returns ``variables -> metrics`` on the evaluation rows of a task.

  Args:
    network: The network.
    asked: What is asked of it.
    dataset: The clips.
    task: Its rows.
    options: ``config.reader``.
  """
  size, kept = options.eval_batch, task.mask.reshape(-1)
  rows, mask = eval_blocks(task.rows.reshape(-1)[kept], size)
  domain = np.full(rows.size, -1, np.int32)
  domain[: kept.sum()] = task.domain.reshape(-1)[kept]
  reader = dataset.reader(train=False)

  def read(source, rows, domain, mask) -> Iterator[Batch]:
    stream = stream_blocks(source, rows, domain, mask, **read_ahead(options))
    try:
      yield from progress_bar(stream, len(rows), "evaluate")
    finally:
      stream.close()

  evaluate = make_streamed_evaluate(
    network,
    asked,
    batches=read,
    inputs=dataset.device_inputs,
  )
  domain = domain.reshape(rows.shape)
  return lambda variables: evaluate(reader, rows, domain, mask, variables)


def read_ahead(options: ReaderFields) -> dict[str, Any]:
  """``config.reader`` as arguments of the streams."""
  return dict(
    num_threads=options.threads,
    num_workers=options.workers,
    prefetch=options.prefetch,
  )
