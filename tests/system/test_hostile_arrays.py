"""Two thousand hostile arrays: eager, compiled and vmapped calls say what is true.

Every public function of ``mer_dg`` sees finite float32 rows of any size (zeros, numbers
next to zero and next to the largest, both at once, equal rows, huge offsets), and
anything at all in rows that are masked. The truth is the same function in float64. What
float32 can hold of it must come out: equal to a tolerance that follows from the
rounding of the input; infinite where the truth is, or nearly, with the same sign; and
never nan.
"""

import os
import secrets

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mer_dg
from mer_dg.entropy._arrays import robust_center
from tests.entropy._helpers import ALL, float64
from tests.losses._cases import all_cases

N, D, K = 12, 5, 3
TOTAL = 2000
LARGEST = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)
LABELS = np.arange(N) % K

# Not functions of numbers: types, and what makes or names them.
WITHOUT_NUMBERS = {
  "__version__", "FifoQueue", "Kernel", "ConfidenceTable", "Exploration", "Mixed",
  "Stage", "fifo_init", "init_confidence_table", "init_exploration", "mix_stage",
  "sphere_log_area", "student_t",
}  # fmt: skip
# They say something of every row and know no mask.
ROWLESS = {
  "prediction_strength", "select_confident", "target_kl", "unit_sphere", "fifo_push",
  "gradient_reversal", "mmpareto_direction", "ogm_coefficients", "vmf_log_normalizer",
  "modality_dropout_probabilities", "gradient_blending_weights", "exploration_score",
  "route_gradients", "update_confidence_table",
}  # fmt: skip
# A rule's bandwidth is floored, as identical rows have none: finite, where the truth is
# minus infinity, and at another number in float64.
BY_RULE = {"kde", "kde_median", "kde_tiled", "kde_student", "marginal_kde", "renyi"}
# Rows that are far away in bandwidths are nearer than they should be (``cut_off``).
CUT = {"kde_fixed", "kde_median", "bounds"}
# Rows are compared within some fifteen orders of magnitude.
SPAN = {"knn", "kde_median", "gaussian"}
# Lost are distances between rows that are near to each other and far from the median
# row (``mmd``), and on the sphere all below 3e-4, where a function needs the median one
# or who is nearest.
ON_SPHERE = {
  "vmf_median": np.median,
  "entropy_regularizer": np.median,
  "mean_shift_contrastive": np.min,
}


def _by_rows(x):
  """Two columns for each modality, as small trees."""
  return {"a": x[:, :2], "b": x[:, 2:4]}


def _means(x):
  """``{m: scalar >= 0}``."""
  return {m: jnp.max(jnp.abs(z)) for m, z in _by_rows(x).items()}


def _mixed(x, where):
  mix = mer_dg.modality_mix(
    jax.random.key(0), {"a": x, "b": x[:, :2]}, LABELS, num_classes=K, eligible=where
  )
  loss, aux = mer_dg.modality_mix_loss(mix, mix.embeddings["a"][:, :K])
  return loss, aux["kl"]


def _routed(x, where):
  seen = mer_dg.init_exploration(("a", "b"))
  seen = mer_dg.exploration_score(seen, {"a": x[:, :K], "b": x[:, 2:]}, LABELS)
  return mer_dg.route_gradients(_by_rows(x), seen)


def _others():
  strength = lambda x: mer_dg.prediction_strength(x[:, :K], LABELS)
  table = mer_dg.init_confidence_table(N)
  seen = mer_dg.init_exploration(("a", "b"))
  halves = lambda x: (_means(x), _means(x[1:]), _means(x[2:]), _means(x[3:]))
  return {
    "prediction_strength": lambda x, _: strength(x)[0],
    "select_confident": lambda x, _: mer_dg.select_confident(*strength(x)),
    "update_confidence_table": lambda x, _: (
      mer_dg.update_confidence_table(table, jnp.arange(N), x[:, :K], LABELS).confidence
    ),
    "exploration_score": lambda x, _: (
      mer_dg.exploration_score(seen, {"a": x[:, :K], "b": x[:, 2:]}, LABELS).score
    ),
    "route_gradients": _routed,
    "target_kl": lambda x, _: mer_dg.target_kl(
      jax.nn.softmax(jnp.sin(x[:, :K])), x[:, :K]
    ),
    "modality_mix": _mixed,
    "unit_sphere": lambda x, _: mer_dg.unit_sphere(x),
    "gradient_reversal": lambda x, _: jax.grad(
      lambda z: jnp.sum(x * mer_dg.gradient_reversal(z, 0.5))
    )(x),
    "fifo_push": lambda x, w: (
      mer_dg.fifo_push(mer_dg.fifo_init(2 * N, D, x.dtype), x, where=w).rows
    ),
    "vmf_log_normalizer": lambda x, _: mer_dg.vmf_log_normalizer(D, jnp.abs(x)),
    "masked_mean": lambda x, w: mer_dg.masked_mean(x[:, 0], w),
    "ogm_coefficients": lambda x, _: mer_dg.ogm_coefficients(_means(x), alpha=0.5),
    "modality_dropout_probabilities": lambda x, _: (
      mer_dg.modality_dropout_probabilities(_means(x))
    ),
    "gradient_blending_weights": lambda x, _: mer_dg.gradient_blending_weights(
      *halves(x), eps=1e-6
    ),
    "mmpareto_direction": lambda x, _: mer_dg.mmpareto_direction(
      _by_rows(x), _by_rows(x[:, 1:])
    ),
    "marginal_entropy_loss": lambda x, w: mer_dg.marginal_entropy_loss(x, where=w),
    "spectral_entropy_loss": lambda x, w: mer_dg.spectral_entropy_loss(x, where=w),
    "entropy_regularizer": lambda x, w: mer_dg.entropy_regularizer(
      {"a": x, "b": x[:, :3]}, where=w
    )[0],
  }


