"""Mutates files of one kind and reads them, in a process of little memory.

  python -m tests.system._fuzz KIND SEED FIRST COUNT

Mutation i of a seed is a pure function of both. Prints a line of JSON: outcomes, and
what should not have happened, each with its number.
"""

from __future__ import annotations

from collections import Counter
import io
import json
import os
import pathlib
import pickle
import pickletools
import resource
import signal
import sys
import tempfile
import time
import zipfile

import numpy as np

# What a reader may take on top of what the process has when it begins.
MEMORY = 2**30
SECONDS = 20
NUMBERS = (
  0,
  1,
  0x7F,
  0xFF,
  2**15,
  2**16 - 1,
  2**31 - 1,
  2**31,
  2**32 - 1,
  2**62,
  2**63,
)
# Words of the formats, that they may come where they do not belong.
WORDS = (
  *(b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"\x93NUMPY\x01\x00"),
  *(b"'descr': '|O'", b"(1000000000000,)", b"-1", b"<f8", b"<U4", b"|V8", b"True"),
  *(b"((((((((", b"..", b"/", b"\\", b"\x00", b"9" * 40, b"\xff" * 8, b"{}", b"[]"),
  *(b"F32", b"BF16", b"I64", b"data_offsets", b"__metadata__", b"18446744073709551615"),
)  # fmt: skip
NAMES = (
  *("builtins eval", "os system", "numpy ndarray", "numpy dtype"),
  *("collections Counter", "pandas.core.frame DataFrame"),
  *("torch FloatStorage", "torch._utils _rebuild_tensor_v2", "builtins bytearray"),
  *("pandas.core.indexes.range RangeIndex",),
)  # fmt: skip


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
  """One to four changes of bytes, mostly one."""
  data = bytearray(data)
  for _ in range(int(rng.choice([1, 1, 1, 2, 3, 4]))):
    at = int(rng.integers(0, len(data) + 1))
    width = int(rng.choice([1, 2, 4, 8]))
    match int(rng.integers(8)):
      case 0:  # A bit.
        if at < len(data):
          data[at] ^= 1 << int(rng.integers(8))
      case 1:  # A number.
        number = int(rng.choice(np.array(NUMBERS, object))) % 2 ** (8 * width)
        data[at : at + width] = number.to_bytes(width, "little")
      case 2:
        data[at : at + width] = rng.bytes(width)
      case 3:  # The rest, or a part.
        del data[at : at + int(rng.choice([1, 8, len(data)]))]
      case 4:
        data[at:at] = WORDS[int(rng.integers(len(WORDS)))]
      case 5:
        word = WORDS[int(rng.integers(len(WORDS)))]
        data[at : at + len(word)] = word
      case 6:  # A part of the file once more, elsewhere.
        start = int(rng.integers(0, len(data) + 1))
        data[at:at] = data[start : start + int(rng.integers(1, 200))]
      case 7:
        data[at : at + 64] = bytes(64)
  return bytes(data)


def _rezipped(data: bytes, rng: np.random.Generator, change) -> bytes:
  """An archive one of whose members is changed, with valid checksums."""
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    members = [(n, archive.read(n)) for n in archive.namelist()]
  i = int(rng.integers(len(members)))
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
    for k, (name, content) in enumerate(members):
      archive.writestr(name, change(name, content) if k == i else content)
  return buffer.getvalue()


def opcodes_mutated(data: bytes, rng: np.random.Generator) -> bytes:
  """A pickle whose operations are repeated, moved, left out or replaced."""
  starts = [at for _, _, at in pickletools.genops(data)]
  parts = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
  for _ in range(int(rng.integers(1, 4))):
    i = int(rng.integers(len(parts)))
    match int(rng.integers(5)):
      case 0:
        del parts[i]
      case 1:
        parts[i:i] = [parts[int(rng.integers(len(parts)))]] * int(rng.integers(1, 40))
      case 2:
        op = pickletools.opcodes[int(rng.integers(len(pickletools.opcodes)))]
        parts[i] = op.code.encode("latin-1") + rng.bytes(int(rng.integers(0, 5)))
      case 3:
        name = NAMES[int(rng.integers(len(NAMES)))]
        parts[i:i] = [b"c" + name.replace(" ", "\n").encode() + b"\n"]
      case 4:  # A pair of the same, over and over: 2^n entries.
        parts[i:i] = [b"2\x86"] * int(rng.integers(1, 60))
    parts = parts or [b"."]
  return b"".join(parts)


# --- the files to begin with ---------------------------------------------------------


def _npz_files() -> list[bytes]:
  from tests.data._npz_files import small

  more = small() | {
    "class_names": np.array(["x", "y"]),
    "domain_names": np.array([b"u", b"v"]),
    "b_len": np.full(8, 3),
    "a_present": np.arange(8) > 1,
    "b_kind": np.array("sequence"),
    "group": np.arange(8),
    "split": np.array(["train", "test"] * 4),
    "id": np.arange(8),
  }
  files = []
  for arrays, save in (
    (small(), np.savez),
    (more, np.savez_compressed),
    (more, np.savez),
  ):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    files.append(buffer.getvalue())
  return files


