"""The Python door: fit, predict, save, load, export, compare, without a folder."""

import json

import jax
import numpy as np
import pandas as pd
import pytest

import mer_dg
from mer_dg.data import DataError
from mer_dg.experiments import ConfigError, door
from mer_dg.experiments.model import FORMAT, ModelError

SHORT = {
  "total_steps": 30, "eval_every": 15, "log_every": 15, "network.hidden_dim": 16,
  "network.embedding_dim": 8, "network.classifier_dim": 16, "optimizer.lr": 1e-2,
  "network.projector_dim": 8, "network.projection_dim": 8,
  "search.encoders": (),  # Chosen by sources in `test_all_domains_can_train` alone.
}  # fmt: skip
ROWS = 180


def _rows(seed, labels):
  """A vector, a padded sequence and an image that all tell the class."""
  rng = np.random.default_rng(seed)
  mean = np.random.default_rng(7).normal(size=(3, 5))[labels]
  vector = mean + rng.normal(size=mean.shape)
  sequence = mean[:, None, :2] + rng.normal(size=(len(labels), 12, 2))
  image = np.clip(120 + 40 * mean[:, :1, None] + 9 * rng.normal(size=(1, 6, 6)), 0, 255)
  return {
    "vector": vector,
    "sequence": sequence.astype(np.float16),
    "image": image.astype(np.uint8),
  }


LABELS = np.random.default_rng(0).integers(0, 3, ROWS)
LENGTHS = np.random.default_rng(1).integers(6, 13, ROWS)