def _functions():
  """``{name: fn(rows [N, D], where [N])}``; every leaf of a loss gets such rows."""
  made = {name: lambda x, w, f=f: f(x, where=w) for name, f in ALL.items()}
  for name, case in all_cases(N).items():
    leaves, tree = jax.tree.flatten(case.floats)
    widths = [leaf.shape[1] for leaf in leaves]

    def call(x, where, case=case, tree=tree, widths=widths):
      rows = [jnp.tile(jnp.roll(x, i, axis=1), 2)[:, :w] for i, w in enumerate(widths)]
      return case.fn(jax.tree.unflatten(tree, rows), case.integers, where)

    made[name] = call
  made |= _others()
  flat = lambda out: jnp.concatenate([jnp.ravel(a) for a in jax.tree.leaves(out)])
  return {name: lambda x, w, f=f: flat(f(x, w)) for name, f in made.items()}


FUNCTIONS = _functions()


def _hostile(rng):
  """Finite rows of some kind; the masked ones are anything."""
  x = rng.standard_normal((N, D))
  match rng.integers(9):
    case 0:
      x *= 10.0 ** rng.uniform(-44, 38)
    case 1:
      x *= 10.0 ** rng.uniform(-30, 30, (N, 1))
    case 2:
      x *= 10.0 ** rng.uniform(-30, 30, D)
    case 3:
      x = np.where(rng.random((N, D)) < 0.5, 0.0, x)
    case 4:
      x = x[rng.integers(0, 3, N)]
    case 5:
      x += 10.0 ** rng.uniform(0, 9)
    case 6:
      x = np.sign(x) * LARGEST
    case 7:
      x[rng.integers(N)] *= 10.0 ** rng.uniform(5, 38)
    case _:
      x = np.full((N, D), 10.0 ** rng.uniform(-40, 38))
  x = np.clip(x, -LARGEST, LARGEST).astype(np.float32)
  where = rng.random(N) < rng.choice([0.0, 0.1, 0.5, 1.0], p=[0.05, 0.15, 0.4, 0.4])
  bad = rng.choice([np.nan, np.inf, -np.inf, 0.0, LARGEST], (N, D))
  masked = np.where(where[:, None], x, bad).astype(np.float32)
  return masked, where


def _truth(fn, rows, where):
  """In float64; and by how much the rounding of the input alone moves it."""
  # XLA takes numbers next to zero, which have no full precision, for zero.
  rows = np.where(np.abs(rows) < TINY, 0, rows).astype(np.float64)
  moves = []
  with float64():
    wide = jax.jit(jax.vmap(fn))
    truth = np.asarray(wide(rows, where), np.float64)
    for seed in range(3):
      sign = np.random.default_rng(seed).choice([-1, 1], rows.shape)
      moved = np.asarray(wide(rows * (1 + 2.0**-23 * sign), where), np.float64)
      with np.errstate(invalid="ignore"):
        moves.append(np.where(moved == truth, 0, np.abs(moved - truth)))
  return truth, np.nan_to_num(np.max(moves, axis=0), nan=np.inf)


