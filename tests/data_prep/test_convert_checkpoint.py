import collections
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from data_prep import _untrusted, convert_checkpoint  # noqa: E402
from mer_dg.data.dataset import DataError  # noqa: E402
from mer_dg.networks.published import (  # noqa: E402
  BACKBONES,
  encode,
  load_weights,
  make_backbone,
)
from tests.networks.published import _parity, _torch_reference  # noqa: E402

# The smallest input that every stage can stride over, [B, *sample].
SAMPLES = {
  "slowfast_r101": (1, 4, 32, 32, 3),
  "slowonly_r50_flow": (1, 1, 32, 32, 2),
  "vggsound_resnet18": (1, 32, 32, 1),
}
CONTAINER = {
  "slowfast_r101": "state_dict",
  "slowonly_r50_flow": "state_dict",
  "vggsound_resnet18": "model_state_dict",
}


def published(kind):
  """Random tensors under exactly the published names, in the published shapes."""
  model = _torch_reference.build(kind, head=True)
  _torch_reference.randomise(model, seed=5)
  shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
  assert shapes == _parity.published_keys(kind)
  return model


@pytest.mark.parametrize(
  "kind",
  [
    pytest.param(kind, marks=[pytest.mark.slow] if "r101" in kind else [])
    for kind in BACKBONES
  ],
)
def test_round_trip_at_published_size(kind, tmp_path, capsys):
  model = published(kind)
  source, target = tmp_path / "published.pth", tmp_path / "ours.safetensors"
  # As mmaction and VGGSound write them: other values beside the weights.
  torch.save({"meta": {"epoch": 256}, CONTAINER[kind]: model.state_dict()}, source)
  convert_checkpoint.main([f"--kind={kind}", str(source), str(target)])
  said = capsys.readouterr()
  keys = _parity.published_keys(kind)
  discarded = sum("num_batches" in name or "fc" in name for name in keys)
  counts = f"{len(keys) - discarded} mapped, {discarded} discarded, 0 unused, 0 missing"
  assert counts in said.out
  assert not said.err
  assert sorted(p.name for p in tmp_path.iterdir()) == [target.name, source.name]

  backbone = make_backbone(kind)
  variables = load_weights(target, backbone)
  x = np.random.default_rng(0).normal(size=SAMPLES[kind]).astype(np.float32)
  z, _ = jax.jit(lambda v, x: encode(backbone, v, x))(variables, x)
  model.eval()
  net = _torch_reference.network(model)
  with torch.no_grad():
    expected = net.last(net.trunk(torch.from_numpy(np.moveaxis(x, -1, 1).copy())))
  assert z.shape == expected.shape
  error = np.max(np.abs(np.asarray(z) - expected.numpy()))
  assert error < 1e-4 * np.max(np.abs(expected.numpy()))


