"""Files made to do harm: refused in one sentence, without taking memory or time."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from mer_dg.data.archive import RATIO, UNQUESTIONED
from mer_dg.data.dataset import DataError
from mer_dg.data.npz import from_arrays, load_npz
from tests.data._npz_files import small, write


def _npy(array, shape=None):
  """The bytes of a member; with a ``shape`` its header lies."""
  buffer = io.BytesIO()
  header = np.lib.format.header_data_from_array_1_0(array)
  header["shape"] = array.shape if shape is None else shape
  np.lib.format.write_array_header_1_0(buffer, header)
  return buffer.getvalue() + array.tobytes()


def _raw_header(text):
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _file(path, members, *, level=zipfile.ZIP_DEFLATED):
  """A valid set with some members replaced by bytes."""
  whole = {f"{k}.npy": _npy(v) for k, v in small().items()} | members
  with zipfile.ZipFile(path, "w", level) as archive:
    for name, data in whole.items():
      archive.writestr(name, data)
  return path


def _refused(path, message):
  tracemalloc.start()
  with pytest.raises(DataError, match=message) as caught:
    load_npz(path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  text = str(caught.value)
  assert text.startswith(str(path))
  assert "\n" not in text
  assert len(text) < 1000
  assert "allow_pickle" not in text  # NumPy's advice is to trust the file.
  assert peak < 50e6


VALUES = np.ones((8, 3), np.float32)
HEADERS = {
  "50 GB": (_npy(VALUES, (8, 1_500_000_000)), "'a' is damaged: its header promises"),
  "overflow": (_npy(VALUES, (2**40, 2**40)), "'a' is damaged: its header promises"),
  "negative": (_npy(VALUES, (-8, -3)), "'a' is damaged: its header promises"),
  "shorter": (_npy(VALUES, (8, 2)), "'a' is damaged: its header promises"),
  "no shape": (_raw_header(b"{'descr': '<f4'}\n"), "'a' is damaged"),
  "no dict": (_raw_header(b"[1, 2]\n"), "'a' is damaged"),
  "open quote": (_raw_header(b"{'descr': '''\n"), "'a' is damaged"),
  "deep": (_raw_header(b"(" * 9000 + b"\n"), "'a' is damaged"),
  "negations": (_raw_header(b"-" * 9000 + b"1\n"), "'a' is damaged"),
  "long header": (_raw_header(b" " * 60_000), "'a' is damaged"),
  "type of the shape": (
    _raw_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': 'x'}\n"),
    "'a' is damaged",
  ),
  "type of numbers": (
    _raw_header(b"{'descr': 7, 'fortran_order': False, 'shape': (1,)}\n"),
    "'a' is damaged",
  ),
  "other version": (b"\x93NUMPY\x09\x00" + b" " * 50, "'a' is of the unknown format"),
  "no array": (b"hello", "'a' is damaged"),
  "empty": (b"", "'a' is damaged"),
  "record": (_npy(np.zeros(8, [("x", "<i4")])), "'a' must hold numbers"),
  "dates": (_npy(np.zeros((8, 2), "M8[s]")), "'a' must hold numbers"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies(tmp_path, case):
  data, message = HEADERS[case]
  _refused(_file(tmp_path / "x.npz", {"a.npy": data}), message)


def test_a_small_file_that_fills_the_memory(tmp_path):
  """Zeros shrink a thousandfold: what is claimed here is really there."""
  rows = UNQUESTIONED // 8 + 1
  path = tmp_path / "bomb.npz"
  _file(path, {})
  array = np.lib.stride_tricks.as_strided(np.zeros(1), (rows,), (8,))
  header = np.lib.format.header_data_from_array_1_0(array)
  with (
    zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    archive.open("group.npy", "w", force_zip64=True) as member,
  ):
    np.lib.format.write_array_header_1_0(member, header)
    for _ in range(rows // 2**17):
      member.write(bytes(2**20))
    member.write(bytes(8 * (rows % 2**17)))
  assert path.stat().st_size * RATIO < rows * 8
  _refused(path, r"'group' is refused: with it, 0.3 GB come out of a file of .* MB")


def _patched(path, change):
  """The file with every record of its directory changed (PKZIP APPNOTE 4.3.12)."""
  data = bytearray(path.read_bytes())
  at = data.find(b"PK\x01\x02")
  while at >= 0:
    change(data, at)
    at = data.find(b"PK\x01\x02", at + 4)
  path.write_bytes(data)
  return path


def _claim(data, at):
  struct.pack_into("<I", data, at + 24, 2**32 - 2)  # Uncompressed size.


def _encrypt(data, at):
  struct.pack_into("<H", data, at + 8, 1)


def _method(number):
  return lambda data, at: struct.pack_into("<H", data, at + 10, number)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (_claim, "is refused: with it, 4.3 GB come out of a file of 0.0 MB"),
    (_encrypt, "is encrypted"),
    (_method(99), "is compressed in a way that NumPy does not write"),
    (_method(zipfile.ZIP_LZMA), "is compressed in a way that NumPy does not write"),
  ],
)
def test_a_directory_that_lies(tmp_path, change, message):
  _refused(_patched(_file(tmp_path / "x.npz", {}), change), message)


def test_an_array_that_is_there_twice(tmp_path):
  path = _file(tmp_path / "x.npz", {"label": _npy(np.zeros(8, int))})
  _refused(path, "'label' is there twice")


def test_text_that_is_no_file_gets_no_advice_to_unpickle(tmp_path):
  path = tmp_path / "x.npz"
  path.write_text("hello")
  _refused(path, "not an .npz file")


NAMES = {
  "modality escapes": ("modalities", ["../../../../ESCAPED/x", "b"], "path separator"),
  "modality with a backslash": ("modalities", ["a\\b", "b"], "path separator"),
  "modality with a line": ("modalities", ["a\nb", "b"], "control character"),
  "modality turned": ("modalities", ["\u202etxt", "b"], "control character"),
  "modalities alike": ("modalities", ["a", "a "], "looks like 'a'"),
  "modality of spaces": ("modalities", [" ", "b"], "looks like ''"),
  "modality is a length": ("modalities", ["b", "b_len"], "must list different"),
  "long modality": ("modalities", ["a" * 201, "b"], "longer than 200 characters"),
  "class escapes": ("class_names", ["x", "../x"], "class name '../x' has a path"),
  "classes alike": ("class_names", ["\u00e9", "e\u0301"], "class name .* looks like"),
  "domain escapes": ("domain", ["u", "/etc"] * 4, "domain name '/etc' has a path"),
  "listed domain": ("domain_names", ["u", "v\x00w"], "domain name .* control"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_never_look_like_paths_or_each_other(tmp_path, case):
  key, names, message = NAMES[case]
  arrays = small() | {key: np.array(names)}
  arrays |= dict.fromkeys(names, arrays["a"]) if key == "modalities" else {}
  if key != "modalities":
    _refused(write(tmp_path, arrays), message)
  with pytest.raises(DataError, match=message):
    from_arrays(arrays, name="x.npz")


def test_bytes_that_are_no_text(tmp_path):
  names = np.array([b"\xff", b"b"])
  _refused(write(tmp_path, small() | {"modalities": names}), "no readable text")
  beyond = np.array([0x110000, 98], np.uint32).view("<U1")  # No such character.
  _refused(write(tmp_path, small() | {"class_names": beyond}), "no readable text")


def test_letters_of_both_cases_are_different_classes(tmp_path):
  path = write(tmp_path, small() | {"class_names": np.array(["a", "A"])})
  assert load_npz(path).class_names == ("a", "A")
