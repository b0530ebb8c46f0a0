"""Datasets as arrays, splits, domain-balanced batches.

`mer_dg.data.stream` (batches read from disk) is imported by name: it needs Grain.
"""

from mer_dg.data.arrays import (
  Arrays,
  Batch,
  eval_blocks,
  fit_scaling,
  gather_batch,
  put,
  sample_batch,
  to_arrays,
)
from mer_dg.data.av_digits import data_root, load_av_digits
from mer_dg.data.cooccurrence import Cooccurrence, make_cooccurrence
from mer_dg.data.dataset import (
  ArrayDataset,
  DataError,
  Dataset,
  infer_kind,
  make_dataset,
)
from mer_dg.data.logmel import framed_waveform, log_mel
from mer_dg.data.npz import from_arrays, load_npz, save_npz
from mer_dg.data.registry import register_dataset
from mer_dg.data.sampling import Pool, draw_batch, make_pool, shuffled
from mer_dg.data.splits import Split, leave_one_domain_out, target_alone, with_target
from mer_dg.data.suspicions import suspicions

__all__ = [
  "ArrayDataset",
  "Arrays",
  "Batch",
  "Cooccurrence",
  "DataError",
  "Dataset",
  "Pool",
  "Split",
  "data_root",
  "draw_batch",
  "eval_blocks",
  "fit_scaling",
  "framed_waveform",
  "from_arrays",
  "gather_batch",
  "infer_kind",
  "leave_one_domain_out",
  "load_av_digits",
  "load_npz",
  "log_mel",
  "make_cooccurrence",
  "make_dataset",
  "make_pool",
  "put",
  "register_dataset",
  "sample_batch",
  "save_npz",
  "shuffled",
  "suspicions",
  "target_alone",
  "to_arrays",
  "with_target",
]
