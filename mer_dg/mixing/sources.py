"""Which sample gives which modality: random fixed-shape permutations of rows."""

import jax
import jax.numpy as jnp


def draw_sources(
  key: jax.Array,
  member: jax.Array,
  ranks: jax.Array,
  *,
  group: jax.Array | None = None,
  other_group: bool = False,
) -> tuple[jax.Array, jax.Array]:
  r"""Draws one permutation of the member rows per modality (reconstruction).

  Members are brought into a random order, the same for all modalities, and
  modality ``m`` takes its rows from :math:`s_m` places further on, cyclically:

  .. math:: \sigma_m(\mathrm{row}_p) = \mathrm{row}_{(p + s_m) \bmod n}

  Rank 0 stays (:math:`s_m = 0`); ranks 1, 2, … get distinct shifts in
  :math:`\{1, \dots, n-1\}` as long as there are enough, and reuse them after that.
  With ``group`` the shift runs inside each group; with ``other_group`` it is long
  enough to leave the group, for as many rows as any permutation could achieve
  (all of them if no group holds more than half of the members).

  Draws belong to rows, not to the batch size: members at the front of a longer
  batch whose rest is not a member get the sources they get in the shorter one.

  Args:
    key: PRNG key.
    member: Rows that may be a source, bool ``[B]``, or ``[M, B]`` if it differs
      between modalities. Other rows map to themselves.
    ranks: int ``[M]``, 0 for a modality that stays.
    group: int ``[B]``, any values.
    other_group: Take the sources from other groups instead of the same one.

  Returns:
    ``source`` int32 ``[M, B]``, each row of it a permutation of ``0..B-1``, and
    ``pool`` int32 ``[M, B]``, how many members the row was permuted among.
  """
  b = member.shape[-1]
  key_order, key_shift = jax.random.split(key)
  order_key = jax.random.uniform(key_order, (b,))
  # 31 random bits; taken modulo a pool size <= B the bias is below B / 2^31.
  random_shift = jax.random.randint(
    key_shift, (b,), 0, jnp.iinfo(jnp.int32).max, dtype=jnp.int32
  )
  if group is None:
    group = jnp.zeros((b,), jnp.int32)
  index = jnp.arange(b, dtype=jnp.int32)

  def one(member, rank):
    order = jnp.lexsort((order_key, group, ~member)).astype(jnp.int32)  # members first
    start, size = _blocks(member[order], group[order], index)
    n = jnp.sum(member, dtype=jnp.int32)
    if other_group:
      place = _leave_block(index, start, size, n, rank, random_shift)
    else:
      place = _within_block(index, start, size, rank, random_shift)
    place = jnp.where((index < n) & (rank > 0), place, index)
    source = jnp.zeros_like(index).at[order].set(order[place], unique_indices=True)
    pool = jnp.where(index < n, n if other_group else size, 0)
    pool = jnp.zeros_like(index).at[order].set(pool, unique_indices=True)
    return source, pool

  # An unbatched `member` is sorted once for all modalities.
  return jax.vmap(one, in_axes=(0 if member.ndim == 2 else None, 0))(member, ranks)


def _blocks(member, group, index):
  """Start and length of the run of equal ``(member, group)`` around each place."""
  b = index.shape[0]
  changes = (member[1:] != member[:-1]) | (group[1:] != group[:-1])
  first = jnp.concatenate([jnp.ones((1,), bool), changes])[:b]
  last = jnp.concatenate([changes, jnp.ones((1,), bool)])[-b:] if b else first
  start = jax.lax.cummax(jnp.where(first, index, 0))
  end = jax.lax.cummin(jnp.where(last, index + 1, b), reverse=True)
  return start, end - start


def _within_block(index, start, size, rank, random_shift):
  steps = jnp.maximum(size - 1, 1)  # number of shifts that move something
  shift = 1 + (random_shift[start] % steps + rank - 1) % steps
  return start + (index - start + shift) % size


def _leave_block(index, start, size, n, rank, random_shift):
  # Members are sorted by group, so a shift leaves every group iff it is at least
  # the largest group and at most n minus it. If that range is empty, the reversed
  # range is the best possible: all rows outside the largest group leave it, and as
  # many rows of the largest group go out as there are places outside.
  largest = jnp.max(jnp.where(index < n, size, 0), initial=0)
  low = jnp.minimum(largest, n - largest)
  span = jnp.abs(n - 2 * largest) + 1
  # Rows that must do without are the same for all modalities: one shift then.
  choices = jnp.where(2 * largest <= n, span, 1)
  step = rank - 1
  shift = low + (random_shift[:1] % span + step % choices) % span
  place = (index + shift) % jnp.maximum(n, 1)
  # Out of different shifts (two equal groups allow only one): turn the source
  # group within itself, which keeps the group and changes the sample.
  turn = step // choices
  return start[place] + (place - start[place] + turn) % size[place]
