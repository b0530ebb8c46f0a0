r"""The methods of the field against plain fusion, each with its defaults.

  python main.py --config=configs/field.py:cooccurrence
  python main.py --config=configs/field.py:gesture_phase
  # One more method in the same folder later: only its runs are trained.
  python main.py --config=configs/field.py:cooccurrence --config.methods="('sam+ema',)"

The argument is a set. Every method of docs/methods.md but the entropy and mixing ones
beyond mer_kde and mm; nothing is tuned. The folder of the real sets is MER_DG_DATA
(docs/data.md). Results: docs/results.md.
"""

from configs import common, mm_study

METHODS = (
  *common.BASELINES,
  "mer_kde",
  "mm",
  "rna",
  "simmmdg",
  "moosa",
  "cmrf",
  "nel",
  "jat",
  "mbcd",
  "gmp",
  "cmc",
  "cmt_mlp",
  "cmt_l2",
  "ogm_ge",
  "agm",
  "pmr",
  "g_blend",
  "mmpareto",
  "mla",
  "remix",
  "uniform",
  "coral",
  "mmd",
  "mixup",
  "dann",
  "vrex",
  "group_dro",
  "fishr",
  "miro",
  "sam",
  "ema",
  "swad",
)


def get_config(name: str = "cooccurrence"):
  if name not in mm_study.SETS:
    raise ValueError(f"{name!r} is not one of {mm_study.SETS}.")
  c = mm_study.get_config(f"{name},concat")
  c.methods = METHODS
  # SWAD needs evaluations: six for its valley, and some before.
  c.eval_every = c.total_steps // 20
  c.log_every = c.eval_every
  return c
