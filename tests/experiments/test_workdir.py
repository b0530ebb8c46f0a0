"""The folder of an experiment: one writer, and a sentence for whatever is damaged."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest

from mer_dg.experiments import (
  WorkdirError,
  explain,
  hosts,
  lock,
  run,
  validate,
  workdir,
)
from mer_dg.experiments.workdir import MetricsLog, Workdir, read_lines
from mer_dg.protocol import RecordError, append_records

# Holds the lock of a folder until it is killed.
HOLDER = """
import pathlib, sys, time
from mer_dg.experiments import lock
with lock.hold(pathlib.Path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(60)
"""


@pytest.fixture
def folder(tiny, tmp_path):
  return Workdir(tmp_path / "w", validate(tiny("")))


def test_a_second_writer_is_told_who_is_there(folder):
  with folder.writing("first"):
    said = rf"is being written by process {os.getpid()} on \S+ since 20.*--workdir"
    with pytest.raises(WorkdirError, match=said), folder.writing("second"):
      pytest.fail("two writers")
  with folder.writing("second"):
    pass
  assert folder.commands == ("first", "second")


def test_a_table_is_refused_while_another_process_writes(tiny, folder):
  with folder.writing():
    before = sorted(folder.path.rglob("*"))
    with pytest.raises(WorkdirError, match="is being written by process"):
      run(tiny(""), workdir=str(folder.path))
    # Looking needs no lock.
    with pytest.raises(WorkdirError, match="holds no records; train first"):
      run(tiny(""), workdir=str(folder.path), mode="report")
    assert sorted(folder.path.rglob("*")) == before


def test_the_lock_dies_with_its_process(tmp_path, repo_root):
  path = tmp_path / "lock"
  holder = subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(path)],
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {"PYTHONPATH": str(repo_root), "JAX_PLATFORMS": "cpu"},
  )
  try:
    assert holder.stdout.readline() == "held\n"
    said = pytest.raises(lock.LockedError, match=f"process {holder.pid}")
    with said, lock.hold(path):
      pytest.fail("two holders")
  finally:
    holder.kill()
    holder.wait()
    holder.stdout.close()
  assert path.read_text()  # It had no time to clean up.
  began = time.perf_counter()
  with lock.hold(path):
    pass
  assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_locks_a_signature_does(tmp_path, monkeypatch, reason):
  def refuse(*_):
    raise OSError(reason, "no locks")

  monkeypatch.setattr(lock.fcntl, "flock", refuse)
  monkeypatch.setattr(lock, "_BEAT", 0.05)
  path = tmp_path / "lock"
  said = pytest.raises(lock.LockedError, match=f"process {os.getpid()} on")
  with lock.hold(path), said, lock.hold(path):
    pytest.fail("two holders")
  dead = {"host": "elsewhere", "pid": 1, "since": "2026-01-01 00:00:00", "beats": 7}
  path.write_text(json.dumps(dead))
  with lock.hold(path):
    assert json.loads(path.read_text())["pid"] == os.getpid()
  assert path.read_text() == ""


def test_a_holder_on_another_machine_is_waited_for(tmp_path, monkeypatch, capsys):
  """As on a network file system that keeps locks to each machine."""
  monkeypatch.setattr(lock, "_BEAT", 0.01)
  path = tmp_path / "lock"
  path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "then"}))
  with lock.hold(path):
    pass
  assert "was last written by process 1 on elsewhere since then" in (
    capsys.readouterr().out
  )
  renewed = iter(range(9))

  def renew(_):
    row = {"host": "elsewhere", "pid": 1, "since": "then", "beats": next(renewed)}
    path.write_text(json.dumps(row))

  renew(0)
  monkeypatch.setattr(lock.time, "sleep", renew)
  with pytest.raises(lock.LockedError, match="process 1 on elsewhere"), lock.hold(path):
    pytest.fail("two holders")


def test_other_hosts_of_a_command_are_the_same_writer(folder, monkeypatch):
  with folder.writing("first"):
    monkeypatch.setattr(workdir, "is_first_host", lambda: False)
    with folder.writing("second"):
      pass
    monkeypatch.setattr(workdir, "agree", lambda _: False)
    said = pytest.raises(WorkdirError, match="by the first host; its message says why")
    with said, folder.writing("third"):
      pytest.fail("not agreed")
  assert folder.commands == ("first",)
  assert hosts.agree(True)


@pytest.fixture
def filled(folder, make):
  """A workdir with something in every small file."""
  with folder.writing("a command", "a name"):
    record = make(config_hash=folder._protocol)
    append_records(folder.results, [record, record | {"step": 200}])
    folder.ask(folder.results, [record["run_id"]], [100, 200])
    row = {"run_id": "r", "message": "gave up"}
    folder.diverged.write_text(json.dumps(row) + "\n")
    log = MetricsLog(folder, "r", "accuracy", 0)
    for step in (1, 2):
      log.write(step, {"loss": 1.0})
    log.close()
  return folder


GARBAGE = [b"", b"\xff\xfe\0", b"{", b"[]", b"3", b'{"x": ' * 9999, b"null\nnull\n"]


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_a_damaged_config(filled, tiny, content):
  (filled.path / "config.json").write_bytes(content)
  with pytest.raises(WorkdirError, match=r"config\.json is damaged: .* --config write"):
    run(tiny(""), workdir=str(filled.path), mode="report")


@pytest.mark.parametrize("content", GARBAGE[2:], ids=range(2, len(GARBAGE)))
def test_a_damaged_list_of_diverged_runs(filled, content):
  filled.diverged.write_bytes(content + b"\n")
  with pytest.raises(WorkdirError, match=r"diverged\.jsonl, line 1 is damaged: "):
    filled.gave_up()


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_what_is_only_looked_at_does_not_stop_a_run(filled, content):
  rows = read_lines(filled.metrics)
  filled.metrics.write_bytes(content + b"\n" + filled.metrics.read_bytes())
  (filled.path / "commands.txt").write_bytes(content + b"\n")
  (filled.path / "asked.json").write_bytes(content)
  with pytest.warns(UserWarning, match=r"metrics\.jsonl, line 1 is left out"):
    MetricsLog(filled, "other", "accuracy", 0).close()
  assert read_lines(filled.metrics) == rows
  assert "a command" not in filled.commands
  with pytest.warns(UserWarning, match=r"asked\.json is damaged and left out"):
    assert filled.asked == set()


def test_damaged_records(filled):
  path = filled.results
  whole = path.read_bytes()
  path.write_bytes(whole.replace(b'"target/accuracy": 0.5', b'"target/accuracy": 0.7'))
  with pytest.raises(
    RecordError, match=r"results\.jsonl, line 1: the checksum is anot"
  ):
    filled.records()
  path.write_bytes(b'{"method": "er\n' + whole)
  with pytest.raises(RecordError, match=r"results\.jsonl, line 1: "):
    append_records(path, [])


def test_rows_of_a_run_are_dropped_from_where_it_resumes(filled):
  log = MetricsLog(filled, "other", "accuracy", 0)
  log.write(1, {"loss": 2.0})
  log.close()
  MetricsLog(filled, "r", "accuracy", 1).close()
  rows = [(row["run"], row["step"]) for row in read_lines(filled.metrics)]
  assert rows == [("r", 1), ("other", 1)]


@pytest.mark.parametrize(
  ("error", "sentence"),
  [
    (OSError(28, "No space left on device"), "OSError: No space left on device."),
    (PermissionError(13, "Permission denied", "/x/w"), "/x/w: Permission denied."),
    (IsADirectoryError(21, "Is a directory", "a", None, "b"), "a -> b: Is a dir"),
    (WorkdirError("belongs"), "WorkdirError: belongs"),
    (RecordError("line 1"), "RecordError: line 1"),
  ],
)
def test_one_sentence_for_each_error(error, sentence):
  assert sentence in explain(error)
  assert len(explain(error).splitlines()) == 1


def test_a_folder_that_cannot_be_made(tiny, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError) as error:
    run(tiny(""), workdir=str(tmp_path / "file" / "w"))
  assert str(tmp_path / "file") in explain(error.value)