def _incomparable(name, rows):
  """Whether float32 and float64 differ there by their conventions (see above)."""
  rows = np.where(np.abs(rows) < TINY, 0, rows.astype(np.float64))
  if len(rows) < 2:
    return False
  if name in SPAN:
    apart = np.max(np.abs(rows[:, None] - rows[None]), axis=-1)
    if apart.max() > 1e15 * apart[apart > 0].min(initial=np.inf):
      return True
  if name in CUT:
    # Of rows near to each other and far from the centre distances are rounding.
    center = np.asarray(robust_center(jnp.asarray(rows, jnp.float32), None))
    x = np.clip(rows - center, -1e100, 1e100)
    size = np.sum(x**2, axis=1)
    apart = np.sum((x[:, None] - x[None]) ** 2, axis=-1)
    lost = apart < 1e-5 * (size[:, None] + size[None])
    if (lost & (size > 1e5)[:, None] & ~np.eye(len(x), dtype=bool)).any():
      return True
  if name in BY_RULE:
    same = (rows == rows[:1]).all(axis=0)
    return same.any() if name == "marginal_kde" else same.all()
  if name == "mmd":
    x = rows - rows[np.argsort(np.abs(rows).max(axis=1))[(len(rows) - 1) // 2]]
    x = np.clip(x, -1e100, 1e100)
    apart = np.sum((x[:, None] - x[None]) ** 2, axis=-1)
    size = np.sum(x**2, axis=1)
    lost = apart < 1e-4 * (size[:, None] + size[None])
    return (lost & (apart > 0)).any()
  if name in ON_SPHERE:
    for x in (rows, rows[:, :3]):
      u = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), TINY)
      apart = np.linalg.norm(u[:, None] - u[None], axis=-1)
      if ON_SPHERE[name](apart[np.triu_indices(len(u), 1)]) < 1e-2:
        return True
  return False


def _wrong(name, found, truth, moves, rows):
  """What is wrong with one answer, or None."""
  if np.isnan(found).any():
    return "nan"
  if _incomparable(name, rows):
    return None if (found < np.inf).all() else "infinite"
  if name == "supervised_contrastive":  # differences of similarities, over 0.07
    similarity = float(np.abs(rows).max(initial=0)) ** 2 * D / 0.07
    moves = moves + (1e-6 * similarity if similarity < LARGEST / 100 else np.inf)
  # A hundredth of the largest: sums over rows on the way to a mean may overflow.
  vast = np.abs(truth) + moves > LARGEST / 100
  lost = np.abs(truth) > 1e30 if name in CUT else vast
  scale = np.abs(truth[~vast]).max(initial=1)
  with np.errstate(invalid="ignore", over="ignore"):
    near = np.abs(found - truth) <= 2e-3 * scale + 10 * moves
  far = (np.sign(found) == np.sign(truth)) & (np.abs(found) > 1e28)
  right = np.where(np.isinf(truth), found == truth, near | (vast | lost) & far)
  right |= vast & (moves > 0.1 * np.abs(truth))  # not even the sign is known
  return None if right.all() else "value"


def test_every_public_function_is_attacked():
  called = {name.split(".")[-1] for name in FUNCTIONS} | {
    "kde_entropy", "sphere_entropy", "mixture_entropy_bounds", "gaussian_entropy",
    "knn_entropy", "renyi_entropy", "marginal_entropy", "mer_loss", "logdet_entropy",
    "von_neumann_entropy", "modality_mix_loss",
  }  # fmt: skip
  assert set(mer_dg.__all__) - called == WITHOUT_NUMBERS


@pytest.mark.slow
def test_hostile_arrays(capsys):
  seed = int(os.environ.get("MER_DG_SEED", secrets.randbits(32)))
  with capsys.disabled():
    print(f"\nMER_DG_SEED={seed}")
  rng = np.random.default_rng(seed)
  each = -(-TOTAL // len(FUNCTIONS))
  wrong = []
  for name, fn in FUNCTIONS.items():
    drawn = [_hostile(rng) for _ in range(each)]
    rows, where = (np.stack(a) for a in zip(*drawn, strict=True))
    if name in ROWLESS:
      rows = np.where(where[..., None], rows, 0).astype(np.float32)
    truth, moves = _truth(fn, rows, where)
    compiled, mapped = jax.jit(fn), np.asarray(jax.jit(jax.vmap(fn))(rows, where))
    for i in range(each):
      found = {
        "eager": np.asarray(fn(jnp.asarray(rows[i]), jnp.asarray(where[i]))),
        "jit": np.asarray(compiled(rows[i], where[i])),
        "vmap": mapped[i],
      }
      valid = rows[i] if name in ROWLESS else rows[i][where[i]]
      for how, value in found.items():
        what = _wrong(name, value.astype(np.float64), truth[i], moves[i], valid)
        if what:
          wrong.append((name, how, what))
          print(name, i, how, what, "truth", truth[i][:8], "found", value[:8])
          print("moves", moves[i][:8], "rows", valid, sep="\n")
  assert not wrong, sorted(set(wrong))
