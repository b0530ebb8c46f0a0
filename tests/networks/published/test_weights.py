import json
import tracemalloc

import jax
import numpy as np
import pytest

from mer_dg.networks.published import (
  from_torch,
  load_weights,
  make_backbone,
  save_weights,
  torch_name,
)
from tests.networks.published import _parity

safetensors_numpy = pytest.importorskip("safetensors.numpy")

SMALL = dict(depths=(1, 1, 1, 1), width=8)
KIND = "vggsound_resnet18"


@pytest.fixture
def saved(tmp_path):
  """A file, its network and its variables."""
  backbone = make_backbone(KIND, **SMALL)
  variables = _parity.random_variables(backbone)
  path = tmp_path / "audio.safetensors"
  save_weights(path, backbone, variables, source="a test")
  return path, backbone, variables


def assert_equal(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_what_was_saved_is_loaded(saved):
  path, backbone, variables = saved
  assert_equal(load_weights(path, backbone), variables)
  assert [p.name for p in path.parent.iterdir()] == [path.name]  # No leftovers.
  # Compute options are no part of a file.
  options = dict(bn_mode="batch", compute_dtype="bfloat16", remat=True)
  assert_equal(load_weights(path, make_backbone(KIND, **SMALL, **options)), variables)


def test_random_layer4(saved):
  path, _, variables = saved
  backbone = make_backbone(KIND, **SMALL, bn_mode="layer4", layer4_init="random")
  assert backbone.options["layer4_init"] == "random"  # What a record will say.
  first, second = (load_weights(path, backbone, jax.random.key(i)) for i in (0, 1))
  for drawn in (first, second):
    assert_equal(drawn["trunk"], variables["trunk"])
  assert_equal(first["layer4"], jax.jit(backbone.init)(jax.random.key(0))["layer4"])
  kernels = [
    v["layer4"]["params"]["layer4"]["block0"]["conv1"]["conv"]["kernel"]
    for v in (variables, first, second)
  ]
  assert not np.array_equal(kernels[1], kernels[0])
  assert not np.array_equal(kernels[1], kernels[2])
  with pytest.raises(ValueError, match="key=None"):
    load_weights(path, backbone)


def rewrite(path, change, metadata=None):
  """The same file with other tensors or another description."""
  tensors = safetensors_numpy.load_file(path)
  change(tensors)
  described = dict(
    format="mer_dg.pretrained.1", kind=KIND, depths="(1, 1, 1, 1)", width="8"
  )
  safetensors_numpy.save_file(tensors, path, described | (metadata or {}))


NAME = "trunk/params/conv1/conv/kernel"


@pytest.mark.parametrize(
  ("change", "metadata", "message"),
  [
    (lambda t: t.pop(NAME), {}, rf"lacks 1 variables \['{NAME}'\]"),
    (
      lambda t: t.update(more=np.ones(1, np.float32)),
      {},
      r"has 1 that the network does not know \['more'\]",
    ),
    (
      lambda t: t.update({NAME: t[NAME][:5]}),
      {},
      rf"{NAME} has shape \(5, 7, 1, 8\), expected \(7, 7, 1, 8\)",
    ),
    (lambda t: None, {"format": "2"}, "was it written by data_prep"),
    (lambda t: None, {"kind": "slowfast_r101"}, "kind 'slowfast_r101', but the net"),
    (lambda t: None, {"width": "64"}, "width '64', but the network has '8'"),
  ],
)
def test_another_file_is_refused(saved, change, metadata, message):
  path, backbone, _ = saved
  rewrite(path, change, metadata)
  with pytest.raises(ValueError, match=message):
    load_weights(path, backbone)


def test_no_file_and_no_safetensors_file(saved):
  path, backbone, _ = saved
  with pytest.raises(FileNotFoundError, match="no such file"):
    load_weights(path.with_name("other"), backbone)
  path.write_bytes(path.read_bytes()[:5000])  # A broken download.
  with pytest.raises(ValueError, match="not a safetensors file"):
    load_weights(path, backbone)


def test_nothing_half_written(saved, monkeypatch):
  path, backbone, variables = saved
  before = path.read_bytes()
  with pytest.raises(ValueError, match="lacks 15 variables"):
    save_weights(path, backbone, {"trunk": variables["trunk"]})

  def fail(tensors, filename, metadata):
    filename.write_bytes(b"half")
    raise OSError("disk full")

  monkeypatch.setattr(safetensors_numpy, "save_file", fail)
  with pytest.raises(OSError, match="disk full"):
    save_weights(path, backbone, variables)
  assert path.read_bytes() == before
  assert [p.name for p in path.parent.iterdir()] == [path.name]


def published_state(backbone):
  """A checkpoint for ``backbone`` in the PyTorch layout, and its variables."""
  variables = _parity.random_variables(backbone)
  state = {}
  for path, value in jax.tree.leaves_with_path(variables):
    name = "/".join(entry.key for entry in path)
    if name.endswith("/kernel"):
      value = np.moveaxis(value, (-1, -2), (0, 1))
    state[torch_name(backbone.kind, name)] = value
  return state, variables


def test_report_names_everything():
  backbone = make_backbone(KIND, **SMALL)
  state, variables = published_state(backbone)
  extra = {
    "audnet.bn1.num_batches_tracked": np.int64(7),
    "audnet.fc.weight": np.ones((309, 64), np.float32),
    "audnet.fc.bias": np.ones(309, np.float32),
  }
  actual, report = from_torch(backbone, state | extra)
  assert_equal(actual, variables)
  assert report.ok
  assert set(report.mapped) == set(state)
  assert set(report.discarded) == set(extra)
  # The prefix of DataParallel, if all names have it.
  wrapped = {f"module.{name}": value for name, value in state.items()}
  assert_equal(from_torch(backbone, wrapped)[0], variables)

  name = "audnet.layer2.0.conv1.weight"
  broken = dict(state)
  broken["audnet.layer2.0.conv9.weight"] = broken.pop(name)
  broken["audnet.extra.num_batches_tracked"] = np.int64(7)  # Of no norm of ours.
  broken["audnet.conv1.weight"] = np.ones((8, 1, 7, 5), np.float32)
  broken["audnet.bn1.weight"] = np.ones(8, np.int64)
  broken["audnet.bn1.bias"] = np.full(8, np.nan, np.float32)
  broken["audnet.bn1.running_var"] = np.full(8, -1, np.float32)
  _, report = from_torch(backbone, broken)
  assert not report.ok
  assert report.missing == (name,)
  assert report.unused == (
    "audnet.layer2.0.conv9.weight",
    "audnet.extra.num_batches_tracked",
  )
  assert sorted(report.invalid) == [
    "audnet.bn1.bias: values that are not finite",
    "audnet.bn1.running_var: a negative variance",
    "audnet.bn1.weight: dtype int64, expected floating",
    "audnet.conv1.weight: shape (7, 5, 1, 8), expected (7, 7, 1, 8)"
    " (window, input, output)",
  ]
  assert "1 missing" in str(report)
  for line in (*report.missing, *report.unused, *report.invalid):
    assert line in str(report)


def test_half_precision_becomes_float32():
  backbone = make_backbone(KIND, **SMALL)
  state, variables = published_state(backbone)
  actual, report = from_torch(
    backbone, {name: np.float16(value) for name, value in state.items()}
  )
  assert report.ok
  for mine, exact in zip(
    jax.tree.leaves(actual), jax.tree.leaves(variables), strict=True
  ):
    assert mine.dtype == np.float32
    np.testing.assert_array_equal(mine, np.float32(np.float16(exact)))


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F16", "I8"])
def test_other_dtypes_are_one_sentence(saved, dtype):
  path, backbone, _ = saved
  data = path.read_bytes()
  size = int.from_bytes(data[:8], "little")
  header = json.loads(data[8 : 8 + size])
  width = {"BF16": 2, "F16": 2}.get(dtype, 1)
  start = 0
  for name, entry in header.items():
    if name != "__metadata__":
      stop = start + (entry["data_offsets"][1] - entry["data_offsets"][0]) * width // 4
      entry |= {"dtype": dtype, "data_offsets": [start, stop]}
      start = stop
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(start))
  with pytest.raises(ValueError, match=f"is of {dtype}, expected F32") as caught:
    load_weights(path, backbone)
  assert "\n" not in str(caught.value)


def test_foreign_tensors_are_refused_before_they_are_read(saved):
  path, backbone, _ = saved
  rewrite(path, lambda t: t.update(more=np.zeros(2**24, np.float32)))
  tracemalloc.start()
  with pytest.raises(ValueError, match="does not know"):
    load_weights(path, backbone)
  assert tracemalloc.get_traced_memory()[1] < 2**24
  tracemalloc.stop()
