import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.contracts import InputSpec
from mer_dg.networks import count_parameters, describe, heads, make_network
from mer_dg.networks.preparation import prepare_input

KEY = jax.random.key(0)
ROWS = 5
SPECS = {
  "seq": InputSpec("sequence", (9, 3), masked=True),
  "image": InputSpec("image", (6, 6, 1)),
  "vector": InputSpec("vector", (4,)),
}
SMALL = {
  "num_classes": 3,
  "embedding_dim": 6,
  "hidden_dim": 16,
  "classifier_dim": 8,
  "projector_dim": 7,
  "projection_dim": 5,
}


@pytest.fixture(scope="module")
def network():
  return make_network(SPECS, **SMALL)


@pytest.fixture(scope="module")
def variables(network):
  return jax.jit(network.init)(KEY)


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  inputs = {
    m: rng.normal(size=(ROWS, *s.shape)).astype(np.float32) for m, s in SPECS.items()
  }
  steps = np.arange(9)[None, :]
  inputs["seq"][..., -1] = steps < np.array([9, 4, 1, 9, 6])[:, None]
  present = {m: np.ones(ROWS, bool) for m in SPECS}
  present["image"][2] = False
  return inputs, present


@pytest.fixture(scope="module")
def evaluate(network):
  """The jitted forward pass, one compilation for the whole file."""
  return jax.jit(lambda v, x, p: network.apply(v, x, p, train=False)[0])


def assert_close(actual, expected, **kwargs):
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, **kwargs), actual, expected
  )


def test_variables_have_the_promised_layout(network, variables, batch, evaluate):
  assert network.modalities == ("seq", "image", "vector")
  assert set(variables) == {"params", "scaling"}
  parts = {f"{p}_{m}" for p in ("encoder", "projector", "head") for m in SPECS}
  assert set(variables["params"]) == parts | {"fusion"}
  for m, channels in {"seq": 2, "image": 1, "vector": 4}.items():
    np.testing.assert_array_equal(variables["scaling"][m]["center"], np.zeros(channels))
    np.testing.assert_array_equal(
      variables["scaling"][m]["inv_scale"], np.ones(channels)
    )
  outputs = evaluate(variables, *batch)
  assert outputs.logits.shape == (ROWS, 3)
  for m in SPECS:
    assert outputs.embeddings[m].shape == (ROWS, 6)
    assert outputs.projections[m].shape == (ROWS, 5)
    assert outputs.unimodal_logits[m].shape == (ROWS, 3)
    assert network.widths[m] == 6
  assert outputs.fused.shape == (ROWS, network.fused_width) == (ROWS, 18)
  expected = network.heads(variables, outputs.embeddings)
  assert_close(outputs.unimodal_logits["seq"], expected["seq"], atol=1e-6)


def test_a_batch_given_at_the_start_is_held_against_the_specs(
  network, variables, batch
):
  inputs, present = batch
  again = network.init(jax.random.key(0), {"inputs": inputs, "present": present})
  assert_close(again, variables, rtol=1e-6, atol=1e-7)  # Two programs round.
  m = next(iter(SPECS))
  wrong = {**inputs, m: inputs[m][..., :-1]}
  with pytest.raises(ValueError, match=rf"inputs\['{m}'\] has shape .*, expected"):
    network.init(jax.random.key(0), {"inputs": wrong})


def test_the_order_of_dicts_does_not_matter(variables, batch, evaluate):
  inputs, present = batch
  turned = [dict(reversed(list(d.items()))) for d in (inputs, present)]
  assert_close(evaluate(variables, *turned), evaluate(variables, *batch), rtol=0)


def test_other_modalities_are_ignored_and_missing_ones_named(network, variables, batch):
  inputs, present = batch
  more = {**inputs, "other": None}  # No array: to look at it would be an error.
  jax.eval_shape(lambda v: network.apply(v, more, present, train=False), variables)
  less = {m: x for m, x in inputs.items() if m != "image"}
  with pytest.raises(ValueError, match=r"inputs lacks the modalities \['image'\]"):
    network.apply(variables, less, present, train=False)


