"""Reading pickles without running them."""

import csv
import os
import pickle
import time
import tracemalloc

import numpy as np
import pytest

from data_prep import _machine
from data_prep._pickles import load_plain, load_table
from mer_dg.data.dataset import DataError


class _Payload:
  """Unpickled by ``pickle.load`` this writes a file."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return os.system, (f"touch {self.path}",)


def _write(path, content, protocol=4):
  path.write_bytes(pickle.dumps(content, protocol=protocol))
  return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_content_survives(tmp_path, protocol):
  content = {
    "f": np.arange(6.0).reshape(2, 3).T,
    "text": np.array(["x", "yy"]),
    "big endian": np.arange(3, dtype=">i4"),
    "objects": np.array([1, "s", None], object),
    "scalar": np.float32(0.5),
    "nested": [1, (2.5, "z"), {"b": b"\x00\xff", "none": None}],
  }
  actual = load_plain(_write(tmp_path / "a.pkl", content, protocol))
  np.testing.assert_equal(actual, content)
  assert actual["big endian"].dtype == ">i4"


def test_payload_is_refused_and_not_run(tmp_path):
  made = tmp_path / "made"
  path = _write(tmp_path / "evil.pkl", {"label": np.arange(3), "x": _Payload(made)})
  with pytest.raises(DataError, match=r"evil.pkl: refused, it asks for posix.system"):
    load_plain(path)
  assert not made.exists()
  pickle.loads(path.read_bytes())  # The payload is live: without us it runs.
  assert made.exists()


@pytest.mark.parametrize(
  ("content", "named"),
  [
    (eval, "builtins.eval"),
    (getattr, "builtins.getattr"),
    (np.load, "numpy.load"),
    (np.lib.format.open_memmap, "numpy.*open_memmap"),
  ],
)
def test_other_globals_are_refused_by_name(tmp_path, content, named):
  with pytest.raises(DataError, match=f"it asks for {named}"):
    load_plain(_write(tmp_path / "a.pkl", [content]))


@pytest.mark.parametrize("name", ["builtins\nslice", "numpy\ndtype", "numpy\nndarray"])
def test_allowed_globals_are_not_the_real_ones(tmp_path, name):
  # REDUCE with an argument that the real callable would choke on or use.
  (tmp_path / "a.pkl").write_bytes(f"c{name}\n(Vx\nVy\nVz\nVw\nVv\ntR.".encode())
  with pytest.raises(DataError, match=r"a\.pkl: (not a readable pickle|refused)"):
    load_plain(tmp_path / "a.pkl")


def test_codecs_encode_makes_bytes_and_nothing_else(tmp_path):
  (tmp_path / "a.pkl").write_bytes(b"c_codecs\nencode\n(V\xe9\nVlatin1\ntR.")
  assert load_plain(tmp_path / "a.pkl") == b"\xe9"
  (tmp_path / "b.pkl").write_bytes(b"c_codecs\nencode\n(Vx\nVrot13\ntR.")
  with pytest.raises(DataError, match="refused, _codecs.encode called with 'rot13'"):
    load_plain(tmp_path / "b.pkl")


def test_forged_dtype_is_refused(tmp_path):
  """An array of objects whose data are bytes: addresses, if NumPy were to read it."""
  array = np.arange(2).astype(object)
  function, args, state = array.__reduce__()
  forged = _Reduced(function, args, (*state[:4], b"\x41" * 16))
  with pytest.raises(DataError, match="refused, it holds an array of objects"):
    load_plain(_write(tmp_path / "a.pkl", forged))


class _Reduced:
  def __init__(self, *parts):
    self.parts = parts

  def __reduce__(self):
    return self.parts


def test_damaged_and_missing_files_are_explained(tmp_path):
  data = pickle.dumps({"a": np.arange(100)})
  (tmp_path / "cut.pkl").write_bytes(data[:-20])
  with pytest.raises(DataError, match=r"cut.pkl: not a readable pickle"):
    load_plain(tmp_path / "cut.pkl")
  with pytest.raises(DataError, match=r"none.pkl: cannot be read \(No such file"):
    load_plain(tmp_path / "none.pkl")
  with pytest.raises(DataError, match=r"list.pkl: holds a list, not a table"):
    load_table(_write(tmp_path / "list.pkl", [1, 2]))
  ragged = {"a": np.arange(2), "b": np.arange(3)}
  with pytest.raises(DataError, match="differ in length"):
    load_table(_write(tmp_path / "ragged.pkl", ragged))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_data_frames_of_todays_pandas(tmp_path, protocol):
  pandas = pytest.importorskip("pandas")
  columns = {"uid": [5, 6, 7], "verb": ["a", "b", "c"], "start": [0, 1, 2]}
  frame = pandas.DataFrame(
    {k: pandas.Series(v, dtype=object) for k, v in columns.items()}
  )
  frame = frame.astype({"uid": np.int64, "start": np.int64})
  frame.columns = pandas.Index(list(columns), dtype=object)
  assert load_table(_write(tmp_path / "a.pkl", frame, protocol)) == columns
  rows = load_table(_write(tmp_path / "b.pkl", frame.iloc[1:], protocol))
  assert rows == {k: v[1:] for k, v in columns.items()}


def test_arrow_strings_are_refused_with_advice(tmp_path):
  pandas = pytest.importorskip("pandas")
  frame = pandas.DataFrame({"verb": ["a", "b"]})
  if "object" in str(frame.dtypes["verb"]):
    pytest.skip("this pandas stores strings as objects")
  with pytest.raises(DataError, match=r"refused, .*save it as .csv"):
    load_table(_write(tmp_path / "a.pkl", frame))


def test_the_real_list(shared_data):
  """The published pickle, written by an old pandas, against its .csv."""
  folder = shared_data / "epic_splits"
  table = load_table(folder / "D1_test.pkl")
  with (folder / "D1_test.csv").open(newline="") as file:
    header, *rows = csv.reader(file)
  assert list(table) == header
  assert [list(map(str, row)) for row in zip(*table.values(), strict=True)] == rows
  assert isinstance(table["start_frame"][0], int)


# --- a few bytes that stand for much -------------------------------------------------


def _array_of(count, size):
  """An object array of ``count`` references to one array of ``size`` bytes."""
  inner = np.zeros(size, np.uint8)
  outer = np.empty(count, object)
  outer[:] = [inner] * count
  return outer


class _Counting:
  """A row index that only counts, as a data frame has."""

  def __reduce__(self):
    index = pytest.importorskip("pandas").RangeIndex
    make, (_, state), *_ = index(3).__reduce__()
    return make, (index, state | {"stop": 300_000_000})


BOMBS = {
  # 2^100 entries: nothing may walk over them.
  "nested tuples": (b"\x80\x02)" + b"2\x86" * 100 + b".", "a few of its bytes"),
  "nested lists": (
    b"\x80\x02]" + b"q\x000]h\x00ah\x00a" * 100 + b".",
    "a few of its bytes",
  ),
  # The hash of such a tuple takes as long.
  "nested key": (b"\x80\x02})" + b"2\x86" * 100 + b"K\x01s.", "tuple within a key"),
  "nested member": (b"\x80\x04\x8f()" + b"2\x86" * 100 + b"\x90.", "within a key"),
  # Nor may a message show it.
  "nested encoding": (
    b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00a)" + b"2\x86" * 100 + b"\x86R.",
    "what is no text",
  ),
  "nested dtype": (
    b"\x80\x02cnumpy\ndtype\n)" + b"2\x86" * 100 + b"\x85R.",
    "a dtype without a name|an array without a dtype",
  ),
  "memory cell": (b"\x80\x02Nr\xff\xff\xff\x7f.", "memory cell 2147483647"),
  "text memory cell": (b"Np2147483647\n.", "memory cell 2147483647"),
  "2 GB of bytes": (b"\x80\x03B\xff\xff\xff\x7f.", "2147483647 bytes promised"),
  "more than memory": (
    b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b".",
    "bytes promised",
  ),
  "2 GB of a frame": (b"\x80\x04\x95" + (2**31).to_bytes(8, "little") + b"N.", None),
  "digits": (b"L" + b"9" * 100_000 + b"L\n.", "not a readable pickle"),
  "itself": (b"\x80\x02]q\x00h\x00a.", "not a readable pickle .RecursionError"),
  "deep": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "RecursionError"),
  "equal hashes": (
    b"\x80\x02}(" + b"".join(
      b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N"
      for k in range(1, 20_000)
    ) + b"u.",
    "int within a key",
  ),
  "one array often": (pickle.dumps(_array_of(10_000, 10_000)), "a few of its bytes"),
  "rows of nothing": (
    pickle.dumps(_Reduced(*np.zeros((0, 0)).__reduce__()[:2], (
      1, (10**9, 0), np.dtype("f4"), False, b""))),
    "a few of its bytes",
  ),
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_cost_no_more_than_their_bytes(tmp_path, case):
  data, message = BOMBS[case]
  path = tmp_path / "bomb.pkl"
  path.write_bytes(data)
  tracemalloc.start()
  start = time.process_time()
  if message is None:
    assert load_plain(path) is None
  else:
    with pytest.raises(DataError, match=message) as caught:
      load_plain(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 400
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert time.process_time() - start < 60  # Under tracing; most take milliseconds.
  assert peak < 2**23 + 100 * len(data)


def test_objects_that_outweigh_their_bytes(tmp_path, monkeypatch):
  """A dict takes a byte of the file and a hundred of memory."""
  data = b"\x80\x02(" + b"}" * 100_000 + b"l."
  (tmp_path / "a.pkl").write_bytes(data)
  assert load_plain(tmp_path / "a.pkl") == [{}] * 100_000
  monkeypatch.setattr(_machine, "BASE", 2**20)  # Half a GB, to meet it sooner.
  with pytest.raises(DataError, match="far more memory than the file is large"):
    load_plain(tmp_path / "a.pkl")


def test_an_index_that_counts_to_300_million(tmp_path):
  path = _write(tmp_path / "a.pkl", _Counting())
  with pytest.raises(DataError, match="refused, a few of its bytes stand for any"):
    load_plain(path)


def test_equal_and_shared_parts_are_no_bombs(tmp_path):
  shared = ("recording", 1.5)
  content = {"ids": [shared] * 100, "again": [("recording", 1.5) for _ in range(100)]}
  assert load_plain(_write(tmp_path / "a.pkl", content)) == content
