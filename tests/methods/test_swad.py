"""SWAD against its description, segment by segment, in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.methods import swad
from mer_dg.methods.term import Context

TOLERANCE = 0.3


def expected(segments, losses):
  """Mean over the valley; the last segment where training has not converged."""
  n = len(losses)
  ends = [t for t in range(2, n) if losses[t - 2] == min(losses[t - 2 : t + 1])]
  if not ends:
    return segments[-1]
  at = ends[0] - 2
  threshold = (1 + TOLERANCE) * np.mean(losses[at : at + 3])
  first = at
  while first > max(at - 3, 0) and losses[first - 1] <= threshold:
    first -= 1
  last = at
  while last + 1 < n and min(losses[last + 1 : last + 7]) <= threshold:
    last += 1
  return np.mean(segments[first : last + 1])


@jax.jit
def evaluate(valley, segment, loss):
  """A segment of two steps around its mean, and its evaluation."""
  ctx = Context({}, {}, valley, {"tolerance": TOLERANCE}, 0, None, None)
  for step in (segment - 1, segment + 1):
    valley = swad.TERM.update(valley, {}, step, ctx)
  return swad.TERM.on_eval(valley, {"val/nll": loss})


@pytest.mark.parametrize("seed", range(8))
def test_the_mean_is_that_of_the_valley(seed):
  rng = np.random.default_rng(seed)
  falling = np.linspace(2.0, 1.0, 5)
  # Falls, stays for a while, and rises out of the valley or not.
  rising = np.linspace(1.0, rng.choice([1.0, 3.0]), 9)
  losses = np.concatenate([falling, rng.uniform(0.9, 1.4, rng.integers(1, 6)), rising])
  losses = np.float32(losses + 0.1 * rng.normal(size=len(losses)))
  segments = np.float32(rng.normal(size=len(losses)))
  start = jnp.float32(7.0)
  _, valley = swad.TERM.init(None, None, start)
  assert swad.TERM.eval_params(start, valley) == start
  for n, (segment, loss) in enumerate(zip(segments, losses, strict=True), start=1):
    valley = evaluate(valley, jnp.float32(segment), jnp.float32(loss))
    found = swad.TERM.eval_params(jnp.float32(0.0), valley)
    np.testing.assert_allclose(found, expected(segments[:n], losses[:n]), rtol=2e-5)