def test_rows_do_not_know_each_other(variables, batch, evaluate):
  # Padding a batch to more rows, with any content, is therefore exact.
  padded = jax.tree.map(
    lambda x: np.concatenate([x[:3], np.full_like(x[3:], 9)]), batch
  )
  actual, expected = (evaluate(variables, *b) for b in (padded, batch))
  first = lambda tree: jax.tree.map(lambda x: x[:3], tree)
  assert_close(first(actual), first(expected), rtol=0)


def test_vmap_over_runs_equals_a_loop(network, variables, batch):
  keys = jnp.stack([jax.random.key(5), KEY])
  stacked = jax.jit(jax.vmap(network.init))(keys)

  def run(variables, key):
    return network.apply(variables, *batch, train=True, key=key)[0]

  actual = jax.jit(jax.vmap(run))(stacked, keys)
  assert_close(jax.tree.map(lambda x: x[1], stacked), variables, rtol=0)
  single = jax.jit(run)
  for i in (0, 1):
    expected = single(jax.tree.map(lambda x, i=i: x[i], stacked), keys[i])
    assert_close(jax.tree.map(lambda x, i=i: x[i], actual), expected, atol=1e-5)


def test_heavy_tails_become_logarithms_in_vectors_and_sequences_alone():
  x = np.array([[-1e6, 0.01], [3.0, 1e30]], np.float32)
  scaling = {"center": jnp.zeros(2), "inv_scale": jnp.ones(2)}
  present = jnp.ones(2, bool)
  given = dict(scaling=scaling, present=present, clip=1e9, transform="asinh")
  found, _ = prepare_input(InputSpec("vector", (2,)), x, **given)
  assert_close(found, np.arcsinh(x.astype(np.float64)), rtol=1e-6)
  assert_close(found[0, 0], -np.log(2e6), rtol=1e-6)
  series, _ = prepare_input(InputSpec("sequence", (1, 2)), x[:, None], **given)
  assert_close(series[:, 0], found, rtol=0)
  pixels = np.zeros((2, 4, 4, 2), np.float32) + 5
  same, _ = prepare_input(InputSpec("image", (4, 4, 2)), pixels, **given)
  assert_close(same, pixels, rtol=0)


def test_no_input_leaves_the_range_of_training():
  specs = {"m": InputSpec("vector", (2,)), "p": InputSpec("image", (4, 4, 1))}
  network = make_network(specs, **SMALL, input_transform="range")
  variables = jax.jit(network.init)(KEY)
  assert set(variables["scaling"]["m"]) == {"center", "inv_scale", "low", "high"}
  assert set(variables["scaling"]["p"]) == {"center", "inv_scale"}
  ranged = dict(variables["scaling"]["m"], low=jnp.zeros(2), high=jnp.ones(2))
  variables = variables | {"scaling": variables["scaling"] | {"m": ranged}}

  @jax.jit
  def z(x):
    given = {"m": x, "p": jnp.zeros((3, 4, 4, 1))}
    present = {m: np.ones(3, bool) for m in specs}
    return network.apply(variables, given, present, train=False)[0].embeddings["m"]

  found = z(jnp.array([[0.5, 7.0], [0.5, 1.0], [0.5, 0.9]]))
  assert_close(found[0], found[1], rtol=0)
  assert np.abs(found[1] - found[2]).max() > 1e-4


def test_scaling_is_applied_clipped_and_not_trained():
  network = make_network({"m": InputSpec("vector", (2,))}, **SMALL, input_clip=2.0)
  variables = jax.jit(network.init)(KEY)
  present = {"m": np.ones(1, bool)}

  @jax.jit
  def z(variables, x):
    outputs, _ = network.apply(variables, {"m": x[None]}, present, train=False)
    return outputs.embeddings["m"]

  scaled = dict(variables)
  scaled["scaling"] = {
    "m": {"center": jnp.array([1.0, 10.0]), "inv_scale": jnp.array([0.5, 10.0])}
  }
  # (2.006 - 1) / 2 = 0.503 and 10 (11 - 10) = 10, clipped to 2.
  assert_close(
    z(scaled, jnp.array([2.0, 11.0])), z(variables, jnp.array([0.5, 2.0])), atol=1e-6
  )
  grads = jax.grad(lambda v: z(v, jnp.array([2.0, 9.9])).sum())(scaled)
  assert all(np.all(g == 0) for g in jax.tree.leaves(grads["scaling"]))
  assert all(np.any(g != 0) for g in jax.tree.leaves(grads["params"]["encoder_m"]))