@pytest.fixture(scope="module")
def data():
  return mer_dg.Dataset.from_arrays(
    _rows(0, LABELS),
    label=np.array(["run", "sit", "walk"])[LABELS],
    domain=np.array(["lab", "home", "street"], object)[np.arange(ROWS) % 3],  # pandas'
    sequence_len=LENGTHS,
    name="toy",
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("door") / "run"


@pytest.fixture(scope="module")
def model(data, folder):
  return mer_dg.fit(
    data, "heads+md", held_out="home", config=SHORT, workdir=folder, progress=False
  )


def test_the_records_are_those_of_the_shell(data, model, folder):
  assert model.about["held_out"] == "home"
  assert model.about["sources"] == ["lab", "street"]
  lines = (folder / "results.jsonl").read_text().splitlines()
  (own,) = (r for r in map(json.loads, lines) if r["step"] == model.about["step"])
  found = model.evaluate(data, domain="home")
  for name, value in found.items():
    assert value == pytest.approx(own["metrics"][f"target/{name}"], abs=1e-5)
  assert found["accuracy"] > 0.6


def test_predictions_do_not_depend_on_company(data, model):
  inputs = _rows(3, np.arange(300) % 3)
  lengths = {"sequence": np.resize(LENGTHS, 300)}
  whole = model.predict_proba(inputs, lengths=lengths)
  assert whole.shape == (300, 3)
  np.testing.assert_allclose(whole.sum(axis=1), 1, rtol=1e-6)
  one = {m: a[290:291] for m, a in inputs.items()}
  alone = model.predict_proba(one, lengths={"sequence": lengths["sequence"][290:291]})
  np.testing.assert_allclose(alone[0], whole[290], rtol=1e-5)
  assert set(model.predict(inputs, lengths=lengths)) <= {"run", "sit", "walk"}
  z = model.embed(inputs, lengths=lengths)
  assert {m: a.shape for m, a in z.items()} == dict.fromkeys(data.modalities, (300, 8))


def test_missing_is_missing_however_it_is_said(model):
  inputs = _rows(4, np.arange(20) % 3)
  left_out = {"vector": inputs["vector"]}
  none = np.zeros(20, bool)
  broken = {**inputs, "sequence": np.full_like(inputs["sequence"], np.nan)}
  said = model.predict_proba(broken, present={"sequence": none, "image": none})
  np.testing.assert_array_equal(model.predict_proba(left_out), said)
  assert model.predict_proba({"vector": np.zeros((0, 5))}).shape == (0, 3)


def test_a_waveform_goes_in_as_it_was_trained_on(data):
  rng = np.random.default_rng(2)
  tone = np.sin(np.arange(256) * (0.3 + 0.5 * LABELS[:, None]))
  wave = tone + 0.1 * rng.normal(size=tone.shape)
  made = mer_dg.Dataset.from_arrays(
    {"sound": wave, "vector": _rows(0, LABELS)["vector"]},
    label=LABELS, domain=np.arange(ROWS) % 2, sound_kind="waveform",
  )  # fmt: skip
  model = mer_dg.fit(made, "erm", config=SHORT, progress=False)
  assert model.evaluate(made)["accuracy"] > 0.9
  inputs = {"sound": wave, "vector": _rows(0, LABELS)["vector"]}
  assert (model.predict(inputs) == LABELS.astype(str)).mean() > 0.9
  with pytest.raises(DataError, match="waveforms of at most 256 samples"):
    model.predict({"sound": np.ones((2, 300))})


def test_shapley_values_add_up(data, model):
  values = model.explain_modalities(data, "home")
  accuracy = model.evaluate(data, "home")["accuracy"]
  assert tuple(values) == data.modalities
  assert sum(values.values()) == pytest.approx(accuracy - 1 / 3, abs=1e-6)


@pytest.mark.parametrize(
  ("inputs", "said"),
  [
    ({}, "no modality is given; the model has vector, sequence, image"),
    ({"sound": np.ones((2, 3))}, "'sound' is no modality"),
    (
      {"vector": np.ones((2, 4))},
      r"'vector' has rows of shape \(4,\), the model takes",
    ),
    ({"vector": np.full((2, 5), np.nan)}, "'vector' holds NaN or infinity in row 0"),
    ({"vector": np.array([["a"] * 5])}, "'vector' must hold numbers"),
    ({"vector": np.ones((2, 5)), "image": np.ones((3, 6, 6), np.uint8)}, "unequal"),
    (np.ones((2, 5)), "inputs must be {modality: array .*got ndarray; the model has"),
    ({"vector": np.ones((2, 5)), "image": None}, "'image' has no rows: NoneType"),
    ({"vector": [[1.0, 2.0], [3.0]]}, "'vector' is no array"),
  ],
)
def test_bad_input_is_named(model, inputs, said):
  with pytest.raises(DataError, match=said):
    model.predict_proba(inputs)


@pytest.mark.parametrize(
  ("how", "said"),
  [
    ({"present": {"vector": [True]}}, r"present: 'vector' must be \[300\], got"),
    ({"lengths": {"vector": 3}}, "lengths: 'vector' has no rows: int"),
    ({"lengths": {"image": [3]}}, r"lengths: 'image' is not in inputs \('vector',\)"),
    # Alike wherever they stand: in a block of their own, or among others.
    (
      {"present": {"vector": np.arange(300) < 256}},
      r"row 256 lacks every modality \(44 rows in all\)",
    ),
    (
      {"present": {"vector": np.arange(300) != 7}},
      r"row 7 lacks every modality \(1 rows in all\)",
    ),
  ],
)
def test_bad_flags_and_lengths_are_named(model, how, said):
  for call in (model.predict, model.embed):
    with pytest.raises(DataError, match=said):
      call({"vector": np.ones((300, 5))}, **how)


def test_saved_and_loaded_says_the_same(model, folder, tmp_path):
  inputs = _rows(5, np.arange(9) % 3)
  expected = model.predict_proba(inputs)
  for place in (model.save(tmp_path / "m"), folder):  # The run left it in its workdir.
    loaded = mer_dg.load_model(place)
    np.testing.assert_array_equal(loaded.predict_proba(inputs), expected)
    assert loaded.about == json.loads(json.dumps(model.about))


def test_exported_needs_jax_alone(model, tmp_path):
  inputs = _rows(6, np.arange(7) % 3)
  expected = model.predict_proba(inputs)
  plain = {m: a.astype(np.float32) for m, a in inputs.items()}
  plain["image"] = plain["image"][..., None]
  valid = np.ones((7, 12, 1), np.float32)
  plain["sequence"] = np.concatenate([plain["sequence"], valid], axis=2)
  path = model.export(tmp_path / "network.stablehlo")
  call = jax.export.deserialize(path.read_bytes()).call
  found = call(plain, {m: np.ones(7, bool) for m in plain})
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def _edit(folder, **changes):
  path = folder / "model.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
  ("damage", "said"),
  [
    (lambda f: (f / "model.json").unlink(), "holds no model: .*model.json"),
    (lambda f: (f / "model.json").write_text("{"), "is damaged"),
    (lambda f: _edit(f, format=FORMAT + 1), "update mer_dg"),
    (lambda f: (f / "weights.safetensors").write_bytes(b"1"), "damaged or edited"),
    (lambda f: _edit(f, network={"fusion": "no"}), "was edited: fusion='no'"),
    (lambda f: _edit(f, class_names=["a", "b"]), "another network's weights"),
  ],
)
def test_a_damaged_model_is_a_sentence(model, tmp_path, damage, said):
  folder = model.save(tmp_path / "m")
  damage(folder)
  with pytest.raises(ModelError, match=said):
    mer_dg.load_model(folder)


