"""The command line as a user types it; once, and to be killed, in its own process."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time

from absl import flags
from absl.testing import flagsaver
import pytest

from tests.factories import quick_programs

TINY = """
total_steps=20 eval_every=10 log_every=5 network.embedding_dim=8
network.hidden_dim=16 network.classifier_dim=16 network.projector_dim=16
network.projection_dim=8 data.cooccurrence.num_domains=3
data.cooccurrence.train_per_domain=40 data.cooccurrence.val_per_domain=30
data.cooccurrence.test_per_domain=30 data.cooccurrence.widths=(6,5)
"""
FLAGS = [f"--config.{word}" for word in TINY.split()]
CONFIG = "--config=configs/cooccurrence.py"


@pytest.fixture
def program():
  """The command as a module, with its signal handlers taken back afterwards."""
  import mer_dg.__main__ as module

  handler, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
  yield module
  signal.signal(signal.SIGTERM, handler)
  sys.unraisablehook = hook


@pytest.fixture
def main(program, repo_root, monkeypatch, capsys):
  """``main(*words) -> (exit code, stdout, stderr)``, in this process."""
  monkeypatch.chdir(repo_root)

  def call(*words):
    argv, code = ["main.py", *map(str, words)], 0
    monkeypatch.setattr(sys, "argv", argv)
    capsys.readouterr()
    with flagsaver.flagsaver():
      flags.FLAGS.unparse_flags()
      try:
        program.main(program.parse(argv))
      except SystemExit as ended:  # What Python makes of one with a sentence.
        print(ended.code, file=sys.stderr)
        code = 1
    return code, *capsys.readouterr()

  return call


def test_one_run_then_the_same_command_then_evaluate_and_report(
  main, repo_root, tmp_path
):
  words = ("--config=configs/cooccurrence.py:d1", f"--workdir={tmp_path}", *FLAGS)
  ended = subprocess.run(
    [sys.executable, "main.py", *words],
    cwd=repo_root,
    env=os.environ | {"PYTHONPATH": ""},
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  out, err = ended.stdout, ended.stderr
  assert ended.returncode == 0, err
  assert f"Workdir: {tmp_path}" in out
  # Progress: the loss terms and the entropy of each modality.
  assert re.search(r"loss \S+ H\[m0\] \S+ H\[m1\] \S+ fused \S+ mer", err)
  assert "step 20: source validation accuracy" in err
  assert "target" not in err.partition("step 10")[2]  # Nobody peeks.
  assert (tmp_path / "done").exists()
  records = (tmp_path / "results.jsonl").read_text()

  code, out, err = main(*words)
  assert code == 0, err
  page = tmp_path / "report" / "index.html"
  assert out == f"Finished already: nothing to train.\nReport: {page}\n"
  assert "step/s" not in err
  assert (tmp_path / "results.jsonl").read_text() == records

  # The folder says the rest.
  code, out, err = main(f"--workdir={tmp_path}", "--mode=evaluate")
  assert code == 0, err
  found = json.loads((tmp_path / "evaluation.json").read_text())
  by_step = {r["step"]: r["metrics"] for r in map(json.loads, records.splitlines())}
  assert found["metrics"] == by_step[found["step"]]
  assert f"{found['metrics']['target/accuracy']:.4f}" in out

  table = (tmp_path / "report" / "report.md").read_text()
  (tmp_path / "report" / "report.md").unlink()
  code, out, err = main("--mode", "report", "--workdir", tmp_path)
  assert code == 0, err
  assert (tmp_path / "report" / "report.md").read_text() == table
  assert (tmp_path / "report" / "summary.txt").read_text().strip() in out


def test_a_search_then_a_table(main, tmp_path):
  """2 methods x 2 targets x 2 seeds, after a search with 2 trials."""
  space = "{'mer_kde':{'mer':{'weight':(0.01,1.0)}}}"
  words = (
    f"{CONFIG} --config.methods=('erm','mer_kde') --config.targets=('d0','d1') "
    f"--config.seeds=(0,1) --config.search.trials=2 --config.search.space={space}"
  )
  with quick_programs():
    code, out, err = main(*words.split(), f"--workdir={tmp_path}", *FLAGS)
  assert code == 0, err
  table = (tmp_path / "report" / "report.md").read_text()
  assert out.endswith((tmp_path / "report" / "summary.txt").read_text())
  assert re.search(r"\| method +\|.* d0 .* d1 ", table)
  assert re.search(r"1\D+4 hyperparameter settings tried", table)
  for plot in ("targets", "differences"):
    assert (tmp_path / "report" / f"{plot}.svg").stat().st_size > 1000
  read = lambda name: [*map(json.loads, (tmp_path / name).read_text().splitlines())]
  searched, final = read("search.jsonl"), read("results.jsonl")
  assert {r["seed"] for r in searched} == {100, 101}
  assert {r["seed"] for r in final} == {0, 1}
  # ERM once, MER as the default, with weight 0 and two draws; 2 targets, 2 seeds, 2
  # evaluations.
  assert len(searched) == (1 + 4) * 2 * 2 * 2
  assert len(final) == 2 * 2 * 2 * 2
  assert {r["method"]: r["trials"] for r in final} == {"erm": 1, "mer_kde": 4}
  weights = lambda rows: {
    (r["target"], r["hyper"]["mer.weight"]) for r in rows if r["method"] == "mer_kde"
  }
  assert len(weights(searched)) == 2 * 4
  assert weights(final) <= weights(searched)


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--config=missing.py"], "--config=missing.py: no such file"),
    ([], "Flag --config must have a value"),
    ([CONFIG, "--config.nofield=3"], "no such config field: 'nofield'"),
    ([CONFIG, "--config.sed=3"], 'Did you mean "seed" instead of "sed"'),
    ([CONFIG, "--config.optimizer.lr=fast"], "--config.optimizer.lr=fast"),
    ([CONFIG, "--nonsense=3"], "Unknown command line flag 'nonsense'"),
    (["--config.seed=1", CONFIG], "--config.seed=1 in argv before"),
    (["--config=configs/av_digits.py:mars"], "target='mars' is not one of"),
    (["--config=README.md"], "no Python: "),
    (["--mode=report", "--workdir=/tmp/none"], "/tmp/none holds no config.json; give"),
  ],
)
def test_a_wrong_command_line_is_one_paragraph_at_once(main, words, message):
  code, out, err = main(*words)
  assert code != 0
  assert message in err
  assert "Traceback" not in err
  assert len(err.strip().splitlines()) <= 2
  assert out == ""


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--config.batch_size=1000000"], "ConfigError: config.batch_size=1000000 "),
    (["--config=configs/cooccurrence.py:d77"], "DataError: .*'d77' is not one of"),
    (["--mode=evaluate"], "--mode=evaluate takes one run"),
  ],
)
def test_a_wrong_value_leaves_nothing_behind(main, tmp_path, words, message):
  head = [] if words[0].startswith("--config=") else [CONFIG]
  code, _, err = main(*head, *words, f"--workdir={tmp_path / 'w'}")
  assert code == 1
  assert re.search(message, err)
  assert "Traceback" not in err
  assert not (tmp_path / "w").exists()
  with pytest.raises(Exception, match=message.partition(": ")[2] or message):
    main(*head, *words, "--debug")  # The traceback is there if asked for.


@pytest.mark.parametrize(
  ("word", "meant"),
  [
    ("--config.seeds=3", "--config.seeds=(0, 1, 2)"),
    ("-config.seeds=1", "-config.seeds=(0,)"),
    ("--config.seeds=(3,)", "--config.seeds=(3,)"),
    ("--config.seeds=0", "--config.seeds=0"),
    ("--config.seed=3", "--config.seed=3"),
    ("--config.search.seeds=3", "--config.search.seeds=3"),
    ("--config.methods=erm,heads+md", "--config.methods=('erm', 'heads+md')"),
    ("--config.targets=user a,user b", "--config.targets=('user a', 'user b')"),
    ("--config.methods=('erm',)", "--config.methods=('erm',)"),
    ("--config.data.path=a,b", "--config.data.path=a,b"),
  ],
)
def test_a_number_of_seeds(program, word, meant):
  assert program._completed(["main.py", CONFIG, word]) == ["main.py", CONFIG, meant]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_has_flags_and_fields(program, capsys, flag):
  with pytest.raises(SystemExit) as ended:
    program.parse(["mer-dg", flag])
  assert ended.value.code == 0
  shown = capsys.readouterr().out
  assert "\n  --workdir: Folder" in shown
  assert "\n  --config.data.val_fraction=0.2\n    Of each source domain" in shown
  assert "\n  --config.network.fusion='concat'\n    one of ('concat', " in shown
  assert max(map(len, shown.splitlines())) <= 88


@pytest.mark.parametrize("flag", [["--config={}"], ["--config", "{}"]])
def test_a_shipped_config_is_a_name_everywhere(program, monkeypatch, tmp_path, flag):
  meant = lambda config: program._completed(["x", *(w.format(config) for w in flag)])
  path = program.CONFIGS / "features.py"
  assert path.is_file()
  for given in ("features", "configs/features.py"):
    monkeypatch.chdir(tmp_path)  # An empty folder.
    assert meant(f"{given}:u")[-1].endswith(f"{path}:u")
    assert "".join(meant(given)).endswith(str(path))
    monkeypatch.chdir(program.CONFIGS.parent)
  own = tmp_path / "features.py"
  for given in ("configs/features.py", str(own), "else/features.py", "nothing"):
    assert "".join(meant(given)).endswith(given)  # A file, or none: as it is.
  monkeypatch.chdir(tmp_path)
  (tmp_path / "features").write_text("")
  assert "".join(meant("features")).endswith("features")


def test_the_command_of_a_report_can_be_typed_again(program):
  argv = ["main.py", "--config=a b.py"]
  assert program._command(argv) == "python main.py '--config=a b.py'"
  argv[0] = "/venv/bin/mer-dg"
  assert program._command(argv) == "mer-dg '--config=a b.py'"


def test_kinds_of_modalities_that_no_config_knows(program):
  given = ["--config.data.kinds.imu=vector", "--x=1", "-config.data.kinds.a.b=clip"]
  expected = ["--x=1", "--config.data.kinds=('imu=vector', 'a.b=clip')"]
  assert program._completed(["main.py", CONFIG, *given]) == [
    "main.py",
    CONFIG,
    *expected,
  ]


def test_a_workdir_is_enough_to_look_at_it(program, tmp_path):
  (tmp_path / "config.json").write_text('{"seeds": [0, 1], "data": {"path": "x"}}')
  for words in ([f"--workdir={tmp_path}", "--mode=report"],
                ["--mode", "diagnose", "--workdir", str(tmp_path)]):  # fmt: skip
    found = program._completed(["main.py", *words])
    assert found[1].startswith("--config=")
    assert found[2:] == words
  given = ["main.py", "--config=x.py", f"--workdir={tmp_path}", "--mode=report"]
  assert program._completed(given) == given
  trained = ["main.py", f"--workdir={tmp_path}"]
  assert program._completed(trained) == trained
  from configs import _stored

  config = _stored.get_config(str(tmp_path))
  assert config.seeds == (0, 1)
  assert config.data.path == "x"


@pytest.mark.parametrize(
  ("number", "word"), [(signal.SIGINT, None), (signal.SIGTERM, "Terminated.")]
)
def test_a_signal_is_heard_in_a_callback_of_the_garbage_collector(
  program, number, word
):
  """Python prints and forgets what is raised there; jax has such a callback."""

  def interrupted(phase, _):
    if phase == "start" and interrupted in gc.callbacks:
      gc.callbacks.remove(interrupted)
      os.kill(os.getpid(), number)
      time.sleep(0.5)

  # A shell that starts tests in the background has them ignore Ctrl-C.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    program._listen()
    gc.callbacks.append(interrupted)
    with pytest.raises(KeyboardInterrupt, match=word):
      gc.collect()
      time.sleep(5)
  finally:
    signal.signal(signal.SIGINT, before)


def test_a_terminated_run_says_so_and_ends_as_an_interrupted_one(repo_root, tmp_path):
  words = ["main.py", f"{CONFIG}:d1", f"--workdir={tmp_path / 'w'}", *FLAGS]
  words += ["--config.total_steps=100000000", "--config.eval_every=100000000"]
  running = subprocess.Popen(
    [sys.executable, *words],
    cwd=repo_root,
    env=os.environ | {"PYTHONPATH": "", "PYTHONUNBUFFERED": "1"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert running.stdout.readline().startswith("Workdir: ")
  running.terminate()
  _, err = running.communicate(timeout=120)
  assert running.returncode == 1
  assert err.strip().endswith(
    "Terminated. The same command goes on from the last checkpoint."
  )
  assert "Traceback" not in err


def test_a_sweep_is_one_command_per_run(main, tmp_path):
  code, out, err = main(
    CONFIG, "--mode=sweep", "--config.optimizer.lr=0.1", f"--workdir={tmp_path}"
  )
  assert code == 0, err
  lines = out.splitlines()
  assert lines[0] == (
    "python main.py --config=configs/cooccurrence.py:d0 --config.optimizer.lr=0.1 "
    f"--config.seed=0 --workdir={tmp_path}/d0-optimizer.lr=0.1-seed=0"
  )
  assert len(set(lines)) == len(lines) == 20
  code, _, err = main("--config=configs/features.py", "--mode=sweep")
  assert code == 1
  assert "configs/features.py has no sweep(add); --mode=sweep needs one." in err
