"""From published files to results: a tiny HAC with real mp4, JPEG and wav files.

Prepare, audit, convert checkpoints, train, interrupt, resume, evaluate, extract
features, run configs/features.py on them. The networks are the published ones with one
block per stage and 8 channels.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
for name in ("av", "PIL", "safetensors", "tensorflow_datasets", "array_record"):
  pytest.importorskip(name)

from configs import features, hac  # noqa: E402
from data_prep import audit, convert_checkpoint, extract_features, video  # noqa: E402
from mer_dg.data.dataset import DataError  # noqa: E402
from mer_dg.data.npz import load_npz  # noqa: E402
from mer_dg.data.video.dataset import load_video  # noqa: E402
from mer_dg.data.video.reader import device_inputs  # noqa: E402
from mer_dg.experiments import (  # noqa: E402
  ConfigError,
  WorkdirError,
  check,
  make_setup,
  run,
  single,
  validate,
)
from mer_dg.experiments.runs import run_id  # noqa: E402
from mer_dg.experiments.video_config import KINDS  # noqa: E402
from mer_dg.experiments.workdir import MetricsLog, Workdir, read_lines  # noqa: E402
from mer_dg.networks import load_weights, make_backbone  # noqa: E402
from mer_dg.networks.published import encode, save_weights  # noqa: E402
from mer_dg.protocol import select  # noqa: E402
from tests.data_prep import _trees  # noqa: E402
from tests.networks.published import _torch_reference  # noqa: E402

SMALL = {"depths": (1, 1, 1, 1), "width": 8}
# Frames of the clips of each domain; the third one of "human" repeats a training clip.
CLIPS = {"train": {"a.mp4": 70, "b.mp4": 12}, "test": {"c.mp4": 16}}
DOMAINS = ("human", "animal", "cartoon")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
  root = tmp_path_factory.mktemp("HAC")
  for d, domain in enumerate(DOMAINS):
    for split, clips in CLIPS.items():
      names = [*clips, "a.mp4"] if (domain, split) == ("human", "test") else [*clips]
      rows = [(n, {"a.mp4": 0, "b.mp4": 1, "c.mp4": 1}[n]) for n in names]
      _trees.write_hac_list(root, split, domain, rows)
      for i, (clip, count) in enumerate(clips.items()):
        stem = clip.removesuffix(".mp4")
        _trees.write_hac_clip(root / domain, stem, count, seed=10 * d + i)
  return root


@pytest.fixture(scope="module")
def prepared(tree, tmp_path_factory):
  """Folder of the prepared set; the tree has its list of clips as well."""
  data = tmp_path_factory.mktemp("data")
  words = ["--set=hac", f"--root={tree}", "--on_error=skip"]  # Not 3381 clips.
  audit.main(words)
  video.main([*words, f"--data_dir={data}", "--workers=2"])
  return data / "hac_video"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """``{modality: file}``, converted from random PyTorch checkpoints."""
  folder, files = tmp_path_factory.mktemp("weights"), {}
  for i, (m, kind) in enumerate(KINDS.items()):
    model = _torch_reference.build(kind, SMALL["depths"], SMALL["width"])
    _torch_reference.randomise(model, seed=i)
    container = "model_state_dict" if m == "audio" else "state_dict"
    torch.save({container: model.state_dict()}, folder / f"{m}.pth")
    files[m] = folder / f"{m}.safetensors"
    backbone = make_backbone(kind, **SMALL)
    report = convert_checkpoint.convert(folder / f"{m}.pth", files[m], backbone)
    assert report.ok
  return files


@pytest.fixture(scope="module")
def config(weights):
  """``config(path, **fields)``: two steps of MER + MM, cartoon held out."""

  def make(path, **fields):
    c = hac.get_config("cartoon")
    c.data.path = str(path)
    c.method = "mer_kde+mm"
    c.batch_size = 4
    c.total_steps, c.eval_every, c.log_every = 2, 1, 1
    c.reader.update(threads=2, prefetch=2, eval_batch=3)
    c.network.update(classifier_dim=16, projector_dim=16, projection_dim=8)
    for m, file in weights.items():
      c.backbones[m].update(weights=str(file), **SMALL)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c

  return make


def train(config, folder):
  config = validate(config)
  setup, workdir = make_setup(config), Workdir(folder, config)
  check(setup)
  with workdir.writing():
    return single.train(setup, workdir), workdir


@pytest.fixture(scope="module")
def trained(config, prepared, tmp_path_factory):
  """State and workdir of a run on the prepared set that nothing interrupted."""
  return train(config(prepared), tmp_path_factory.mktemp("run"))


def test_what_a_run_trains_on_and_what_its_records_say(trained, config, prepared):
  _, workdir = trained
  setup = make_setup(validate(config(prepared)))
  table, split = setup.dataset.source.table, setup.folds["cartoon", ()]
  ids = lambda rows: [table.clips[i].id for i in rows]
  assert ids(split.train["animal"]) == ["animal/train/a.mp4", "animal/train/b.mp4"]
  assert ids(split.val["human"]) == ["human/test/c.mp4"]  # The repeated clip is out.
  assert ids(split.test) == [
    f"cartoon/{c}.mp4" for c in ("train/a", "train/b", "test/c")
  ]
  assert [r["step"] for r in workdir.records()] == [1, 2]
  terms = {"loss/fused", "loss/mer", "loss/mm", "loss/unimodal", "entropy/flow"}
  assert all(terms < set(row) for row in read_lines(workdir.metrics))
  record = workdir.records()[-1]
  assert record["modalities"] == ["video", "audio", "flow"]
  assert record["data_version"] == load_video("hac", prepared).source.table.version
  said = {"data.dedup": "True", "audio.layer4_init": "pretrained"}
  said |= {"flow.bn_mode": "frozen", "video.weights": setup.weights["video"]}
  assert said.items() < record["tags"].items()
  assert {"val/accuracy", "target/accuracy", "target/without_flow/accuracy"} < set(
    record["metrics"]
  )


def test_the_trunk_is_that_of_the_file_and_layer4_has_moved(trained, weights):
  state, workdir = trained
  for m, file in weights.items():
    stored = load_weights(file, make_backbone(KINDS[m], **SMALL))
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    same(state.model_state["frozen"][m]["trunk"], stored["trunk"]["params"])
    for part in ("trunk", "layer4"):
      same(state.model_state["batch_stats"][m][part], stored[part]["batch_stats"])
    moved = jax.tree.map(
      lambda a, b: float(jnp.max(jnp.abs(a - b))),
      state.params["net"][f"encoder_{m}"]["layer4"],
      stored["layer4"]["params"],
    )
    # Adam's first steps are about lr = 1e-4 each, whatever the gradient.
    assert 1e-5 < max(jax.tree.leaves(moved)) < 3e-4
  # The trunks are in the weights files, not in the checkpoints.
  (saved,) = (workdir.path / "checkpoints").iterdir()
  names = (saved / "2" / "state" / "_METADATA").read_text()
  assert "layer4" in names
  assert "frozen" not in names


def test_evaluation_by_hand(trained, config, prepared):
  """Negative log-likelihood of validation and target rows, one batch for all."""
  state, workdir = trained
  setup = make_setup(validate(config(prepared)))
  split, reader = setup.folds["cartoon", ()], setup.dataset.reader(train=False)
  rows = np.concatenate([*split.val.values(), split.test])
  batch = jax.tree.map(lambda *a: np.stack(a), *[reader[int(i)] for i in rows])
  assert not any(batch.pop("damaged"))
  inputs = jax.jit(device_inputs)(batch)
  apply = jax.jit(lambda v, x, p: setup.network().apply(v, x, p, train=False)[0].logits)
  log_p = jax.nn.log_softmax(apply(state.variables, inputs, batch["present"]))
  nll = -np.take_along_axis(np.asarray(log_p), batch["label"][:, None], axis=1)[:, 0]
  found = workdir.records()[-1]["metrics"]
  assert len(nll) == 5
  np.testing.assert_allclose(found["val/nll"], nll[:2].mean(), rtol=1e-4)
  np.testing.assert_allclose(found["target/nll"], nll[2:].mean(), rtol=1e-4)


@pytest.fixture(scope="module")
def sound(config, prepared):
  """One encoder compiles sooner, and nothing of a resume depends on which."""
  return config(prepared, data__modalities=("audio",), method="mer_kde")


@pytest.fixture(scope="module")
def resumed(sound, tmp_path_factory):
  """State and workdir of a run that was stopped after one step."""
  folder = tmp_path_factory.mktemp("resumed")
  write = MetricsLog.write

  def stop(self, step, metrics):
    if step == 2:  # Trained, but neither evaluated nor saved.
      raise KeyboardInterrupt
    write(self, step, metrics)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(MetricsLog, "write", stop)
    with pytest.raises(KeyboardInterrupt):
      train(sound, folder)
  assert not (folder / "done").exists()
  (saved,) = (folder / "checkpoints").iterdir()
  assert sorted(p.name for p in saved.iterdir()) == ["1"]
  return train(sound, folder)


def test_interrupted_and_resumed_it_ends_with_the_same_bits(sound, resumed, tmp_path):
  (state, workdir), (again, other) = train(sound, tmp_path), resumed
  plain = lambda s: s.replace(key=jax.random.key_data(s.key))
  jax.tree.map(np.testing.assert_array_equal, plain(again), plain(state))
  for a, b in zip(workdir.records(), other.records(), strict=True):
    assert a["metrics"] == b["metrics"]
    assert a["hyper"] == b["hyper"]


def test_evaluation_repeats_the_record_of_the_selected_step(resumed, sound):
  _, workdir = resumed
  run(sound, workdir=str(workdir.path), mode="evaluate")
  found = json.loads((workdir.path / "evaluation.json").read_text())
  (record,) = select(workdir.records(), metric="accuracy")
  assert found["step"] == record["step"]
  assert found["metrics"] == record["metrics"]


def test_other_weights_under_the_same_name_are_another_run(resumed, sound, weights):
  _, workdir = resumed
  kept = weights["audio"].read_bytes()
  backbone = make_backbone(KINDS["audio"], **SMALL)
  other = jax.jit(backbone.init)(jax.random.key(5))
  own = lambda setup: run_id(setup, single.the_run(setup))
  ids = {r["run_id"] for r in workdir.records()}
  assert own(make_setup(validate(sound))) in ids
  try:
    save_weights(weights["audio"], backbone, other)
    assert own(make_setup(validate(sound))) not in ids
    with pytest.raises(WorkdirError, match="holds no checkpoint of"):
      run(sound, workdir=str(workdir.path), mode="evaluate")
  finally:
    weights["audio"].write_bytes(kept)


def test_a_table_wants_features(config, prepared):
  with pytest.raises(ConfigError, match=r"data_prep\.extract_features"):
    run(config(prepared, target=""))
  with pytest.raises(DataError, match="videos do not fit in memory"):
    make_setup(validate(config(prepared))).dataset.in_memory()


@pytest.fixture(scope="module")
def extracted(prepared, weights, tmp_path_factory):
  """The file, written in two goes: the second part fails in the first one."""
  out = tmp_path_factory.mktemp("features") / "hac.npz"
  words = ["--set=hac", f"--data={prepared}", f"--out={out}", "--batch=5"]
  words += [f"--{m}_weights={file}" for m, file in weights.items()]
  words += ["--depths=1,1,1,1", "--width=8", "--clips=2"]
  write, begun = extract_features._write_part, []

  def once(path, passes):
    begun.append(path.name)
    if len(begun) == 2:
      raise KeyboardInterrupt
    write(path, passes)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(extract_features, "CLIPS_PER_PART", 5)
    patch.setattr(extract_features, "_write_part", once)
    with pytest.raises(KeyboardInterrupt):
      extract_features.main(words)
    assert not out.exists()
    with pytest.raises(SystemExit, match="begun with other clips"):
      extract_features.main([*words, "--clips=1"])
    extract_features.main(words)
  assert begun == ["000000.npz", "000005.npz", "000005.npz"]
  assert [p.name for p in out.parent.iterdir()] == ["hac.npz"]
  return out


def test_features_are_the_mean_embeddings_of_the_encoders(extracted, prepared, weights):
  """Clip a.mp4 of "animal": 69 usable frames, windows of 64 at 1 and at 4 of 0..5."""
  found, clips = load_npz(extracted), load_video("hac", prepared).source.table.clips
  with np.load(extracted) as archive:
    ids = archive["id"].tolist()
  assert ids == [clip.id for clip in clips]
  assert found.domain_names == DOMAINS
  assert {m: x.shape[1] for m, x in found.inputs.items()} == {
    "video": 288,
    "audio": 64,
    "flow": 256,
  }
  row = ids.index("animal/train/a.mp4")
  media = load_video("hac", prepared).source.open(row)
  frames = [media.frames("video", np.arange(32) * 2 + at) for at in (1, 4)]
  pixels = np.stack(frames)[:, :, 16:240, 32:256]  # Of 256 x 288.
  batch = {"inputs": {"video": pixels}, "present": {"video": np.ones(2, bool)}}
  backbone = make_backbone(KINDS["video"], **SMALL)
  z, _ = jax.jit(lambda v, b: encode(backbone, v, device_inputs(b)["video"]))(
    load_weights(weights["video"], backbone), batch
  )
  np.testing.assert_allclose(
    found.inputs["video"][row], np.mean(z, axis=0), rtol=1e-3, atol=1e-5
  )


def test_a_method_grid_takes_the_features(extracted):
  c = features.get_config()
  c.data.update(path=str(extracted), target_rows="all")
  c.targets, c.methods = ("cartoon",), ("mer_kde",)
  c.network.update(hidden_dim=16, classifier_dim=16, projector_dim=16, projection_dim=8)
  setup = make_setup(validate(c))
  check(setup)  # On shapes, training and evaluation.
  assert len(setup.folds["cartoon", ()].test) == 3
