"""Protocols: which domains train and which one tests, as data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from mer_dg.protocol.selection import AnyRecord, single_sources

PROTOCOLS = ("leave_one_domain_out", "single_source", "target_alone", "with_target")
# What records of older versions call them.
FORMER = {"in_domain": "target_alone"}
# Most columns "source to target" that a table is given; with more domains the pairs of
# a target share its column.
MOST_PAIRS = 12


class Assignment(NamedTuple):
  """Who trains and who tests in one task.

  Attributes:
    target: The domain that is tested on.
    sources: The domains that train; () is every domain but the target.
  """

  target: str
  sources: tuple[str, ...] = ()


def assignments(
  protocol: str,
  domains: Sequence[str],
  *,
  targets: Sequence[str] = (),
  sources: Sequence[str] = (),
) -> tuple[Assignment, ...]:
  """The tasks of a protocol.

  * ``leave_one_domain_out``: each target, trained on all other domains.
  * ``single_source``: all ordered pairs of one source and another target.
  * ``target_alone``: each target trained on rows of its own, and nothing else.
  * ``with_target``: on all other domains and rows of its own, the upper bound.

  Args:
    protocol: One of `PROTOCOLS`.
    domains: All domains of the set.
    targets: Domains to test on; () is all of them.
    sources: Domains that may train; () is all of them. Not for ``target_alone``;
      ``with_target`` adds the target.

  Returns:
    In the order of sources, where they are single, then targets.

  Raises:
    ValueError: If the protocol is unknown.

  Example:
    >>> [f"{a.sources[0]} to {a.target}" for a in assignments("single_source", "ab")]
    ['a to b', 'b to a']
  """
  if protocol not in PROTOCOLS:
    raise ValueError(f"protocol={protocol!r} is not one of {PROTOCOLS}.")
  targets = tuple(targets) or tuple(domains)
  if protocol == "target_alone":
    return tuple(Assignment(t, (t,)) for t in targets)
  if protocol == "single_source":
    sources = tuple(sources) or tuple(domains)
    return tuple(Assignment(t, (s,)) for s in sources for t in targets if s != t)
  return tuple(Assignment(t, tuple(sources)) for t in targets)


def name_pairs(records: Iterable[AnyRecord]) -> list[dict[str, Any]]:
  """Records of single-source tasks with ``"source → target"`` as their target.

  So a table gets a column for each ordered pair, as the papers have it. Records whose
  targets have one set of sources each, and sets with more than `MOST_PAIRS` pairs, stay
  as they are.

  Args:
    records: Evaluations of one dataset.

  Returns:
    Copies, order kept.

  Example:
    >>> rows = [{"target": "t", "sources": [s]} for s in ("a", "b")]
    >>> [row["target"] for row in name_pairs(rows)]
    ['a → t', 'b → t']
  """
  rows = [dict(record) for record in records]
  pairs = {(tuple(r["sources"]), r["target"]) for r in rows}
  if single_sources(rows) and len(pairs) <= MOST_PAIRS:
    for row in rows:
      row["target"] = f"{row['sources'][0]} → {row['target']}"
  return rows
