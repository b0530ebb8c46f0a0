"""Where the numbers of a table come from: facts read off the records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mer_dg import protocol
from mer_dg.protocol import AnyRecord
from mer_dg.reporting import names

# Settings of a search are listed one by one up to here, then as a range.
_LISTED = 3


def facts(
  records: Sequence[AnyRecord], *, commands: Iterable[str] = ()
) -> dict[str, list[str]]:
  """What a reader needs to repeat the runs of one table, or to distrust them.

  Args:
    records: Records of one dataset and set of modalities.
    commands: Commands that produced them; records do not know.

  Returns:
    ``{name: lines}`` in the order in which they are shown; facts that nothing is known
    about are left out.
  """
  distinct = lambda field: list(dict.fromkeys(r[field] for r in records))
  by_method = protocol.group_by(records, lambda r: r["method"])
  tried = {m: max(r["trials"] for r in rows) for m, rows in by_method.items()}
  times = sorted({r["time"].removesuffix("+00:00") for r in records})
  first = records[0]
  out: dict[str, list[str]] = {
    "commands": list(commands),
    "dataset": [f"{first['dataset']}, version {first['data_version']}"],
    "modalities": [", ".join(first["modalities"])],
    "target ← sources": _tasks(records),
    "runs": [f"{len(distinct('run_id'))} runs, {len(records)} evaluations"],
    "seeds": [_span(distinct("seed"))],
    "split seeds": [_span(distinct("split_seed"))],
    "evaluated at steps": [_span(distinct("step"))],
    "settings tried": [", ".join(f"{names.display(m)} {n}" for m, n in tried.items())],
    "code": [names.short_revision(r) for r in distinct("git_revision")],
    "protocol (hash of the config)": distinct("config_hash"),
    "device": distinct("device"),
    "damaged rows left out": [_span(found) for found in [_damaged(records)] if found],
    "time": [" to ".join(dict.fromkeys((times[0], times[-1]))) + " (UTC)"],
  }
  for method, rows in by_method.items():
    out[f"hyperparameters of {names.display(method)}"] = _settings(rows)
  return {name: lines for name, lines in out.items() if any(lines)}


def _damaged(records: Sequence[AnyRecord]) -> list[int]:
  return sorted({int(r.get("damaged", 0)) for r in records} - {0})


def _span(values: Sequence[int]) -> str:
  """``0 to 4`` for a range, else a list."""
  values = sorted(values)
  if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
    return f"{values[0]} to {values[-1]}"
  return ", ".join(map(str, values))


def _tasks(records: Sequence[AnyRecord]) -> list[str]:
  """``a ← b, c`` for every target; one line where each target has all others."""
  assigned = records[0].get("protocol")
  if assigned in names.PROTOCOLS:
    targets = ", ".join(dict.fromkeys(r["target"] for r in records))
    return [f"{targets}: {names.PROTOCOLS[assigned]}"]
  sources = {r["target"]: list(r["sources"]) for r in records}
  domains = [[t, *own] for t, own in sources.items()]
  if len(sources) > 1 and len(set(map(frozenset, domains))) == 1:
    everyone = dict.fromkeys([*sources, *(d for own in domains for d in own)])
    each = f"each of {', '.join(sources)} ← all others"
    whole = len(everyone) == len(sources)
    return [each if whole else f"{each} of {', '.join(everyone)}"]
  return [f"{t} ← {', '.join(own)}" for t, own in sources.items()]


def _settings(rows: Sequence[AnyRecord]) -> list[str]:
  """Numbers and words of a method; numbers that differ between its runs as a range."""
  parts: dict[str, list[Any]] = {}
  for row in rows:
    for name, value in [*row["hyper"].items(), *row.get("tags", {}).items()]:
      parts.setdefault(name, []).append(value)
  out = []
  for name, found in parts.items():
    values = list(dict.fromkeys(found))
    if not isinstance(values[0], str):
      values = [f"{value:.4g}" for value in sorted(values)]
    many = f"{values[0]} to {values[-1]}"
    out.append(f"{name} {many if len(values) > _LISTED else ' or '.join(values)}")
  return out
