"""Records to numbers about embeddings: what source and target have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses

from mer_dg.protocol import AnyRecord, Interval
from mer_dg.reporting import stress

_PREFIX = "representation/"
# Names of `--mode=diagnose` that are shown first, and as what; then the entropies.
LABELS = {
  "domain_accuracy": "domain told (%)",
  "cka": "CKA",
  "cka_debiased": "CKA, debiased",
  "procrustes": "Procrustes",
  "effective_rank": "effective rank",
}


@dataclasses.dataclass(frozen=True)
class Representation:
  """Numbers about the embeddings of each modality, mean over targets.

  Attributes:
    rule: Selection rule.
    names: Of the numbers, in the order to be shown; those with a value on each side
      without it.
    cells: ``{(method, modality): {name, name/val or name/target: interval}}``.
  """

  rule: str
  names: tuple[str, ...]
  cells: dict[tuple[str, str], dict[str, Interval]]


def representation(
  records: Iterable[AnyRecord],
  *,
  metric: str = "accuracy",
  rule: str = "source_val",
  methods: Sequence[str] | None = None,
) -> Representation | None:
  """Collects ``representation/<modality>/<name>[/<val or target>]``.

  Args:
    records: All evaluations of all runs of one dataset.
    metric: What selection looks at.
    rule: Selection rule; ``last`` where only the last evaluations have all metrics.
    methods: Their order; by default that of appearance.

  Returns:
    The numbers, ``None`` if no record has such metrics.

  Raises:
    ValueError: As `protocol.select`.

  Example:
    >>> run = dict(run_id="r", method="erm", dataset="d", modalities=["a"], step=1,
    ...   target="t", seed=0, split_seed=0, hyper={})
    >>> metrics = {"val/accuracy": 0.9, "representation/a/cka": 0.5,
    ...            "representation/a/entropy_kde/val": 2.0}
    >>> found = representation([run | {"metrics": metrics}])
    >>> found.names, found.cells["erm", "a"]["entropy_kde/val"].mean
    (('cka', 'entropy_kde'), 2.0)
  """
  selected, rule = stress.where_recorded(records, metric, rule, (_PREFIX,))
  cells: dict[tuple[str, str], dict[str, Interval]] = {}
  for method, rows in stress.by_method(selected, methods).items():
    for m in selected[0]["modalities"]:
      prefix = f"{_PREFIX}{m}/"
      found = {k for r in rows for k in r["metrics"] if k.startswith(prefix)}
      own = {k[len(prefix) :]: stress.over_targets(rows, k) for k in sorted(found)}
      if own:
        cells[method, m] = {k: v for k, v in own.items() if v is not None}
  if not cells:
    return None
  names = {k.split("/")[0] for own in cells.values() for k in own}
  first = [name for name in LABELS if name in names]
  return Representation(rule, (*first, *sorted(names.difference(first))), cells)
