r"""Does modality-mix learning help, alone and with MER, and under which fusion?

  python main.py --mode=diagnose --config=configs/mm_study.py:av_digits,concat
  python main.py --mode=diagnose --config=configs/mm_study.py:cooccurrence,late
  python main.py --config=configs/mm_study.py:av_digits,concat,search

The argument is SET,FUSION, and ",search" tries every method with its default and 16
settings, judged on source validation, before the table. The free baselines, MM
(ramp and alternate), MER and MER + MM on every held-out domain with five paired seeds;
without the search all with the defaults of configs/common.py. The diagnosis re-probes
every encoder. `cooccurrence` has a strong and a weak modality here. The folder of the
real sets is MER_DG_DATA (docs/data.md).
Results: docs/results.md; tables over fusions: python studies/mm_study.py.
"""

from configs import _sets, common

SETS = ("cooccurrence", "av_digits", "gesture_phase", "dsads")
FUSIONS = ("concat", "gated", "late")


# One range per number, the same wherever a method has it; log-uniform draws.
HEADS = dict(unimodal=dict(weight=(0.1, 1.0)))
MM = dict(mm=dict(weight=(0.1, 2.0), eta=(0.1, 2.0), unimodal_weight=(0.1, 1.0)))
MER = dict(mer=dict(weight=(0.01, 3.0), bandwidth=(0.1, 2.0)))
LOGDET = dict(mer=dict(weight=(0.1, 10.0)))


def space():
  """The search space of every method here and in configs/benchmark.py."""
  return {
    "erm": dict(optimizer=dict(weight_decay=(1e-5, 3e-2))),
    "heads": HEADS,
    "mm": HEADS | MM,
    "mm_alternate": HEADS | MM,
    "mer_kde": MER,
    "mer_logdet": LOGDET,
    "mer_kde+mm": HEADS | MM | MER,
  }


def get_config(name: str = "av_digits,concat"):
  dataset, fusion, search = (*name.split(","), "", "")[:3]
  known = dataset in SETS and fusion in FUSIONS and search in ("", "search")
  if not known or name.count(",") > 2:
    raise ValueError(f"{name!r} is not SET,FUSION[,search] with {SETS} and {FUSIONS}.")
  c = _sets.get_config(dataset)
  c.network.fusion = fusion
  c.methods = (*common.BASELINES, "mm", "mm_alternate", "mer_kde", "mer_kde+mm")
  if search:
    c.search.trials = 16
    c.search.space = space()
  return c
