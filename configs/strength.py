r"""Does a strength of the entropy that follows training beat a given one?

  python main.py --config=configs/strength.py --workdir=runs/strength

Cooccurrence with a strong and a weak modality, four held-out domains, five paired
seeds. MER (kde) with the weights 0.1, 1 and 10 for both modalities, and both learned
forms from 0.1 and from 1: they may reach what lies between.
"""

from configs import _sets

WEIGHTS = {"tenth": 0.1, "one": 1.0, "ten": 10.0}


def get_config():
  c = _sets.get_config("cooccurrence")
  c.methods = ("erm",)
  for method, names in (
    ("mer_kde", WEIGHTS),
    ("mer_learned", ("tenth", "one")),
    ("mer_explored", ("tenth", "one")),
  ):
    for name in names:
      recipe = f"{method}_{name}"
      c.recipes[recipe] = c.recipes[method].copy_and_resolve_references()
      (term,) = c.recipes[recipe]
      c.recipes[recipe][term].weight = WEIGHTS[name]
      c.methods = (*c.methods, recipe)
  return c
