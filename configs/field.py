r"""The methods of the field, alone and with each of the two remedies, in one command.

  python main.py --mode=benchmark --config=configs/field.py --workdir=runs/field
  # Some of the sets; the methods alone, or with MER, or with mixing:
  python main.py --mode=benchmark --config=configs/field.py:hydraulic,cars,alone
  # Every method tuned on the sources, 16 settings beside its default:
  python main.py --mode=benchmark --config=configs/field.py:hydraulic,search
  # One more method in the same folder later: only its runs are trained.
  python main.py --mode=benchmark --config=configs/field.py --workdir=runs/field \
    --config.methods="('sam+ema',)"

The argument names sets, kinds of method (`headline`, `alone`, `mer`, `mm`), `search`;
none of sets means all, none of kinds all but `headline`: both remedies and the free
baselines of docs/protocol.md. Eight sets, every domain held out, five paired seeds.
Interrupted, it goes on with what is missing. The folder of the real sets is
MER_DG_DATA (docs/data.md). Results of two sets: docs/results.md.

`alone` is about a night on 2 cores, all kinds nearly two: reckoned from 6 s of CPU a
network of plain fusion, heads and dropout on cars, compilation included, not measured
as a whole. Compiling alone takes minutes a set before the first network is trained.
"""

from configs import _sets, common

METHODS = (
  *common.BASELINES,
  "late",
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
  "sma",
  "swad",
)
HEADLINE = (
  *("erm", "heads", "md", "heads+md", "mer_kde", "heads+md+mer_kde"),
  *("mm", "md+mm", "md+mm+mer_kde", "mer_logdet"),
)
# What is put on top of each method; "" is nothing.
KINDS = {"alone": "", "mer": "mer_kde", "mm": "mm"}


def compose(kinds) -> tuple[str, ...]:
  """Names of all methods with all remedies, plain fusion first.

  `mm` has the unimodal heads, so `heads+mm` would be `mm` and is left out.
  """
  names = ["erm"]
  for kind in kinds:
    remedy = KINDS[kind]
    for method in METHODS:
      if not remedy:
        names.append(method)
      elif method == "erm":
        names.append(remedy)
      elif not (remedy == "mm" and "heads" in method.split("+")):
        names.append(f"{method}+{remedy}")
  return tuple(dict.fromkeys(names))


def get_config(chosen: str = ""):
  words = [word for word in chosen.split(",") if word]
  allowed = (*_sets.SETS, "headline", *KINDS, "search")
  if unknown := [word for word in words if word not in allowed]:
    raise ValueError(f"{unknown} are not among {allowed}.")
  sets = [word for word in words if word in _sets.SETS] or _sets.SETS
  each = {name: _sets.get_config(name) for name in sets}
  c = _sets.get_config(sets[0])
  c.metric = "balanced_accuracy"
  headline = HEADLINE if "headline" in words else ()
  kinds = [word for word in words if word in KINDS]
  if not (kinds or headline):
    kinds = list(KINDS)
  for own in each.values() if kinds else ():
    # SWAD needs evaluations: six for its valley, and some before.
    own.eval_every = own.total_steps // 20
  c.benchmark.datasets = {
    name: {group: own[group] for group in _sets.GROUPS} for name, own in each.items()
  }
  c.eval_every = each[sets[0]].eval_every  # Without --mode=benchmark: the first set.
  c.log_every = 5  # It has to divide every set's eval_every.
  c.methods = tuple(dict.fromkeys((*headline, *compose(kinds))))
  if "search" in words:
    c.search.trials = 16
  return c
