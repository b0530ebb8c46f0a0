"""Pages made from what they describe: config fields, API, records, notebooks.

All but the leaderboard are made when the docs are built (`conf.py`). The leaderboard,
and what docs/results.md quotes of reports, are tracked, so that a code host shows them;
`python docs/_pages.py` makes them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import csv
import importlib
from pathlib import Path
import pkgutil
import re
from types import ModuleType

from mer_dg import protocol
from mer_dg.experiments.fields import described
from mer_dg.protocol import write_atomic
from mer_dg.reporting import figures, names

DOCS = Path(__file__).parent
# The rooms in the order in which a reader wants them, and what each is for.
ROOMS = {
  "entropy": "Estimators of differential entropy in nats, and the MER-DG loss.",
  "mixing": "Modality mix: recombined samples, their labels, schedules and routing.",
  "losses": "Every other loss and weight, as pure functions.",
  "methods": "The seam on which methods stand, and the registry.",
  "networks": "Encoders, fusion and heads in Flax Linen.",
  "data": "Datasets as arrays or streams, splits, balanced batches.",
  "training": "State, step, drivers, checkpoints.",
  "evaluation": "Network on rows to metrics; probes, similarity, corruptions.",
  "protocol": "Records, folds, selection, statistics: no jax.",
  "reporting": "Records to one long frame, tables, figures and a page.",
  "experiments": "Config to runs to records to report.",
}


def api(room: str) -> str:
  """The page of a room: a table of its public names, then each in full."""
  module = importlib.import_module(f"mer_dg.{room}")
  if hasattr(module, "__all__"):
    parts = [_documented(module.__name__, _own(module, module.__all__))]
  else:
    found = pkgutil.iter_modules(module.__path__, f"{module.__name__}.")
    own = [importlib.import_module(m.name) for m in found]
    parts = [_documented(m.__name__, _own(m, vars(m))) for m in own]
  head = f"# `mer_dg.{room}`\n\n{ROOMS[room]}\n"
  return "\n".join([head, "```{eval-rst}", *parts, "```", ""])


def _documented(module: str, public: Sequence[str]) -> str:
  listed = "\n".join(f"   {name}" for name in public)
  return f"""
.. currentmodule:: {module}

.. autosummary::
   :nosignatures:

{listed}

.. automodule:: {module}
   :members: {", ".join(public)}
   :imported-members:
"""


def _own(module: ModuleType, named: Iterable[str]) -> list[str]:
  """The public functions and classes that are of this room; constants speak alone."""
  public = {n: getattr(module, n) for n in named if n[0] != "_"}
  of = lambda value: str(getattr(value, "__module__", ""))
  return [
    n for n, value in public.items()
    if callable(value) and of(value).startswith(module.__name__)
  ]  # fmt: skip


def fields() -> str:
  """Every field of a config with its default and meaning, from where it is checked."""
  text = [
    "# Config fields\n",
    "Every field with its default; `--config.FIELD=VALUE` sets it, `mer-dg --help`",
    "lists them, too. The file of a config says where it differs. Hyperparameters of",
    "methods are in `recipes`, under the name of the recipe and of the term",
    "([methods](../methods.md)).\n",
    "| field | default | |",
    "| --- | --- | --- |",
  ]
  cell = lambda text: text.replace("|", "\\|")
  text += [f"| `{n}` | `{cell(v)}` | {cell(c)} |" for n, v, c in described()]
  return "\n".join(text) + "\n"


def leaderboard() -> str:
  """Means over held-out domains of every table in docs/results, best first."""
  parts = [LEADERBOARD]
  for name, (dataset, version, modalities, metric), own in _boards():
    parts.append(f"\n## {dataset} ({modalities.replace('+', ' + ')}), {name}\n")
    parts.append(f"Target {names.metric_name(metric)}; data version `{version}`;")
    parts.append(f"[records](results/{name}/table.csv).\n")
    parts.append(_ranked(own, metric))
  return "\n".join(parts) + "\n"


def quoted(text: str) -> str:
  """A page with the sections of reports that it quotes as the reports have them.

  A quotation stands between ``<!-- NAME/report.md: HEADING -->``, of docs/results, and
  ``<!-- end -->``.
  """

  def fresh(found: re.Match[str]) -> str:
    report = (DOCS / "results" / found["file"]).read_text()
    section = report.partition(f"### {found['heading']}\n")[2].partition("\n#")[0]
    return f"{found['begin']}\n\n{section.strip()}\n\n<!-- end -->"

  begin = r"(?P<begin><!-- (?P<file>\S+/report\.md): (?P<heading>[^\n]+) -->)"
  return re.sub(begin + r".*?<!-- end -->", fresh, text, flags=re.DOTALL)


def gallery() -> tuple[str, dict[str, bytes]]:
  """The page of figures of every table in docs/results, and the figures by name."""
  parts, drawn = [GALLERY], {}
  for name, (dataset, _, modalities, metric), own in _boards():
    file = f"{name}-{dataset}-{modalities.replace('+', '-')}.svg"
    found = _scores(own, "value")
    # Tables of older versions do not have it.
    val = _scores(own, "source_val") if "source_val" in own[0] else {}
    figure = figures.forest_plot(
      {m: protocol.summarize(of) for m, of in found.items()},
      names.looks(found),
      metric=metric,
      xlabel=names.metric_name(metric),
      dots={m: [protocol.summarize({t: u}).mean for t, u in of.items()]
            for m, of in found.items()},
      beside={m: protocol.summarize(of) for m, of in val.items()},
    )  # fmt: skip
    drawn[file] = figures.to_bytes(figure, "svg")
    shown = modalities.replace("+", " + ")
    parts.append(f"\n## {dataset} ({shown})\n")
    parts.append(f"![Scores of {len(found)} methods on {dataset}](gallery/{file})\n")
    parts.append(f"[Records of `{name}`](../results/{name}/table.csv).")
  return "\n".join(parts) + "\n", drawn


def _boards() -> Iterator[tuple[str, tuple[str, ...], list[dict]]]:
  """Name, key and rows of every table that holds out each domain in turn."""
  for path in sorted((DOCS / "results").glob("*/table.csv")):
    with path.open() as file:
      rows = [r for r in csv.DictReader(file) if r["selection"] == "source_val"
              and r["protocol"] == "leave_one_domain_out"]  # fmt: skip
    for key, own in protocol.group_by(rows, _board).items():
      yield path.parent.name, key, own


def _board(row: dict) -> tuple[str, ...]:
  return tuple(row[k] for k in ("dataset", "data_version", "modalities", "metric"))


def _ranked(rows: list[dict], metric: str) -> str:
  scores = _scores(rows, "value")
  found = {m: protocol.summarize(of) for m, of in scores.items()}
  sign = 1 if metric in protocol.LOWER_IS_BETTER else -1
  body = []
  for method in sorted(found, key=lambda m: sign * found[m].mean):
    of = scores[method]
    gain = None if method == "erm" else protocol.paired_difference(of, scores["erm"])
    tried = max(int(r["trials"]) for r in rows if r["method"] == method)
    body.append([
      names.display(method), names.interval(found[method], metric),
      names.difference(gain, float("nan"), metric),
      str(sum(map(len, of.values()))), str(tried),
    ])  # fmt: skip
  header = ["method", "mean", "difference to ERM", "runs", "settings"]
  return names.pipe_table(header, body)


def _scores(rows: list[dict], column: str) -> dict[str, dict]:
  """``{method: {target: {unit: value}}}``."""
  scores: dict[str, dict] = {}
  for r in rows:
    units = scores.setdefault(r["method"], {}).setdefault(r["target"], {})
    units[r["seed"], r["split_seed"]] = float(r[column])
  return scores


GALLERY = """# Gallery of reports

