r"""The whole benchmark: four sets, nine methods, protocols and subsets of modalities.

  python main.py --mode=benchmark --config=configs/benchmark.py
  python main.py --mode=benchmark \
    --config=configs/benchmark.py:single_source,target_alone,with_target
  # One set, every two or more modalities, tuned on source validation:
  python main.py --mode=benchmark --config=configs/benchmark.py:gesture_phase \
    --config.benchmark.subsets=fused --config.search.trials=16

The argument names protocols and sets; none of a kind means leave_one_domain_out and all
sets. Five paired seeds; the first method is what the others are compared with. Settings
of each set are those of its own config. The folder of the real sets is MER_DG_DATA
(docs/data.md). Your own files: copy this one, or set config.benchmark.datasets.
Reports made with it, with time and device: docs/results.md.
"""

from configs import _sets, common, mm_study

PROTOCOLS = ("leave_one_domain_out", "single_source", "target_alone", "with_target")


def get_config(chosen: str = ""):
  words = [word for word in chosen.split(",") if word]
  unknown = set(words) - {*PROTOCOLS, *mm_study.SETS}
  if unknown:
    raise ValueError(f"{unknown} are not among {PROTOCOLS} and {mm_study.SETS}.")
  sets = [word for word in words if word in mm_study.SETS] or mm_study.SETS
  each = {name: mm_study.get_config(f"{name},concat") for name in sets}
  c = mm_study.get_config(f"{sets[0]},concat")
  c.methods = (*common.BASELINES, "mer_kde", "mer_logdet", "mm", "mer_kde+mm")
  c.metric = "balanced_accuracy"
  c.benchmark.datasets = {
    name: {group: own[group] for group in _sets.GROUPS} for name, own in each.items()
  }
  c.benchmark.protocols = tuple(w for w in words if w in PROTOCOLS) or PROTOCOLS[:1]
  c.search.space = mm_study.space()
  return c
