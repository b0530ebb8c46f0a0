"""Every loss over rows as one scalar function of arrays with a leading batch axis."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from mer_dg import losses


@dataclasses.dataclass(frozen=True)
class Case:
  """``fn(floats, integers, where) -> scalar``; every leaf has leading axis ``[B]``."""

  fn: Any
  floats: Any
  integers: Any = None


def all_cases(size: int) -> dict[str, Case]:
  rng = np.random.default_rng(size)

  def draw(*shape):
    return rng.normal(size=(size, *shape))

  def unit(width):
    z = draw(width)
    return z / np.linalg.norm(z, axis=1, keepdims=True)

  label = rng.integers(0, 3, size)
  domain = np.arange(size) % 2
  prototypes = rng.normal(size=(3, 4))
  variance = np.exp(rng.normal(size=4))
  weights = rng.normal(size=(size, 2))
  order = ("video", "audio", "flow")
  pairs = {("audio", "video"): draw(6), ("video", "audio"): draw(4)}
  return {
    "cross_entropy": Case(
      lambda z, y, where: losses.cross_entropy(z, y, where=where), draw(3), label
    ),
    "prototype_cross_entropy": Case(
      lambda z, y, where: losses.prototype_cross_entropy(
        z, y, jnp.asarray(prototypes, z.dtype), where=where
      ),
      draw(4),
      label,
    ),
    "supervised_contrastive": Case(
      lambda r, y, where: losses.supervised_contrastive(
        r, y, temperature=0.3, where=where
      ),
      {m: unit(5) for m in order},
      label,
    ),
    "mean_shift_contrastive": Case(
      lambda r, _, where: losses.mean_shift_contrastive(
        r["first"], r["second"], neighbours=3, where=where
      ),
      {view: {"audio": unit(5), "video": unit(3)} for view in ("first", "second")},
    ),
    "relative_norm_alignment": Case(
      lambda z, _, where: losses.relative_norm_alignment(z, order=order, where=where),
      {m: draw(d) for m, d in zip(order, (4, 6, 3), strict=True)},
    ),
    "shared_specific_distance": Case(
      lambda z, _, where: losses.shared_specific_distance(z, where=where),
      {"audio": draw(4), "video": draw(6)},
    ),
    "translation_distance": Case(
      lambda x, _, where: losses.translation_distance(
        x["translated"], x["embeddings"], where=where
      ),
      {"translated": pairs, "embeddings": {"audio": draw(4), "video": draw(6)}},
    ),
    "coral": Case(
      lambda z, d, where: losses.coral(z, d, num_domains=2, where=where),
      draw(5),
      domain,
    ),
    "mmd": Case(
      lambda z, d, where: losses.mmd(z, d, num_domains=2, where=where), draw(5), domain
    ),
    "miro": Case(
      lambda f, _, where: losses.miro(
        f["features"],
        f["reference"],
        0.1,
        jnp.asarray(variance, f["features"].dtype),
        where=where,
      ),
      {"features": draw(4), "reference": draw(4)},
    ),
    # No mean over rows of its own: rows that count, each with its own coefficients.
    "entropy_weights": Case(
      lambda x, _, where: jnp.sum(
        jnp.where(
          jnp.ones(len(x["c"]), bool)[:, None] if where is None else where[:, None],
          x["c"]
          * losses.entropy_weights(
            {m: x[m] for m in ("audio", "fused")}, temperature=0.5, where=where
          ),
          0,
        )
      ),
      {"audio": draw(3), "fused": draw(3), "c": weights},
    ),
  }