The main figure of every table whose records are in `docs/results`, drawn from them when
these pages are built. Filled: mean over held-out domains with its 95 % interval for
*new* domains, each domain a dot; open, where the records have it: validation rows of
the source domains. A wide gap is what does not carry over. Numbers:
[leaderboard](../leaderboard.md); what to believe of them: [results](../results.md).
"""


LEADERBOARD = """# Leaderboard

Made from the records in `docs/results` by `python docs/_pages.py`: every domain held
out in turn, checkpoints selected on source validation. Mean over held-out domains ±
half the 95 % interval for *new* domains, paired difference to ERM with the same kind of
interval, runs behind it, settings tried. Defaults, unless more than one setting was
tried. A place in a table is no proof of a difference: read the intervals.

**How to submit.** Add your method to a table and send its records, not its numbers:

1. `docs/add_a_method.md`; then the command of the table with
   `--config.methods="('erm','yours')"` and its seeds (the command is in the `report.md`
   beside the records). Nobody else's runs are repeated.
2. Copy `report/table.csv` and `report/report.md` from the workdir to
   `docs/results/NAME/` and run `python docs/_pages.py`. ERM must be in the table, on
   the same data version: differences are paired by seed and split.
3. Say in the pull request how settings were chosen. A search on source validation is
   fine and is counted under *settings*; whoever looked at the target says so.
"""


def make() -> None:
  """Writes the pages of one build to docs/made, which is not tracked."""
  folder = DOCS / "made"
  folder.mkdir(exist_ok=True)
  pages = {room: api(room) for room in ROOMS} | {"config": fields()}
  pages["changelog"] = "```{include} ../../CHANGELOG.md\n```\n"
  pages["gallery"], drawn = gallery()
  files = {f"{name}.md": text.encode() for name, text in pages.items()}
  files |= {f"gallery/{name}": svg for name, svg in drawn.items()}
  for path in (DOCS.parent / "notebooks").glob("*.ipynb"):
    text = path.read_text().replace("](../docs/", "](../../")
    files[f"notebooks/{path.name}"] = text.encode()
  for name, content in files.items():
    path = folder / name
    if (
      not path.exists() or path.read_bytes() != content
    ):  # Sphinx builds what is newer.
      path.parent.mkdir(exist_ok=True)
      write_atomic(path, content)


QUOTING = (DOCS / "results.md",)

if __name__ == "__main__":
  for page in QUOTING:
    page.write_text(quoted(page.read_text()))
  (DOCS / "leaderboard.md").write_text(leaderboard())
