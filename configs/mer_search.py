r"""Where to take the entropy, how wide the kernel, how strong, when: by source only.

  python main.py --config=configs/mer_search.py:gesture_phase
  python main.py --config=configs/mer_search.py:av_digits
  python main.py --config=configs/mer_search.py:cooccurrence

The static choices (estimator, place, normalisation, scope) are recipes, the
numbers (weight, kernel width, start) are drawn at random; every setting is
judged on source validation, the best one per method and target is trained anew
on fresh seeds. The folder of the real sets is MER_DG_DATA (docs/data.md).
Results: docs/results.md.
"""

from configs import _sets, av_digits, cooccurrence

SETS = ("gesture_phase", "dsads", "av_digits", "cooccurrence")

# Ranges of the log-uniform draws; `start` is the share of training before the term.
KDE = dict(weight=(0.01, 3.0), bandwidth=(0.1, 2.0), start=(1e-3, 0.5))
LOGDET = dict(weight=(0.1, 10.0), start=(1e-3, 0.5))


def get_config(name: str = "gesture_phase"):
  if name not in SETS:
    raise ValueError(f"{name!r} is not one of {SETS}.")
  if name in ("av_digits", "cooccurrence"):
    c = {"av_digits": av_digits, "cooccurrence": cooccurrence}[name].get_config()
  else:
    c = _sets.get_config(name)
  c.total_steps = 300
  c.eval_every = 100
  kde = dict(estimator="kde", weight=1.0, bandwidth=0.3)
  logdet = dict(estimator="logdet", weight=3.0)
  c.recipes.kde_projector = dict(mer=dict(kde, apply_to="projector", normalize="unit"))
  c.recipes.kde_embedding = dict(mer=dict(kde, apply_to="embedding", normalize="unit"))
  c.recipes.kde_domain = dict(
    mer=dict(kde, apply_to="projector", normalize="unit", scope="per_domain")
  )
  c.recipes.logdet_projector = dict(mer=dict(logdet, apply_to="projector"))
  c.recipes.logdet_embedding = dict(mer=dict(logdet, apply_to="embedding"))
  spaces = dict(
    kde_projector=KDE,
    kde_embedding=KDE,
    kde_domain=KDE,
    logdet_projector=LOGDET,
    logdet_embedding=LOGDET,
  )
  c.methods = ("erm", *spaces)
  c.search.trials = 16
  c.search.space = {m: dict(mer=dict(space)) for m, space in spaces.items()}
  return c