def test_all_domains_can_train(data):
  chosen = {**SHORT, "search.encoders": ("auto", "mlp")}
  model = mer_dg.fit(data, "erm", config=chosen, progress=False)
  assert model.about["held_out"] is None
  assert model.about["sources"] == ["home", "lab", "street"]
  assert model.evaluate(data)["accuracy"] > 0.6


def test_a_class_of_one_domain_alone_trains_everywhere():
  label = np.where(np.arange(60) < 20, np.arange(60) % 3, np.arange(60) % 2)
  made = mer_dg.Dataset.from_arrays(
    {"v": np.arange(180.0).reshape(60, 3)}, label=label, domain=np.arange(60) // 20
  )
  config = door._config(made, {"target": "0"})
  (split,) = door._everywhere(config, made).values()
  assert {2} <= {*label[np.concatenate([*split.train.values()])]}


def test_compare_is_a_frame_and_a_report(data, tmp_path, capsys):
  table = mer_dg.compare(
    data, ["erm", "heads"], seeds=2, held_out=["lab", "home"], config=SHORT,
    progress=False,
  )  # fmt: skip
  assert capsys.readouterr().out == ""
  assert list(table.index) == ["erm", "heads"]
  assert {"mean", "low", "high", "difference", "p", "lab", "home"} <= set(table)
  mean = table.loc["erm", ["lab", "home"]].mean()
  assert table.loc["erm", "mean"] == pytest.approx(mean)
  assert type(table[["mean"]]) is pd.DataFrame
  page = table.report(tmp_path)
  assert "toy" in page.read_text()


@pytest.mark.parametrize(
  ("call", "error", "said"),
  [
    (lambda d: mer_dg.fit(d, "no"), ConfigError, "method 'no' is not one of"),
    (lambda d: mer_dg.fit(d, held_out="moon"), DataError, "'moon' is not one of"),
    (lambda d: mer_dg.fit(d, config={"optimizer.x": 1}), ConfigError, "is not a field"),
    (lambda d: mer_dg.fit(d, config={"seed.x": 1}), ConfigError, "is not a field"),
    (lambda d: mer_dg.compare(d, ["no"]), ConfigError, "method 'no' is not one of"),
    (lambda d: mer_dg.compare(d, "no"), ConfigError, "method 'no' is not one of"),
    (lambda d: mer_dg.compare(d, held_out="moon"), DataError, "'moon' is not one of"),
    (lambda d: mer_dg.compare(d, seeds=1.5), ConfigError, r"config.seeds=1.5 must be"),
    (lambda d: mer_dg.fit("set.npz"), DataError, "must be a Dataset, got str"),
    (lambda d: mer_dg.compare({"a": 1}), DataError, "must be a Dataset, got dict"),
    (
      lambda d: mer_dg.Dataset.from_arrays(np.ones((3, 2)), label=[0, 1], domain=[0]),
      DataError,
      "inputs must be {modality: array .* got ndarray",
    ),
  ],
)
def test_bad_calls_fail_before_anything_trains(data, call, error, said):
  with pytest.raises(error, match=said):
    call(data)


@pytest.mark.parametrize("short", ["label", "domain"])
def test_one_class_or_one_domain(short):
  columns = {"label": np.arange(40) % 2, "domain": np.arange(40) % 2}
  columns[short] = np.zeros(40, int)
  inputs = {"a": np.arange(120.0).reshape(40, 3)}
  with pytest.raises((DataError, ConfigError), match=r"class|domain"):
    mer_dg.compare(mer_dg.Dataset.from_arrays(inputs, **columns), ["erm"])