class Payload:
  """Creates a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (pathlib.Path.touch, (pathlib.Path(self.path),))


class Shell(Payload):
  def __reduce__(self):
    return (os.system, (f"touch {self.path}",))


class Evaluated(Payload):
  def __reduce__(self):
    return (eval, (f"open({str(self.path)!r}, 'w').close()",))


def as_zip(content, path):
  torch.save(content, path)


def as_legacy(content, path):
  torch.save(content, path, _use_new_zipfile_serialization=False)


def as_plain_pickle(content, path):
  path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [as_zip, as_legacy, as_plain_pickle])
@pytest.mark.parametrize("payload", [Payload, Shell, Evaluated])
def test_a_malicious_file_is_refused_and_not_executed(tmp_path, write, payload):
  mark, source = tmp_path / "executed", tmp_path / "evil.pth"
  content = {"state_dict": {"a": torch.ones(1)}, "meta": payload(mark)}
  write(content, source)
  with pytest.raises(DataError, match=r"evil\.pth: refused.*nothing was executed"):
    _untrusted.read_state_dict(source)
  assert not mark.exists()
  target = tmp_path / "out.safetensors"
  with pytest.raises(SystemExit, match="error: .*refused"):
    convert_checkpoint.main(["--kind=vggsound_resnet18", str(source), str(target)])
  assert not mark.exists()
  assert not target.exists()
  # The payload is real: a plain unpickler runs it.
  if write is as_plain_pickle:
    pickle.loads(source.read_bytes())
  else:
    torch.load(source, weights_only=False)
  assert mark.exists()


@pytest.mark.parametrize("write", [as_zip, as_legacy])
def test_containers(tmp_path, write):
  path = tmp_path / "c.pth"
  tensors = collections.OrderedDict(a=torch.arange(3.0), b=torch.tensor(7))
  beside = {
    "epoch": 3,
    "note": "text",
    # What training scripts leave beside the weights; see `_untrusted`.
    "best": np.float64(61.5),
    "history": np.arange(4.0),
    "optimizer": {"lr": 0.1, "momentum": [torch.ones(2)]},
  }
  for content in (
    {"state_dict": tensors, **beside},
    {"model_state_dict": tensors, **beside},
    tensors,
  ):
    write(content, path)
    actual = _untrusted.read_state_dict(path)
    assert list(actual) == ["a", "b"]
    np.testing.assert_array_equal(actual["a"], [0.0, 1.0, 2.0])
    assert actual["b"] == 7


def test_views_and_bfloat16(tmp_path):
  path = tmp_path / "c.pth"
  base = torch.arange(6.0).reshape(2, 3)
  torch.save({"t": base.T, "h": base.to(torch.bfloat16)}, path)
  actual = _untrusted.read_state_dict(path)
  np.testing.assert_array_equal(actual["t"], base.numpy().T)
  assert actual["h"].dtype == np.float32
  np.testing.assert_array_equal(actual["h"], base.numpy())


def test_what_is_no_checkpoint(tmp_path):
  path = tmp_path / "c.pth"
  with pytest.raises(FileNotFoundError, match=r"c\.pth: no such file"):
    _untrusted.read_state_dict(path)
  for content, message in (
    ({"state_dict": {"a": 1.0}}, r"these are none: \['a'\]"),
    ({"epoch": 3, "weights": {}}, r"these are none: \['epoch', 'weights'\]"),
    ([torch.ones(1)], "no mapping of tensors, but list"),
    ({}, "no mapping of tensors"),
  ):
    torch.save(content, path)
    with pytest.raises(DataError, match=message):
      _untrusted.read_state_dict(path)
  torch.save({"a": torch.ones(1000)}, path)
  path.write_bytes(path.read_bytes()[:2000])  # A broken download.
  with pytest.raises(DataError, match="not a readable PyTorch file|refused"):
    _untrusted.read_state_dict(path)
  path.write_bytes(b"<html>404</html>")
  with pytest.raises(DataError, match="not a readable PyTorch file|refused"):
    _untrusted.read_state_dict(path)


def test_a_wrong_checkpoint_is_named_and_leaves_nothing(tmp_path):
  model = published("vggsound_resnet18")
  state = model.state_dict()
  state["audnet.layer9.weight"] = state.pop("audnet.conv1.weight")
  source, target = tmp_path / "p.pth", tmp_path / "ours.safetensors"
  torch.save({"model_state_dict": state}, source)
  run = lambda kind: convert_checkpoint.main(
    [f"--kind={kind}", str(source), str(target)]
  )
  with pytest.raises(SystemExit) as stop:
    run("vggsound_resnet18")
  assert "missing: audnet.conv1.weight" in str(stop.value)
  assert "unused: audnet.layer9.weight" in str(stop.value)
  with pytest.raises(SystemExit, match="is no slowonly_r50_flow checkpoint"):
    run("slowonly_r50_flow")
  assert list(tmp_path.iterdir()) == [source]
  target = tmp_path / "nowhere" / "ours.safetensors"
  with pytest.raises(SystemExit, match="nowhere: no such folder"):
    run("vggsound_resnet18")


def test_a_name_that_promises_another_hash(tmp_path):
  path = tmp_path / "net.pth"
  path.write_bytes(b"abc")  # SHA-256 ba7816bf..., FIPS 180-2, appendix B.1.
  assert convert_checkpoint.broken_promise(path) == ""
  good = path.rename(tmp_path / "net-ba7816bf.pth")
  assert convert_checkpoint.broken_promise(good) == ""
  bad = good.rename(tmp_path / "net-0dd54025.pth")
  message = convert_checkpoint.broken_promise(bad)
  assert "0dd54025" in message
  assert "ba7816bf" in message


def test_pytorch_is_not_needed(tmp_path, repo_root):
  path = tmp_path / "p.pth"
  torch.save({"state_dict": {"a": torch.arange(3.0)}}, path)
  code = (
    "import sys; sys.modules['torch'] = None\n"
    "from data_prep._untrusted import read_state_dict\n"
    f"print(read_state_dict({str(path)!r})['a'].tolist())"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True
  )
  assert done.stdout == "[0.0, 1.0, 2.0]\n", done.stderr


DTYPES = (
  *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
  *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
  *(torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.complex128),
)


@pytest.mark.parametrize("write", [as_zip, as_legacy])
def test_every_dtype_and_layout(tmp_path, write):
  base = torch.arange(12.0).reshape(3, 4)
  state = {str(dtype): base.to(dtype) for dtype in DTYPES}
  state |= {
    "turned": base.T,
    "part": base[1:, 1:3],
    "parameter": torch.nn.Parameter(base[0]),
    "scalar": torch.tensor(7),
    "empty": torch.empty(0, 3),
  }
  path = tmp_path / "c.pth"
  write({"state_dict": state, "sparse": torch.eye(2).to_sparse()}, path)
  actual = _untrusted.read_state_dict(path)
  assert list(actual) == list(state)
  for name, tensor in state.items():
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
      tensor = tensor.float()
    np.testing.assert_array_equal(actual[name], tensor.numpy(), strict=True)


@pytest.mark.parametrize("write", [as_zip, as_legacy])
@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: torch.ones(1).expand(10**9), "'z' is refused: its shape .* is larger"),
    (lambda: torch.ones(2).to(torch.float8_e4m3fn), "'z' is of float8_e4m3fn, which"),
    (lambda: torch.eye(3).to_sparse(), "'z' is a sparse tensor, which is not read"),
    (lambda: torch.ones(2, device="meta"), "'z' is a meta tensor"),
  ],
)
def test_tensors_that_are_not_read_are_named(tmp_path, write, make, message):
  path = tmp_path / "c.pth"
  write({"a": torch.ones(1), "z": make()}, path)
  with pytest.raises(DataError, match=message) as caught:
    _untrusted.read_state_dict(path)
  assert "\n" not in str(caught.value)
  assert len(str(caught.value)) < 400


def test_shared_numbers_do_not_multiply(tmp_path):
  base = torch.ones(10_000)
  path = tmp_path / "c.pth"
  torch.save({"a": base, "tied": base}, path)
  assert list(_untrusted.read_state_dict(path)) == ["a", "tied"]
  torch.save({str(i): base for i in range(100)}, path)
  with pytest.raises(DataError, match="tensor '[0-9]+' is refused"):
    _untrusted.read_state_dict(path)


def test_a_compressed_archive_is_refused(tmp_path):
  path = tmp_path / "c.pth"
  torch.save({"a": torch.zeros(10**6)}, path)
  with zipfile.ZipFile(path) as archive:
    members = {n: archive.read(n) for n in archive.namelist()}
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  with pytest.raises(DataError, match="in it is compressed"):
    _untrusted.read_state_dict(path)


def test_advice_to_load_it_nevertheless_is_never_passed_on(tmp_path):
  path = tmp_path / "c.pth"
  for content in ({"a": Shell(tmp_path / "x")}, {"a": torch.nn.Linear(1, 1)}):
    for write in (as_zip, as_legacy, as_plain_pickle):
      write(content, path)
      with pytest.raises(DataError) as caught:
        _untrusted.read_state_dict(path)
      assert "weights_only" not in str(caught.value)
      assert "add_safe_globals" not in str(caught.value)


def test_a_wrong_prefix_is_said_in_few_lines(tmp_path):
  state = published("vggsound_resnet18").state_dict()
  source = tmp_path / "p.pth"
  run = lambda: convert_checkpoint.main(
    ["--kind=vggsound_resnet18", str(source), str(tmp_path / "x")]
  )
  cases = {
    "begin with 'model.'": {f"model.{k}": v for k, v in state.items()},
    "lack 'audnet.'": {k.removeprefix("audnet."): v for k, v in state.items()},
    "not one name is known": {f"x{i}": v for i, v in enumerate(state.values())},
  }
  for hint, content in cases.items():
    torch.save({"model_state_dict": content}, source)
    with pytest.raises(SystemExit, match=hint) as stop:
      run()
    assert len(str(stop.value).splitlines()) < 16
