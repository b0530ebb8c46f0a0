"""The newcomer's page: its file runs as it stands, in a table beside ours."""

import importlib.util
import re

import pytest

from mer_dg import experiments, methods, protocol
from tests.factories import quick_programs


@pytest.fixture(scope="module")
def page(repo_root, tmp_path_factory):
  """The page's file, imported as a config file is."""
  text = (repo_root / "docs" / "add_a_method.md").read_text()
  path = tmp_path_factory.mktemp("user") / "my_method.py"
  path.write_text(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1])
  spec = importlib.util.spec_from_file_location("my_method", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  yield module
  methods.SPECS.pop("agree")


def small(page):
  c = page.get_config()
  c.data.cooccurrence.update(
    num_domains=2, train_per_domain=32, val_per_domain=16, test_per_domain=16
  )
  c.network.update(embedding_dim=8, hidden_dim=8, classifier_dim=8)
  c.targets, c.seeds = ("d0",), (0,)
  c.total_steps = c.eval_every = c.log_every = 4
  return c


def test_a_users_method_is_a_row_of_the_table(page, tmp_path, capsys):
  c = small(page)
  c.methods = ("erm", "agree")
  with quick_programs():
    experiments.run(c, workdir=str(tmp_path))
  records = protocol.read_records(tmp_path / "results.jsonl")
  assert {r["method"] for r in records} == {"erm", "agree"}
  assert records[-1]["hyper"]["agree.weight"] == pytest.approx(0.3)
  assert "train/agree/confidence" in records[-1]["metrics"]
  assert "agree" in capsys.readouterr().out


def test_its_recipes_have_fields_to_change_and_messages(page):
  c = small(page)
  assert c.recipes.agree_strong.agree.weight == 1.0
  c.recipes.agree.agree.weight = -1.0
  with pytest.raises(experiments.ConfigError, match="agree.weight=-1.0 must lie"):
    experiments.validate(c)


def test_the_same_file_may_be_read_again_and_another_may_not(page):
  methods.register(methods.SPECS["agree"])
  other = methods.Spec("agree", lambda task, options: methods.Term())
  with pytest.raises(
    methods.MethodError, match=r"the term 'agree' exists already \(in "
  ):
    methods.register(other)
  recipe = methods.Spec("other", other.make, recipes={"agree": {"other": {}}})
  with pytest.raises(methods.MethodError, match="the method 'agree' exists already"):
    methods.register(recipe)
