"""sweep(add) of a config file: checked before a cluster sees it."""

import pytest

from mer_dg.experiments import ConfigError, command_lines

FILE = """
from configs import cooccurrence

get_config = cooccurrence.get_config

def sweep(add):
  {body}
"""


@pytest.fixture
def sweep_file(tmp_path):
  def write(body):
    path = tmp_path / "my config.py"
    path.write_text(FILE.format(body=body))
    return str(path)

  return write


def test_fields_of_groups_and_words_for_a_shell(sweep_file):
  name = sweep_file("add(config_arg='d0', seeds=(1, 2), **{'optimizer.lr': 0.5})")
  (line,) = command_lines(name, workdir="/runs")
  assert f"'--config={name}:d0'" in line
  assert "'--config.seeds=(1, 2)' --config.optimizer.lr=0.5" in line


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("add(sed=1)", "config.sed is not a field"),
    ("add(seed='x')", "sweep: {'seed': 'x'}"),
    ("add(metric='f1')", "config.metric='f1' must be one of"),
  ],
)
def test_every_run_is_checked(sweep_file, body, message):
  with pytest.raises(ConfigError, match=message):
    command_lines(sweep_file(body))


def test_no_file_and_no_sweep(tmp_path):
  with pytest.raises(ConfigError, match="nowhere.py: no such file"):
    command_lines("nowhere.py")
  (tmp_path / "a.py").write_text("def get_config(): pass")
  with pytest.raises(ConfigError, match=r"has no sweep\(add\)"):
    command_lines(str(tmp_path / "a.py"))
