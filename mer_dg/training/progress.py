"""What a person sees while a run trains: one bar, and a line per evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import sys
from time import monotonic
from typing import TypeVar

import numpy as np
from tqdm import tqdm

T = TypeVar("T")

# Seconds between refreshes where nobody watches a terminal (a log file, CI).
_QUIET_INTERVAL = 20.0
_LONG = 600.0  # Seconds.


def progress_bar(items: Iterable[T], total: int, label: str) -> Iterable[T]:
  """The items, under a bar that goes away when they end."""
  watched = sys.stderr.isatty()
  interval = 0.2 if watched else _QUIET_INTERVAL
  return tqdm(
    items,
    total=total,
    desc=label,
    unit="block",
    leave=False,
    dynamic_ncols=watched,
    mininterval=interval,
    delay=interval,
  )


class Progress:
  """A bar with steps/s, ETA, the terms of the loss and per-modality entropy.

  Args:
    total: Steps in all.
    done: Steps that a resumed run has behind it.
    label: Name of the run.
    hint: What makes it shorter; written with the time that is left, once, where that is
      more than ten minutes.
  """

  def __init__(self, total: int, done: int, label: str, hint: str = ""):
    self._hint, self._total = hint, total
    self._since: tuple[float, float] | None = None  # Time and steps of the first chunk.
    watched = sys.stderr.isatty()
    self._bar = tqdm(
      total=total,
      initial=done,
      desc=label or "train",
      unit="step",
      unit_scale=total >= 100_000,
      dynamic_ncols=watched,
      mininterval=0.2 if watched else _QUIET_INTERVAL,
      disable=done >= total,  # A finished run has nothing to show.
    )

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *exc) -> None:
    self._bar.close()

  def update(self, step: int, metrics: Mapping[str, float]) -> None:
    """Moves the bar to ``step`` and shows loss terms and entropies."""
    shown = {"loss": metrics["loss"]}
    for name, value in metrics.items():
      kind, _, rest = name.partition("/")
      if kind == "loss" and rest:
        shown[rest] = value
      elif kind == "entropy":  # Of the method: its estimator, on the batch.
        shown[f"H[{rest}]"] = value
    self._bar.set_postfix_str(" ".join(f"{k} {v:.3g}" for k, v in shown.items()), False)
    self._bar.update(step - self._bar.n)

  def add(self, steps: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Moves the bar by ``steps``; metrics are averaged over what is finite."""
    means = {
      k: float(np.mean(v, where=np.isfinite(v))) if np.isfinite(v).any() else np.nan
      for k, v in metrics.items()
    }
    self.update(int(self._bar.n) + steps, means)
    if self._hint:
      self._tell_time(monotonic())

  def _tell_time(self, now: float) -> None:
    """Says how long it takes, measured on what follows the first chunk.

    The first one compiles.
    """
    if self._since is None:
      self._since = now, float(self._bar.n)
      return
    began, steps = self._since
    left = (self._total - self._bar.n) * (now - began) / (self._bar.n - steps)
    if left > _LONG:
      self.write(f"About {left / 60:.0f} minutes are left. {self._hint}")
    self._hint = ""

  def name(self, label: str, compiling: bool = False) -> None:
    """Changes the name before the bar; may say that a program is compiled first."""
    self._bar.set_description(label, refresh=False)
    if compiling:  # Minutes on some devices; the first metrics take this away.
      self._bar.set_postfix_str("compiling …")

  def write(self, line: str) -> None:
    """Prints a line above the bar."""
    self._bar.write(line, file=sys.stderr)

  def note(self, step: int, evaluation: Mapping[str, float], metric: str) -> None:
    """Prints one line for an evaluation, above the bar; never a score of the target."""
    words = [f"source validation {metric.replace('_', ' ')} {100 * v:.1f}"
             for k, v in evaluation.items() if k == f"val/{metric}"]  # fmt: skip
    # Kernel estimates on all validation rows, not the method's own of a batch.
    words += [f"H[{k[8:]}] of validation {v:.3g}"
              for k, v in evaluation.items() if k.startswith("entropy/")]  # fmt: skip
    self.write(f"step {step}: " + ", ".join(words))
