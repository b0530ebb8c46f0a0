"""The page: answers first, needs no network, and lets no name of the data act."""

from html.parser import HTMLParser
import re

import pytest

from mer_dg import reporting
from mer_dg.reporting import markup, provenance

VOID = {"meta", "br", "hr", "img"}
EVIL = "<script>alert('x')</script>"


class Reader(HTMLParser):
  """Collects what a browser would see; fails on tags that do not nest."""

  def __init__(self):
    super().__init__(convert_charrefs=True)
    self.open, self.tags, self.attributes, self.texts = [], [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, k, v or "") for k, v in attrs]
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):  # <path/>, in SVG only.
    assert "svg" in self.open, tag
    self.tags.append(tag)
    self.attributes += [(tag, k, v or "") for k, v in attrs]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] != "style":
      self.texts.append(data)

  def values(self, name):
    return [v for _, k, v in self.attributes if k == name]

  @property
  def text(self):
    return re.sub(r"\s+", " ", " ".join(self.texts))


def read(folder) -> Reader:
  reader = Reader()
  reader.feed((folder / "report" / "index.html").read_text())
  reader.close()
  assert not reader.open
  return reader


@pytest.fixture(scope="module")
def stressed(experiment):
  """The experiment with a third method, missing modalities and reliability bins."""
  records = []
  for r in experiment:
    half = {f"target/without_{m}/accuracy": r["metrics"]["target/accuracy"] / 2
            for m in ("video", "audio")}  # fmt: skip
    bins = {}
    for b in range(15):
      bins[f"target/reliability/{b:02d}/share"] = 1 / 15
      bins[f"target/reliability/{b:02d}/confidence"] = (b + 0.5) / 15
      bins[f"target/reliability/{b:02d}/accuracy"] = b / 15
    rank = {"effective_rank/audio": 3.0}
    records.append({**r, "metrics": r["metrics"] | half | bins | rank})
  mm = [
    {**r, "method": "mm", "run_id": "mm" + r["run_id"]}
    for r in experiment
    if r["method"] == "mer"
  ]
  return records + mm


@pytest.fixture(scope="module")
def toy(tmp_path_factory, stressed):
  """Folder of the report of the stressed experiment."""
  folder = tmp_path_factory.mktemp("toy")
  reporting.write_report(folder, stressed, title="Toy", commands=["python main.py"])
  return folder


def test_the_page_is_one_file_that_answers_before_it_shows(toy):
  page = read(toy)
  text = page.text
  order = [
    # Six pairs and two comparisons: p is 2 * 2 / 2^6 = 0.062 at best.
    *("Toy", "Did it help?", "mer and mm are not shown to differ from erm."),
    "◆ mer: not shown to differ",
    *("+10.0 points of target accuracy on average over 2 held-out domains", "How sure"),
    *("The numbers", "Ranks over targets", "Over training", "effective rank of audio"),
    *("With a modality missing", "Calibration", "Last step", "Oracle"),
    *(
      "Where the numbers come from",
      "python main.py",
      "toy, version 1.0",
      "How to read",
    ),
  ]
  places = [text.find(piece) for piece in order]
  assert -1 not in places, order[places.index(-1)]
  assert places == sorted(places)
  # Nothing is fetched: no address but the names of the two XML languages of SVG.
  raw = (toy / "report" / "index.html").read_text()
  assert set(re.findall(r"https?://[^\"' <]+", raw)) == {
    *("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")
  }
  assert not {"script", "link", "iframe", "object", "img"}.intersection(page.tags)
  assert "@import" not in raw
  assert "prefers-color-scheme: dark" in raw
  assert "@media print" in raw
  assert "width=device-width" in raw


def test_ids_are_unique_and_references_lead_somewhere(tmp_path, stressed):
  stressed = [r for r in stressed if r["step"] == 20]  # No curves: quicker.
  other = [{**r, "dataset": "other", "run_id": "o" + r["run_id"]} for r in stressed]
  reporting.write_report(tmp_path, stressed + other)
  page = read(tmp_path)
  ids = page.values("id")
  assert len(ids) == len(set(ids)) > 50
  wanted = [v[1:] for k in ("href", "xlink:href") for v in page.values(k)]
  wanted += re.findall(r"url\(#(.*?)\)", " ".join(v for _, _, v in page.attributes))
  assert wanted
  assert set(wanted) <= set(ids)
  assert "other (video + audio)" in page.text


def test_every_figure_has_words_for_who_cannot_see_it(toy):
  page = read(toy)
  assert page.tags.count("svg") == page.values("role").count("img") > 8
  assert all(page.values("aria-label"))


