r"""Does modality-mix learning help, alone and with MER, and under which fusion?

  python main.py --mode=diagnose --config=configs/mm_study.py:av_digits,concat
  python main.py --mode=diagnose --config=configs/mm_study.py:cooccurrence,late

The argument is SET,FUSION. ERM, unimodal heads, MM (ramp and alternate), MER and
MER + MM on every held-out domain with five paired seeds, all with the defaults of
configs/common.py; the diagnosis re-probes every encoder. `cooccurrence` has a strong
and a weak modality here. The folder of the real sets is MER_DG_DATA (docs/data.md).
Results: docs/results.md; tables over fusions: python benchmarks/mm_study.py.
"""

import os

from configs import av_digits, cooccurrence, features

SETS = ("cooccurrence", "av_digits", "gesture_phase", "dsads")
FUSIONS = ("concat", "gated", "late")


def get_config(name: str = "av_digits,concat"):
  dataset, _, fusion = name.partition(",")
  if dataset not in SETS or fusion not in FUSIONS:
    raise ValueError(f"{name!r} is not SET,FUSION with {SETS} and {FUSIONS}.")
  if dataset == "cooccurrence":
    c = cooccurrence.get_config()
    c.data.cooccurrence.strengths = (2.5, 1.0)
  elif dataset == "av_digits":
    c = av_digits.get_config()
  else:
    c = features.get_config()
    folder = os.environ.get("MER_DG_DATA", "../shared/data")
    c.data.path = os.path.join(folder, f"{dataset}.npz")
  c.network.fusion = fusion
  c.methods = ("erm", "heads", "mm", "mm_alternate", "mer_kde", "mer_kde+mm")
  return c
