"""Which numbers of a report foretell that a remedy helps, from a benchmark's records.

  python main.py --mode=benchmark --config=configs/field.py:headline --workdir=runs/h
  python studies/when_does_it_help.py runs/h [more workdirs, of tables, too]

For every held-out domain: what the sources say (of plain fusion, or of a method against
it), and whether the method gained on the target (mean over paired seeds above 0). A
number foretells by a threshold, chosen with its side on all other sets (sets that share
inputs go together), as is the guess without it: what happened more often there. So a
number is worth something if its hits are above those of the guess. Then what comes of
letting the sources choose the method of each domain. Results:
docs/when_does_it_help.md.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mer_dg import protocol
from mer_dg.reporting import choose, names, pick, pipe_table, scores, to_frame
from mer_dg.reporting import linear as linear_models
from mer_dg.reporting.linear import ALL, LATE

PLAIN = "erm"
PERCENT = 100.0


class Case(NamedTuple):
  """A held-out domain: numbers of each method, means over seeds, points or nats."""

  set: str
  target: str
  says: Mapping[str, float]  # What the sources say of plain fusion.
  own: Mapping[str, Mapping[str, float]]  # {number: {method: gain over plain fusion}}
  gains: Mapping[str, float]  # {method: gain on the target}


def read(folder: Path) -> list[Case]:
  """The held-out domains of a table, or of each table of a benchmark with records."""
  listed = folder / "tables.json"
  if not listed.exists():
    return _cases(folder)
  tables = [folder / place for name, place in json.loads(listed.read_text()).items()
            if "/leave_one_domain_out/" in name]  # fmt: skip
  return [c for t in tables if (t / "results.jsonl").exists() for c in _cases(t)]


def _cases(table: Path) -> list[Case]:
  metric = json.loads((table / "config.json").read_text())["metric"]
  records = protocol.read_records(table / "results.jsonl")
  chosen = choose(records, metric=metric)
  rows, first = to_frame(chosen), chosen[0]

  def of(split: str, condition: str = "", name: str = metric):
    found = scores(pick(rows, name, split, condition))
    scale = PERCENT if name == metric else 1.0
    mean = lambda units: scale * float(np.mean(list(units.values())))
    return {m: {t: mean(u) for t, u in own.items()} for m, own in found.items()}

  val, target = of("val"), of("target")
  across, within = of("val", "re-paired"), of("val", "re-paired_within")
  nll, nll_across = of("val", "", "nll"), of("val", "re-paired", "nll")
  sources = {s: of("val", s) for r in chosen for s in r["sources"]}
  ahead = _linear(table, metric)
  # NaN where records of older versions lack it.
  plain = lambda found, t: found.get(PLAIN, {}).get(t, np.nan)
  out = []
  for t in target[PLAIN]:
    each = [own[PLAIN][t] for own in sources.values() if t in own.get(PLAIN, {})]
    says = {
      "lost by re-pairing": plain(val, t) - plain(across, t),
      "lost with other domains alone": plain(within, t) - plain(across, t),
      "NLL gained by re-pairing": plain(nll_across, t) - plain(nll, t),
      "source validation": plain(val, t),
      "gap between sources": max(each) - min(each) if each else np.nan,
      "linear, all - best single": ahead,
    }
    gain = lambda found, t=t: {
      m: found.get(m, {}).get(t, np.nan) - plain(found, t)
      for m in target if m != PLAIN and t in target[m]
    }  # fmt: skip
    own = {
      "source validation": gain(val),
      "re-paired": gain(across),
      "re-paired, same domain": gain(within),
    }
    out.append(Case(first["dataset"], t, says, own, gain(target)))
  return out


def _linear(table: Path, metric: str) -> float:
  """On source validation, all modalities minus the best one, in points."""
  if not (table / "linear.json").exists():
    return np.nan
  stored = json.loads((table / "linear.json").read_text())
  val = {m.name: m.val for m in linear_models.from_json(stored, metric)}
  single = [v for name, v in val.items() if name not in (ALL, LATE)]
  return PERCENT * (val[ALL] - max(single)) if ALL in val and single else np.nan


def threshold(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
  """The rule "above" or "below a value" that fits best; ties go to the simplest."""
  majority = 2 * y.sum() >= len(y)
  best, rule = (y == majority).sum(), lambda x: np.full(len(x), majority)
  values = np.unique(x)
  for cut in (values[1:] + values[:-1]) / 2:
    for side in (True, False):
      if (hits := (((x > cut) == side) == y).sum()) > best:
        best = hits
        rule = lambda x, cut=cut, side=side: (x > cut) == side
  return rule


def hits(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> np.ndarray:
  """Where rules are right that are chosen without the group they are judged on."""
  right = np.zeros(len(y), bool)
  for group in np.unique(groups):
    here, others = groups == group, groups != group
    right[here] = threshold(x[others], y[others])(x[here]) == y[here]
  return right


def foretold(cases: Sequence[Case], methods: Sequence[str]):
  """Grid: a line per number, hits per method, and how far above those of the guess."""
  stem = protocol.counted_as([case.set for case in cases])
  # {number: {method: {position of the case: (right, guess right)}}}
  found: dict[str, dict[str, dict[int, tuple[bool, bool]]]] = {}
  for method in methods:
    known = [i for i, c in enumerate(cases) if method in c.gains]
    y = np.array([cases[i].gains[method] > 0 for i in known])
    groups = np.array([stem[cases[i].set] for i in known])
    guess = hits(np.zeros(len(y)), y, groups)

    def add(name, x, right=None, *, method=method, known=known, y=y, groups=groups,
            guess=guess) -> None:  # fmt: skip
      there = np.isfinite(x)
      if right is None:
        right = hits(x[there], y[there], groups[there])
      at = [i for i, here in zip(known, there, strict=True) if here]
      own = zip(at, zip(right, guess[there], strict=True), strict=True)
      found.setdefault(name, {})[method] = dict(own)

    add("always yes", np.zeros(len(y)), y)
    add("guess", np.zeros(len(y)))
    for name in cases[0].says:
      add(name, np.array([cases[i].says[name] for i in known]))
    for name in cases[0].own:
      x = np.array([cases[i].own[name][method] for i in known])
      add(f"its {name} is above", x, ((x > 0) == y)[np.isfinite(x)])
  body = []
  for name, own in found.items():
    each = [pair for of in own.values() for pair in of.values()]
    share, guessed = (
      f"{100 * np.mean(side):.0f} %" for side in zip(*each, strict=True)
    )
    above: dict[str, dict] = {}
    for i, case in enumerate(cases):
      if here := [float(r) - float(g) for of in own.values()
                  for j, (r, g) in of.items() if j == i]:  # fmt: skip
        above.setdefault(case.set, {})[case.target] = dict(enumerate(here))
    pooled = protocol.pool(above)
    shown = [names.difference(i, np.nan, "accuracy")
             for i in (pooled.domains, pooled.sets)]  # fmt: skip
    cells = [f"{sum(r for r, _ in of.values())}/{len(of)}" for of in own.values()]
    body.append([name, *cells, share, guessed, *shown])
  header = ["number", *methods, "all", "guess", "above it, over domains", "over sets"]
  return header, body


def choices(cases: Sequence[Case], methods: Sequence[str]):
  """Grid: gain over plain fusion if a rule chooses the method of each domain."""
  stem = protocol.counted_as([case.set for case in cases])
  rules: dict[str, Callable[[Case], float]] = {
    f"always {m}": lambda c, m=m: c.gains[m] for m in methods
  }
  whole = lambda name: all(np.isfinite([c.own[name][m] for m in methods]).all()
                           for c in cases)  # fmt: skip
  for name in filter(whole, cases[0].own):
    # Plain fusion is chosen where no method is above it; the first of equals is.
    rules[f"best {name}"] = lambda c, name=name: max(
      [(0.0, 0.0), *((c.own[name][m], c.gains[m]) for m in methods)],
      key=lambda found: found[0],
    )[1]
  rules["oracle (the target chooses)"] = lambda c: max(
    0.0, *(c.gains[m] for m in methods)
  )
  body = []
  for name, rule in rules.items():
    found = {}
    for case in cases:
      found.setdefault(stem[case.set], {})[f"{case.set}: {case.target}"] = {
        0: rule(case) / PERCENT
      }
    pooled = protocol.pool(found)
    shown = [names.difference(i, np.nan, "accuracy")
             for i in (pooled.domains, pooled.sets)]  # fmt: skip
    body.append([name, *shown])
  return ["choice", f"{len(cases)} domains", f"{len(set(stem.values()))} sets"], body


def facts(cases: Sequence[Case], methods: Sequence[str]):
  """Grids: what the sources of each set say, and what methods gained; means."""
  shown = lambda values: (f"{np.mean(values):.2f}".replace("-", names.MINUS)
                          if np.isfinite(values).any() else names.DASH)  # fmt: skip
  by_set = protocol.group_by(cases, lambda c: c.set)
  says = [
    [name, str(len(own)), *(shown([c.says[key] for c in own]) for key in own[0].says)]
    for name, own in by_set.items()
  ]
  gains = [
    [name, *(shown([c.gains[m] for c in own if m in c.gains]) for m in methods)]
    for name, own in by_set.items()
  ]
  return (["set", "domains", *cases[0].says], says), (["set", *methods], gains)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("workdirs", nargs="+", type=Path)
  parser.add_argument("--without", action="append", default=[], help="a set")
  parser.add_argument("--methods", help="a,b; by default those that every domain has")
  args = parser.parse_args()
  cases = [c for folder in args.workdirs for c in read(folder)]
  cases = [c for c in cases if c.set not in args.without]
  everywhere = [m for m in cases[0].gains if all(m in c.gains for c in cases)]
  shown = args.methods.split(",") if args.methods else everywhere
  grids = (*facts(cases, shown), foretold(cases, shown))
  for grid in (*grids, choices(cases, everywhere)):
    print(pipe_table(*grid), end="\n\n")


if __name__ == "__main__":
  main()
