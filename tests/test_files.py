"""Files are whole, and names from foreign files never become paths as they are."""

import os
import pathlib
import re
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from mer_dg.files import LONGEST_FILE_NAME, file_name, write_atomic

HOSTILE = [
  "../../../../ESCAPED/x",
  "/etc/passwd",
  "C:\\x",
  "a/b",
  "a\\b",
  "a\nb",
  "a\0b",
  ".hidden",
  ".",
  "..",
  "",
  "-rf",
  "x.",
  "x ",
  "nul",
  "NUL",
  "con.txt",
  "com1",
  "~",
  "$(x)",
  "<script>",
  "=1+1",
  "e\u0301",
  "\u00e9",
  "\ud800",
  "\u202e",
  "x" * 1000,
  "x" * 999 + "y",
  "\u4f60" * 80,
]


def _safe(made: str) -> bool:
  return (
    re.fullmatch(r"[a-z0-9_+=,.@%~-]+", made) is not None
    and made[0] not in ".-"
    and made[-1] not in ". "
    and len(made) <= LONGEST_FILE_NAME
    and not re.match(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", made)
  )


def test_hostile_names_are_safe_distinct_and_stay_in_the_folder(tmp_path):
  made = [file_name(name) for name in HOSTILE]
  assert all(map(_safe, made))
  assert len({unicodedata.normalize("NFKC", m).casefold() for m in made}) == len(made)
  for m in made:
    (tmp_path / m).write_text("here")
  assert {p.name for p in tmp_path.iterdir()} == set(made)


@pytest.mark.parametrize("name", ["video", "mer_kde+mm", "p08_01", "lr=0.1,b=2", "a.b"])
def test_plain_names_stay(name):
  assert file_name(name) == name


def _decoded(made: str) -> str:
  """The name that a file name was made of, unless it was cut."""
  data = re.sub(r"@([a-z])", lambda m: m[1].upper(), "" if made == "%" else made)
  parts = re.split(r"%([0-9a-f]{2})", data)
  bytes_ = b"".join(
    bytes.fromhex(p) if i % 2 else p.encode() for i, p in enumerate(parts)
  )
  return bytes_.decode("utf-8", "surrogatepass")


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(), max_size=30) | st.from_regex(r"[a-zA-Z.@%~ -]{0,9}"))
def test_every_name_can_be_read_back_so_none_clash(name):
  made = file_name(name)
  assert _safe(made)
  if "~" not in made:
    assert _decoded(made) == name
  assert pathlib.PurePosixPath(made).name == made


def test_a_write_that_fails_midway_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "report.md"
  write_atomic(path, "old")

  def disk_full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", disk_full)
  with pytest.raises(OSError, match=r"No space left on device: .*report\.md"):
    write_atomic(path, "new text")
  assert path.read_text() == "old"
  assert list(tmp_path.iterdir()) == [path]