def _pickle_files() -> list[bytes]:
  content = {
    "train": {"text": np.ones((3, 2), np.float32), "id": ["a$_$1", "b", ("c", 1.5)]},
    "more": [np.arange(3), np.array(["x", None], object), np.float64(2), b"\xff", None],
    "plain": {1: True, "two": (1, 2.5, "z"), (1, 2): {3, 4}},
  }
  files = [pickle.dumps(content, protocol=p) for p in (2, 4, 5)]
  try:
    import pandas
  except ImportError:
    return files
  frame = pandas.DataFrame(
    {"uid": [1, 2], "name": pandas.Series(["a", "b"], dtype=object)}
  )
  frame.columns = pandas.Index(["uid", "name"], dtype=object)
  return [*files, pickle.dumps(frame, protocol=2), pickle.dumps(frame, protocol=5)]


def _pth_files() -> list[bytes]:
  import torch

  base = torch.arange(12.0).reshape(3, 4)
  state = {"a": base, "b": base.T, "h": base.half(), "n": torch.tensor(3)}
  content = {"state_dict": state, "best": np.float64(1), "epoch": 3}
  files = []
  for zipped in (True, False):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    files.append(buffer.getvalue())
  return files


def _backbone():
  from mer_dg.networks.published import make_backbone

  return make_backbone("vggsound_resnet18", depths=(1, 1, 1, 1), width=8)


def _safetensors_files() -> list[bytes]:
  import jax

  from mer_dg.networks.published import save_weights

  backbone = _backbone()
  variables = jax.tree.map(np.asarray, jax.jit(backbone.init)(jax.random.key(0)))
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "a.safetensors"
    save_weights(path, backbone, variables)
    return [path.read_bytes()]


# --- the kinds -----------------------------------------------------------------------


def _of_npz():
  from mer_dg.data.npz import load_npz

  def change(data, rng):
    if rng.random() < 0.5:
      return mutated(data, rng)
    # Headers of arrays are short: most changes go there.
    head = int(rng.choice([130, len(data)]))
    return _rezipped(data, rng, lambda _, x: mutated(x[:head], rng) + x[head:])

  return _npz_files(), change, load_npz


def _of_pickles():
  from data_prep._pickles import load_plain

  def change(data, rng):
    return opcodes_mutated(data, rng) if rng.random() < 0.6 else mutated(data, rng)

  return _pickle_files(), change, load_plain


def _of_pth():
  from data_prep._untrusted import read_state_dict

  def inside(name, content, rng):
    if name.endswith("data.pkl") and rng.random() < 0.7:
      return opcodes_mutated(content, rng)
    return mutated(content, rng) if content else content

  def change(data, rng):
    if not data.startswith(b"PK") or rng.random() < 0.3:
      return mutated(data, rng)
    return _rezipped(data, rng, lambda n, x: inside(n, x, rng))

  return _pth_files(), change, read_state_dict


def _of_safetensors():
  from mer_dg.networks.published import load_weights

  backbone = _backbone()

  def change(data, rng):
    if rng.random() < 0.3:
      return mutated(data, rng)
    size = int.from_bytes(data[:8], "little")
    header = mutated(data[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]

  return _safetensors_files(), change, lambda path: load_weights(path, backbone)


KINDS = {
  "npz": _of_npz,
  "pickle": _of_pickles,
  "pth": _of_pth,
  "safetensors": _of_safetensors,
}


def outcome(read, path: pathlib.Path) -> tuple[str, str]:
  """What came of reading a file, and what is wrong with that ("" if nothing)."""
  from mer_dg.data.dataset import DataError

  # load_weights documents ValueError, the others DataError, which is one.
  documented = ValueError if path.suffix == ".safetensors" else DataError
  try:
    read(path)
  except documented as error:
    text = str(error)
    wrong = [w for w in ("allow_pickle", "weights_only") if w in text]
    wrong += [] if str(path) in text else ["the file is not named"]
    wrong += ["too long"] if len(text) > 1500 or "\n" in text else []
    return type(error).__name__, "; ".join([*wrong, text[:300]] if wrong else [])
  except BaseException as error:
    return type(error).__name__, f"{type(error).__name__}: {str(error)[:300]}"
  return "read", ""


def mutation(files: list[bytes], change, seed: int, i: int) -> bytes:
  """Mutation i of a seed."""
  rng = np.random.default_rng([seed, i])
  return change(files[int(rng.integers(len(files)))], rng)


def main() -> None:
  kind, seed, first, count = sys.argv[1], *map(int, sys.argv[2:5])
  files, change, read = KINDS[kind]()
  folder = pathlib.Path(tempfile.mkdtemp())
  path = folder / f"fuzzed.{kind}"
  for data in files:  # Undamaged they are read; and everything is imported then.
    path.write_bytes(data)
    assert outcome(read, path) == ("read", ""), outcome(read, path)
  status = pathlib.Path("/proc/self/statm").read_text().split()
  limit = int(status[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  outcomes: Counter[str] = Counter()
  wrong, slowest, i = [], 0.0, first

  def stop(*_):
    print(json.dumps({"hangs": i, "wrong": wrong}), flush=True)
    os._exit(1)  # An exception would be caught as one of the file.

  signal.signal(signal.SIGALRM, stop)
  for i in range(first, first + count):
    path.write_bytes(mutation(files, change, seed, i))
    start = time.monotonic()
    signal.alarm(SECONDS)
    name, what = outcome(read, path)
    signal.alarm(0)
    slowest = max(slowest, time.monotonic() - start)
    outcomes[name] += 1
    wrong += [[i, what]] if what else []
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  result = {"outcomes": dict(outcomes), "wrong": wrong, "slowest_s": round(slowest, 2)}
  print(json.dumps(result | {"more_MB": used // 1024}), flush=True)


if __name__ == "__main__":
  main()
