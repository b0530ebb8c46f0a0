r"""The command of the package: ``mer-dg``, ``python -m mer_dg`` and main.py.

  mer-dg --config=cooccurrence [--workdir=DIR]     # a table
  mer-dg --config=cooccurrence:d1 [--workdir=DIR]  # one run
  mer-dg --config=features --config.data.path=FILE # your own data

A config is a file, or the name of one that is shipped. Any field of it can be set:
--config.total_steps=2000. The same command again goes on where it stopped; with another
method, seed or setting it trains what is missing. --help lists flags and fields.
"""

import ast
import contextlib
import itertools
import os
from pathlib import Path
import re
import shlex
import signal
import sys
import threading

from absl import app, flags, logging
from ml_collections import config_flags

import mer_dg

# Beside the package, in a checkout as in an installation.
CONFIGS = Path(mer_dg.__file__).resolve().parents[1] / "configs"
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Experiment: a file, or the name of a shipped one."
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  "",
  "Folder; default runs/NAME-HASH. The modes evaluate, report and diagnose find the "
  "config in it and need no --config.",
)
_MODE = flags.DEFINE_enum(
  "mode",
  "train",
  ["train", "evaluate", "report", "diagnose", "benchmark", "sweep"],
  "train one run or a table; evaluate the selected checkpoint of one run; report: "
  "tables and plots again; diagnose: probe encoders trained jointly and alone; "
  "benchmark: the tables of all sets, protocols and subsets of config.benchmark; "
  "sweep: print one command line per run.",
)
_DISTRIBUTED = flags.DEFINE_string(
  "distributed",
  "",
  "Share a table or benchmark with other hosts that run the same command on the same "
  "--workdir: 'auto' on Slurm, MPI and Cloud TPU, else 'ADDRESS:PORT,COUNT,INDEX'.",
)
_COMPILE_CACHE = flags.DEFINE_bool(
  "compile_cache",
  True,
  "Keep compiled programs for the next command, in ~/.cache/mer_dg (at most 1 GiB) or "
  "where JAX_COMPILATION_CACHE_DIR says.",
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
flags.DEFINE_bool("version", False, "Print the version and end.")


def parse(argv: list[str]) -> list[str]:
  """Parses flags; what is wrong in or with the config is a message, no traceback."""
  if "--version" in argv[1:]:
    print(f"mer-dg {mer_dg.__version__}")
    sys.exit(0)
  if {"--help", "-help", "-h", "-?"} & {*argv[1:]}:
    print(_help())
    sys.exit(0)
  try:
    flags.mark_flag_as_required("config")
    return flags.FLAGS(_completed(argv))
  except Exception as error:
    if "--debug" in argv:
      raise
    # Not flags.Error alone: ml_collections raises others for a field that does not
    # exist or has another type, and passes on whatever the config file raises.
    given = " ".join(word for word in argv[1:] if word.startswith("--config"))
    sys.exit(
      f"Wrong command line: {_message(error)}\nIt has {given or 'no --config'}. --help "
      "lists the fields and their defaults, --debug shows a traceback."
    )


def _help() -> str:
  """What the command does, its flags and the fields of a config."""
  from mer_dg.experiments.fields import help_text

  # The first line is a path.
  own = flags.FLAGS.module_help(sys.modules[__name__]).strip().partition("\n")[2]
  return f"{__doc__}\nflags:\n\n{own}\n\n{help_text()}"


# Modes that take the config of the workdir where none is given.
_OF_WORKDIR = ("evaluate", "report", "diagnose")
_STORED = CONFIGS / "_stored.py"
# Fields that take several names: erm,heads is what ('erm','heads') is.
_NAMES = (
  r"methods|targets|sources|data\.modalities|search\.encoders|benchmark\.protocols"
)
_LISTED = re.compile(rf"(--?config\.(?:{_NAMES}))=([^\W\d][^,()'\"]*(?:,[^,()'\"]+)+)")


def _completed(argv: list[str]) -> list[str]:
  """The words with the workdir's config where there is no other, and seeds counted.

  ``--config.methods=erm,heads`` names two methods.
  Kinds of modalities, of which no config knows the names, become one field.
  """
  count = re.compile(r"(--?config\.seeds)=([1-9]\d{0,3})")
  kind = re.compile(r"--?config\.data\.kinds\.(.+=\w+)")
  kinds = tuple(found[1] for word in argv[1:] if (found := kind.fullmatch(word)))
  argv = [word for word in argv if not kind.fullmatch(word)]
  argv += [f"--config.data.kinds={kinds!r}"] * bool(kinds)
  words = [argv[0]]
  for before, word in itertools.pairwise(argv):
    flag, sign, value = word.partition("=")
    if flag in ("--config", "-config") and sign:
      word = f"{flag}={_shipped(value)}"
    elif before in ("--config", "-config"):
      word = _shipped(word)
    elif found := count.fullmatch(word):  # ml_collections would make one seed of it.
      word = f"{found[1]}={tuple(range(int(found[2])))}"
    elif found := _LISTED.fullmatch(word):  # And one name with commas in it.
      word = f"{found[1]}={tuple(found[2].split(','))}"
    words.append(word)
  mode, workdir = _word(words, "mode"), _word(words, "workdir")
  given = any(re.match("--?config(=|$)", word) for word in words)
  if given or mode not in _OF_WORKDIR or not workdir:
    return words
  folder = Path(workdir).expanduser()
  if not (folder / "config.json").is_file():
    raise ValueError(f"--workdir={workdir} holds no config.json; give --config.")
  return [words[0], f"--config={_STORED}:{folder}", *words[1:]]


def _shipped(config: str) -> str:
  """``features:user_b``, or a path that is not there, as the file that is shipped."""
  name, colon, argument = config.partition(":")
  path = CONFIGS / f"{Path(name).stem}.py"
  ours = name in (path.stem, f"configs/{path.name}")
  if ours and path.is_file() and not Path(name).is_file():
    return f"{path}{colon}{argument}"
  return config


def _word(words: list[str], flag: str) -> str:
  """The value of a flag, as ``--flag=value`` or ``--flag value``; "" without one."""
  for word, after in itertools.pairwise([*words, ""]):
    if found := re.fullmatch(rf"--?{flag}(?:=(.*))?", word):
      return after if found[1] is None else found[1]
  return ""


def _listen() -> None:
  """Makes SIGTERM end the program as Ctrl-C does, and Ctrl-C be heard everywhere."""

  def terminate(*_):
    raise KeyboardInterrupt("Terminated.")

  signal.signal(signal.SIGTERM, terminate)
  ignored = sys.unraisablehook

  def again(what) -> None:
    # Python forgets an exception in a callback of the garbage collector (jax has one)
    # or in a destructor: the signal is sent again, to arrive outside of it.
    if not isinstance(what.exc_value, KeyboardInterrupt):
      ignored(what)
      return
    number = signal.SIGTERM if what.exc_value.args else signal.SIGINT
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()

  sys.unraisablehook = again


def _message(error: Exception) -> str:
  """What is wrong, without the traceback that ml_collections puts in front of it."""
  text = str(error.args[0]) if error.args else type(error).__name__
  if isinstance(error, SyntaxError):
    return f"no Python: {error}"
  if "Traceback" in text:
    return text.strip().splitlines()[-1]
  if isinstance(error, AttributeError | KeyError):
    with contextlib.suppress(SyntaxError, ValueError):
      text = ast.literal_eval(text)  # The name in quotes, perhaps with a suggestion.
    return f"no such config field: {text}".replace("\n", ". ")
  return text


def _command(argv: list[str]) -> str:
  """The command line as a person would type it again."""
  script = Path(argv[0]).name == "main.py"
  return shlex.join(["python", *argv] if script else ["mer-dg", *argv[1:]])


def main(argv: list[str]) -> None:
  """One call of `mer_dg.experiments` for what the flags say."""
  _listen()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  # Orbax tells every file it writes, and every error in full before it is raised.
  logging.set_verbosity(logging.WARNING if _DEBUG.value else logging.FATAL)
  holder = flags.FLAGS["config"]
  filename = config_flags.get_config_filename(holder).partition(":")[0]
  if not Path(filename).is_file():
    sys.exit(f"--config={filename}: no such file.")
  from mer_dg import experiments  # After the flags are known to be right.

  try:
    if _MODE.value == "sweep":
      overrides = config_flags.get_override_values(holder)
      for line in experiments.command_lines(
        filename, workdir=_WORKDIR.value, overrides=overrides
      ):
        print(line)
    else:
      experiments.keep_programs(_COMPILE_CACHE.value)
      experiments.join_hosts(_DISTRIBUTED.value)
      experiments.run(
        _CONFIG.value,
        workdir=_WORKDIR.value,
        mode=_MODE.value,
        name="" if Path(filename) == _STORED else Path(filename).stem,
        command=_command(sys.argv),
      )
  except Exception as error:
    sentence = experiments.explain(error)
    if _DEBUG.value or not sentence:
      raise
    if Path(filename) == _STORED and isinstance(error, experiments.ConfigError):
      sentence += (
        f" The config is that in {_WORKDIR.value}; --config=FILE gives another."
      )
    sys.exit(sentence)
  except KeyboardInterrupt as error:
    # The words of a signal handler; Ctrl-C has none.
    word = error.args[0] if error.args else "Interrupted."
    sys.exit(f"{word} The same command goes on from the last checkpoint.")


def run() -> None:
  """Parses the command line and runs it."""
  app.run(main, flags_parser=parse)


def cli() -> None:
  """`run` for ``mer-dg`` and ``python -m mer_dg``, with one thread for OpenBLAS.

  OpenBLAS's threads slow triangular solves (see main.py). Their number is read when jax
  is first imported, which importing this package did: hence the process starts anew.
  """
  if "OPENBLAS_NUM_THREADS" not in os.environ:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.execv(sys.executable, [sys.executable, "-m", "mer_dg", *sys.argv[1:]])
  run()


if __name__ == "__main__":
  cli()