def test_names_from_the_data_are_shown_and_never_obeyed(tmp_path, stressed):
  """A modality, a method, a target and a dataset that look like markup."""
  rename = {"video": EVIL, "mer": 'a"b\x27<i>', "a": "&amp;<b>$x$"}

  def renamed(r):
    metrics = {k.replace("video", EVIL): v for k, v in r["metrics"].items()}
    return r | {
      "dataset": "<img src=x onerror=y>",
      "modalities": [rename.get(m, m) for m in r["modalities"]],
      "method": rename.get(r["method"], r["method"]),
      "target": rename.get(r["target"], r["target"]),
      "hyper": {EVIL: 1.0},
      "metrics": metrics,
    }

  records = [renamed(r) for r in stressed]
  reporting.write_report(
    tmp_path, records, title=EVIL, commands=[EVIL], left_out=[f"run {EVIL}"]
  )
  page = read(tmp_path)
  assert not {"script", "i", "b", "img"}.intersection(page.tags)
  assert not [k for _, k, _ in page.attributes if k.startswith("on")]
  # Title twice, modality, hyperparameter, command, diverged run, curves, bars.
  assert page.text.count(EVIL) > 8
  for name in ('a"b\x27<i>', "&amp;<b>$x$", "<img src=x onerror=y>"):
    assert name in page.text
  raw = (tmp_path / "report" / "index.html").read_text()
  assert "default-src 'none'" in raw.replace("&#x27;", "'")  # A second lock.


def test_best_and_second_are_marked_and_the_mean_comes_first(tmp_path, experiment):
  reporting.write_report(tmp_path, experiment)
  raw = (tmp_path / "report" / "index.html").read_text()
  head = re.search(r"<thead>(.*?)</thead>", raw)[1]
  assert re.findall(r"<th[^>]*>(.*?)</th>", head) == [
    *("method", "mean", "paired difference to erm", "source val.", "a", "b")
  ]
  assert "<strong>62.0 ± 7.5</strong>" in raw
  assert "<em>52.0 ± 5.0</em>" in raw
  assert '<div class="answer better">' in raw
  assert "▲ mer: better" in raw


def test_diverged_runs_stand_on_the_page_and_in_the_markdown(tmp_path, experiment):
  records = [r for r in experiment if r["step"] == 20]
  text = reporting.write_report(tmp_path, records, left_out=["erm, seed 7: gone"])
  assert "### Left out\n\n- erm, seed 7: gone\n" in text
  assert "erm, seed 7: gone" in read(tmp_path).text


@pytest.mark.parametrize(
  ("keep", "said"),
  [
    (lambda r: r["method"] == "mer", "no runs of erm to compare mer with"),
    (lambda r: r["method"] == "erm", "erm is the only method"),
    (
      lambda r: (r["method"] == "mer") == (r["target"] == "a"),
      "pair with those of erm on every target",
    ),
  ],
)
def test_without_pairs_the_page_says_why_there_is_no_answer(
  tmp_path, experiment, keep, said
):
  records = [r for r in experiment if r["step"] == 20 and keep(r)]
  reporting.write_report(tmp_path, records)
  assert said in read(tmp_path).text


def test_provenance_says_what_a_repeat_needs(experiment):
  records = [r | {"hyper": {"mer.weight": 0.1 * r["seed"]}} for r in experiment]
  found = dict(provenance.facts(records, commands=["python main.py --config=c.py"]))
  del found["time"]
  assert found == {
    "commands": ["python main.py --config=c.py"],
    "dataset": ["toy, version 1.0"],
    "modalities": ["video, audio"],
    "target ← sources": ["each of a, b ← all others of a, b, c"],
    "runs": ["12 runs, 36 evaluations"],
    "seeds": ["0 to 2"],
    "split seeds": ["0"],
    "evaluated at steps": ["10, 20, 30"],
    "settings tried": ["mer 1, erm 1"],
    "code": ["0123456789-dirty"],
    "protocol (hash of the config)": ["c0"],
    "device": ["2 cores of some CPU"],
    "hyperparameters of mer": ["mer.weight 0 or 0.1 or 0.2"],
    "hyperparameters of erm": ["mer.weight 0 or 0.1 or 0.2"],
  }


def test_provenance_of_other_shapes(make):
  """Sources of their own, words among the hyperparameters, many values."""
  runs = [
    make(
      target=t, sources=[s], seed=seed, hyper={"w": seed / 4}, tags={"mer.kind": "kde"}
    )
    for t, s in (("a", "b"), ("c", "d"))
    for seed in (0, 1, 2, 4)
  ]
  found = dict(provenance.facts(runs))
  assert "commands" not in found  # Nobody said them.
  assert found["target ← sources"] == ["a ← b", "c ← d"]
  assert found["seeds"] == ["0, 1, 2, 4"]
  assert found["hyperparameters of erm"] == ["w 0 to 1", "mer.kind=kde"]


def test_a_string_is_escaped_unless_it_says_it_is_markup():
  assert markup.tag("p", "<", markup.Markup("<br>"), ["&"]) == "<p>&lt;<br>&amp;</p>"
  assert markup.tag("a", href='"><b>') == '<a href="&quot;&gt;&lt;b&gt;"></a>'
