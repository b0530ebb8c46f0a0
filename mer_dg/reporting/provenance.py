"""Where the numbers of a table come from: facts read off the records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import json

from mer_dg import protocol
from mer_dg.protocol import AnyRecord
from mer_dg.reporting import formats

# Settings of a search are listed one by one up to here, then as a range.
_LISTED = 3


def facts(
  records: Sequence[AnyRecord], *, commands: Iterable[str] = ()
) -> list[tuple[str, list[str]]]:
  """What a reader needs to repeat the runs of one table, or to distrust them.

  Args:
    records: Records of one dataset and set of modalities.
    commands: Commands that produced them; records do not know.

  Returns:
    ``(name, lines)``, in the order in which they are shown; facts that nothing is
    known about are left out.

  Example:
    >>> record = dict(dataset="toy", data_version="1", modalities=["a"], target="t",
    ...   sources=["s"], seed=0, split_seed=0, step=10, trials=1, hyper={"opt.lr": 0.1},
    ...   method="erm", run_id="r", config_hash="c", git_revision="v1", device="cpu",
    ...   wall_time_s=60.0, time="2026-01-01T00:00:00+00:00")
    >>> dict(facts([record]))["hyperparameters of erm"]
    ['opt.lr 0.1']
  """
  distinct = lambda field: list(dict.fromkeys(r[field] for r in records))
  runs = len({r["run_id"] for r in records})
  first = records[0]
  out = [
    ("commands", list(commands)),
    ("dataset", [f"{first['dataset']}, version {first['data_version']}"]),
    ("modalities", [", ".join(first["modalities"])]),
    ("target ← sources", _tasks(records)),
    ("runs", [f"{runs} runs, {len(records)} evaluations"]),
    ("seeds", [_numbers(distinct("seed"))]),
    ("split seeds", [_numbers(distinct("split_seed"))]),
    ("evaluated at steps", [_numbers(distinct("step"))]),
    ("settings tried", [_trials(records)]),
    ("code", [formats.short_revision(r) for r in distinct("git_revision")]),
    ("protocol (hash of the config)", distinct("config_hash")),
    ("device", distinct("device")),
    ("time", [_time(records)]),
  ]
  for method, rows in protocol.group_by(records, lambda r: r["method"]).items():
    out.append((f"hyperparameters of {method}", _hyper(rows)))
  return [(name, lines) for name, lines in out if any(lines)]


def _numbers(values: Sequence[int]) -> str:
  """``0 to 4`` for a range, else a list."""
  values = sorted(values)
  if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
    return f"{values[0]} to {values[-1]}"
  return ", ".join(map(str, values))


def _tasks(records: Sequence[AnyRecord]) -> list[str]:
  """``a ← b, c`` for every target; one line where each target has all others."""
  protocol = records[0].get("protocol")
  if protocol in formats.PROTOCOL_LABELS:
    names = ", ".join(dict.fromkeys(r["target"] for r in records))
    return [f"{names}: {formats.PROTOCOL_LABELS[protocol]}"]
  sources = {r["target"]: list(r["sources"]) for r in records}
  domains = {frozenset([t, *names]) for t, names in sources.items()}
  if len(sources) > 1 and len(domains) == 1:
    everyone = dict.fromkeys(
      [*sources, *(s for names in sources.values() for s in names)]
    )
    each = f"each of {', '.join(sources)} ← all others"
    return [
      each if len(everyone) == len(sources) else f"{each} of {', '.join(everyone)}"
    ]
  return [f"{t} ← {', '.join(names)}" for t, names in sources.items()]


def _trials(records: Sequence[AnyRecord]) -> str:
  groups = protocol.group_by(records, lambda r: r["method"])
  most = {m: max(r["trials"] for r in rows) for m, rows in groups.items()}
  return ", ".join(f"{m} {n}" for m, n in most.items())


def _hyper(rows: Sequence[AnyRecord]) -> list[str]:
  """Numbers of a method, those that differ between its runs as a range; its words."""
  settings = {json.dumps(r["hyper"], sort_keys=True): r["hyper"] for r in rows}
  names = dict.fromkeys(k for hyper in settings.values() for k in hyper)
  parts = []
  for name in names:
    values = sorted({h[name] for h in settings.values() if name in h})
    if len(values) <= _LISTED:
      parts.append(f"{name} " + " or ".join(f"{v:.4g}" for v in values))
    else:
      parts.append(f"{name} {values[0]:.4g} to {values[-1]:.4g}")
  words = (f"{k}={v}" for r in rows for k, v in r.get("tags", {}).items())
  return [*parts, *dict.fromkeys(words)]


def _time(records: Sequence[AnyRecord]) -> str:
  times = sorted(r["time"].removesuffix("+00:00") for r in records)
  if times[0] == times[-1]:
    return f"{times[0]} (UTC)"
  return f"{times[0]} to {times[-1]} (UTC)"