def test_the_validity_channel_is_neither_scaled_nor_a_feature(
  network, variables, batch, evaluate
):
  inputs, present = batch
  other = {**inputs, "seq": inputs["seq"].copy()}
  other["seq"][..., -1] *= 0.9  # Still valid.
  padding = other["seq"][..., -1] == 0
  other["seq"][..., :-1][padding] = 7.0
  assert_close(evaluate(variables, other, present), evaluate(variables, *batch), rtol=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.int32])
def test_inputs_of_other_dtypes_are_cast_before_anything(
  variables, batch, evaluate, dtype
):
  inputs, present = batch
  whole = {m: np.abs(np.round(x)) for m, x in inputs.items()}  # Exact in every dtype.
  cast = {m: x.astype(dtype) for m, x in whole.items()}
  assert_close(
    evaluate(variables, cast, present), evaluate(variables, whole, present), rtol=0
  )


def test_bfloat16_computes_close_to_float32_and_returns_float32(
  variables, batch, evaluate
):
  network = make_network(SPECS, **SMALL, compute_dtype="bfloat16")
  outputs, _ = jax.jit(lambda v: network.apply(v, *batch, train=False))(variables)
  expected = evaluate(variables, *batch)
  assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {np.dtype("float32")}
  # Eight bits of mantissa through some ten layers.
  assert_close(outputs, expected, atol=0.1)
  assert np.any(outputs.logits != expected.logits)


def test_dropout_acts_in_training_only_and_needs_a_key(batch, variables):
  network = make_network(SPECS, **SMALL, embedding_dropout=0.2)
  assert dict(network.rates) == {"dropout": 0.5, "embedding_dropout": 0.2}

  @jax.jit
  def train(key):
    return network.apply(variables, *batch, train=True, key=key)[0]

  one, same, other = train(KEY), train(KEY), train(jax.random.key(9))
  assert_close(one, same, rtol=0)
  assert np.all(one.logits != other.logits)
  # Dropout belongs to the fusion: what entropy and unimodal terms see is untouched.
  assert_close(one[:3], other[:3], rtol=0)
  for needs in (
    {"dropout": 0.5},
    {"embedding_dropout": 0.1},
  ):
    rates = {"dropout": 0.0, **needs}
    with pytest.raises(ValueError, match="key=None"):
      make_network(SPECS, **SMALL, **rates).apply(variables, *batch, train=True)
  quiet = make_network(SPECS, **SMALL, dropout=0.0)  # Needs none.
  jax.eval_shape(lambda v: quiet.apply(v, *batch, train=True), variables)


def test_a_rate_of_dropout_may_be_an_array(batch, variables, evaluate):
  network = make_network(SPECS, **SMALL, embedding_dropout=0.2)

  @jax.jit
  def train(rates, key=KEY):
    outputs, _ = network.apply(variables, *batch, train=True, key=key, rates=rates)
    z, present = outputs.embeddings, batch[1]
    fused = network.fuse(variables, z, present, train=True, key=key, rates=rates)
    return outputs.logits, fused

  rates = lambda *values: dict(
    zip(network.rates, map(jnp.float32, values), strict=True)
  )
  own, _ = jax.jit(lambda: network.apply(variables, *batch, train=True, key=KEY))()
  logits, fused = train(rates(0.5, 0.2))
  assert_close([logits, fused], [own.logits, own.logits], rtol=0)
  # None dropped is what is evaluated; vmapped runs may differ.
  plain, _ = train(rates(0.0, 0.0))
  assert_close(plain, evaluate(variables, *batch).logits, atol=1e-6)
  both = jax.tree.map(lambda *a: jnp.stack(a), rates(0.5, 0.2), rates(0.0, 0.0))
  assert_close(jax.vmap(train)(both)[0], jnp.stack([logits, plain]), atol=1e-6)


