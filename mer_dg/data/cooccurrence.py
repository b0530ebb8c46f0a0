r"""A generator of multimodal data in which fusion overfitting has a known answer.

Each sample has a class y, a domain d and, for every modality m,

* a *causal* factor  c^m = s_m P^m[y] + e,  e ~ N(0, I): the same in every domain;
* a *domain* factor  u^m = U^m[d] + e: tells domains apart, says nothing of y;
* a *nuisance* factor  n^m = a Q^m[code_m] + e / 4: a word of a code that is
  shared between the modalities. A key r is uniform over the K classes; the
  first modality sees the word j + r (mod K), all others see r. Alone, each word
  is independent of everything. Together they give away j, and j equals y with
  probability ``pairing`` (else it is uniform). So the accidental *pairing* is
  predictive where it holds, and no encoder trained alone can learn it.

In the target the pairing is ``"absent"`` (j uniform) or ``"reversed"`` (j = y + 1
with probability ``pairing``). The modality is x^m = tanh(A^m [c; u; n]) B^m plus
observation noise: an overcomplete random nonlinear mixing, fixed by the seed.

As any domain may be the target, each one is generated twice: rows marked train
and val pair as a source does, rows marked test pair as a target does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mer_dg.data.dataset import SPLITS, ArrayDataset, DataError, make_dataset

TARGET_PAIRINGS = ("absent", "reversed")


class Cooccurrence(NamedTuple):
  """Knobs of the generator.

  Attributes:
    num_classes: K, at least 2.
    num_domains: Domains, at least 2.
    strengths: Distance of class means over the causal noise, per modality; its
      length is the number of modalities M >= 2.
    widths: Observed dimensions per modality.
    pairing: Probability in [0, 1] that the shared nuisance names the class in
      a source.
    target_pairing: What becomes of it in the target, one of `TARGET_PAIRINGS`.
    nuisance_scale: Amplitude ``a`` of the nuisance words.
    noise: Standard deviation of the observation noise, per modality.
    train_per_domain: Source rows per domain that train.
    val_per_domain: Source rows per domain that validate.
    test_per_domain: Target rows per domain.
    seed: Seed of mixing and samples.
  """

  num_classes: int = 4
  num_domains: int = 4
  strengths: Sequence[float] = (2.0, 2.0)
  widths: Sequence[int] = (48, 32)
  pairing: float = 1.0
  target_pairing: str = "absent"
  nuisance_scale: float = 3.0
  noise: Sequence[float] = (0.1, 0.1)
  train_per_domain: int = 400
  val_per_domain: int = 200
  test_per_domain: int = 500
  seed: int = 0


class Latents(NamedTuple):
  """What the generator knows of its rows; `factors` is ``{modality: [N, F]}``."""

  label: np.ndarray
  domain: np.ndarray
  split: np.ndarray
  causal: dict[str, np.ndarray]
  means: dict[str, np.ndarray]


def make_cooccurrence(knobs: Cooccurrence) -> ArrayDataset:
  """Generates the set.

  Args:
    knobs: The knobs; see `Cooccurrence`.

  Returns:
    A set with modalities ``m0, m1, ...`` and its own split.

  Raises:
    DataError: A knob out of range; the message names it.

  Example:
    >>> d = make_cooccurrence(Cooccurrence(train_per_domain=8))
    >>> d.modalities, d.inputs["m0"].shape[1]
    (('m0', 'm1'), 48)
  """
  latents, inputs = _generate(knobs)
  return make_dataset(
    name="cooccurrence",
    inputs=inputs,
    label=latents.label,
    domain=latents.domain,
    class_names=[f"class{k}" for k in range(knobs.num_classes)],
    domain_names=[f"d{i}" for i in range(knobs.num_domains)],
    split=latents.split,
  )


def best_target_accuracy(
  knobs: Cooccurrence, *, modalities: Sequence[str] | None = None
) -> float:
  """Accuracy in [0, 1] of the best rule on the target rows, given the latents.

  The rule knows the causal factors of all rows exactly, and their class
  distributions. With ``target_pairing="absent"`` the other factors are
  independent of the class there, so no rule on the observed modalities can do
  better; what the observation noise hides can only lower it.

  Args:
    knobs: The knobs.
    modalities: The modalities the rule may use; default all.

  Example:
    >>> easy = Cooccurrence(strengths=(9.0, 9.0))
    >>> best_target_accuracy(easy)
    1.0
  """
  latents, _ = _generate(knobs)
  rows = latents.split == SPLITS.index("test")
  score = np.zeros((int(rows.sum()), knobs.num_classes))
  for m in modalities or latents.causal:
    gap = latents.causal[m][rows][:, None, :] - latents.means[m][None, :, :]
    score = score - 0.5 * (gap**2).sum(axis=-1)
  return float((score.argmax(axis=1) == latents.label[rows]).mean())


def _generate(knobs: Cooccurrence) -> tuple[Latents, dict[str, np.ndarray]]:
  _check(knobs)
  rng = np.random.default_rng(knobs.seed)
  k, per = (
    knobs.num_classes,
    (
      knobs.train_per_domain,
      knobs.val_per_domain,
      knobs.test_per_domain,
    ),
  )
  split = np.tile(np.repeat(np.arange(3), per), knobs.num_domains)
  domain = np.repeat(np.arange(knobs.num_domains), sum(per))
  n = len(split)
  label = rng.integers(k, size=n)
  named = rng.random(n) < knobs.pairing  # rows in which the nuisance means y
  code = rng.integers(k, size=n)
  source = split != SPLITS.index("test")
  code = np.where(named & source, label, code)
  if knobs.target_pairing == "reversed":
    code = np.where(named & ~source, (label + 1) % k, code)
  key = rng.integers(k, size=n)
  causal, means, inputs = {}, {}, {}
  for i, (s, width, noise) in enumerate(
    zip(knobs.strengths, knobs.widths, knobs.noise, strict=True)
  ):
    m = f"m{i}"
    word = (code + key) % k if i == 0 else key
    # Orthonormal prototypes: every pair of classes is equally far apart.
    means[m] = s / np.sqrt(2.0) * _orthonormal(rng, k)
    causal[m] = means[m][label] + rng.normal(size=(n, k))
    shift = rng.normal(size=(knobs.num_domains, k))[domain] + rng.normal(size=(n, k))
    words = knobs.nuisance_scale * _orthonormal(rng, k)[word]
    words = words + 0.25 * rng.normal(size=(n, k))
    factors = np.concatenate([causal[m], shift, words], axis=1)
    hidden = 4 * factors.shape[1]
    mixed = np.tanh(factors @ rng.normal(size=(factors.shape[1], hidden)) / 3.0)
    mixed = mixed @ rng.normal(size=(hidden, width)) / np.sqrt(hidden)
    inputs[m] = (mixed + noise * rng.normal(size=mixed.shape)).astype(np.float32)
  return Latents(label, domain, split, causal, means), inputs


def _orthonormal(rng: np.random.Generator, k: int) -> np.ndarray:
  return np.linalg.qr(rng.normal(size=(k, k)))[0]


def _check(knobs: Cooccurrence) -> None:
  def require(ok, field, allowed):
    if not ok:
      value = getattr(knobs, field)
      raise DataError(f"cooccurrence: {field}={value!r} must be {allowed}.")

  require(knobs.num_classes >= 2, "num_classes", "at least 2")
  require(knobs.num_domains >= 2, "num_domains", "at least 2")
  require(len(knobs.strengths) >= 2, "strengths", "one number per modality, 2 or more")
  for field in ("widths", "noise"):
    require(
      len(getattr(knobs, field)) == len(knobs.strengths),
      field,
      f"as long as strengths ({len(knobs.strengths)})",
    )
  require(min(knobs.strengths) >= 0, "strengths", "0 or more")
  require(min(knobs.widths) >= 1, "widths", "1 or more")
  require(min(knobs.noise) >= 0, "noise", "0 or more")
  require(0 <= knobs.pairing <= 1, "pairing", "in [0, 1]")
  require(
    knobs.target_pairing in TARGET_PAIRINGS,
    "target_pairing",
    f"one of {TARGET_PAIRINGS}",
  )
  require(knobs.nuisance_scale >= 0, "nuisance_scale", "0 or more")
  for field in ("train_per_domain", "val_per_domain", "test_per_domain"):
    require(getattr(knobs, field) >= 1, field, "at least 1")