def test_dropout_scales_up_what_it_keeps():
  drop = lambda rate: heads.Dropout().apply(
    {}, jnp.ones((200, 200)), jnp.float32(rate), rngs={"dropout": KEY}
  )
  z = np.asarray(drop(0.75))
  assert set(np.unique(z)) == {0.0, 4.0}
  # Standard error of a share of 40,000: 0.0022.
  np.testing.assert_allclose(np.mean(z == 0), 0.75, atol=0.01)
  np.testing.assert_array_equal(drop(0.0), 1.0)


def test_a_further_modality_leaves_the_initial_values_of_others_alone(variables):
  fewer = {m: s for m, s in SPECS.items() if m != "image"}
  params = jax.jit(make_network(fewer, **SMALL).init)(KEY)["params"]
  del params["fusion"]
  assert_close(params, {k: variables["params"][k] for k in params}, rtol=0)


def test_any_name_will_do():
  names = ("", "fusion", "a/b", "Ton für Ton", "params")
  network = make_network({m: InputSpec("vector", (2,)) for m in names}, **SMALL)
  inputs = {m: np.ones((1, 2), np.float32) for m in names}
  present = {m: np.ones(1, bool) for m in names}

  def run(key):
    return network.apply(network.init(key), inputs, present, train=False)[0]

  outputs = jax.eval_shape(run, KEY)
  assert set(outputs.embeddings) == set(names)


def test_describe_counts_parameters(network, variables):
  counts = count_parameters(variables)
  # Linear 6 -> 3 with bias, by hand.
  assert counts["head_seq"] == 6 * 3 + 3
  # Concat of three embeddings, hidden 8, 3 classes.
  assert counts["fusion"] == (18 * 8 + 8) + (8 * 3 + 3)
  # 6 -> 7 -> 7 -> 5 with two LayerNorms.
  assert counts["projector_seq"] == (6 * 7 + 7) + (7 * 7 + 7) + (7 * 5 + 5) + 4 * 7
  table = describe(jax.eval_shape(network.init, KEY)).splitlines()
  assert len(table) == len(counts) + 1
  assert table[-1].split() == ["total", f"{sum(counts.values()):,}"]


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"specs": {}}, "at least one modality"),
    ({"num_classes": 1}, "num_classes=1 must be >= 2"),
    ({"fusion": "mean"}, r"fusion='mean' is not one of \('concat'"),
    ({"encoder": "vit"}, r"encoder='vit' is not one of \('auto'"),
    ({"encoder": {"seq": "mlp"}}, r"encoder names the modalities \('seq',\)"),
    ({"embedding_dim": 0}, r"embedding_dim\['seq'\]=0 must be >= 1"),
    ({"projector_dim": 0}, "projector_dim=0 must be >= 1"),
    ({"embedding_dropout": 1.0}, r"embedding_dropout=1.0 must lie in \[0, 1\)"),
    ({"compute_dtype": "float64"}, "compute_dtype='float64' is not one of"),
    ({"input_clip": 0.0}, "input_clip=0.0 must be > 0"),
    ({"input_transform": "log"}, "input_transform='log' is not one of"),
  ],
)
def test_bad_arguments_are_named(change, match):
  with pytest.raises(ValueError, match=match):
    make_network(**{"specs": SPECS, **SMALL, **change})


@pytest.mark.parametrize(
  ("args", "match"),
  [
    (("text", (3,)), r"kind='text' is not one of \('vector'"),
    (("vector", ()), r"shape=\(\) of a vector must have 1 axes"),
    (("image", (8, 8)), "must have 3 axes"),
    (("sequence", (0, 3)), "size >= 1"),
    (("image", (8, 8, 1), True), "masked=True needs kind='sequence'"),
    (("sequence", (8, 1), True), "beside its validity channel"),
  ],
)
def test_bad_specs_are_named(args, match):
  with pytest.raises(ValueError, match=match):
    InputSpec(*args)


def test_an_input_of_another_shape_is_refused(network, variables, batch):
  inputs, present = batch
  with pytest.raises(
    ValueError, match=r"\(5, 6, 6\) does not fit \[B, \*\(6, 6, 1\)\]"
  ):
    network.apply(
      variables, {**inputs, "image": inputs["image"][..., 0]}, present, train=False
    )
