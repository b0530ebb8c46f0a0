"""The report: the answer first, everything a reader uses, nothing that acts."""

from html.parser import HTMLParser
import re

import numpy as np
import pandas as pd
import pytest

from mer_dg import protocol, reporting
from mer_dg.reporting import linear, maps, provenance
from tests.reporting.test_golden import FOLDER

VOID = {"meta", "br", "hr", "img"}
EVIL = "<script>alert('x')</script>"


class Reader(HTMLParser):
  """Collects what a browser would see; fails on tags that do not nest."""

  def __init__(self, folder):
    super().__init__(convert_charrefs=True)
    self.open, self.tags, self.attributes, self.texts = [], [], [], []
    self.raw = (folder / "report" / "index.html").read_text()
    self.feed(self.raw)
    self.close()
    assert not self.open
    self.text = re.sub(r"\s+", " ", " ".join(self.texts))

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(k, v or "") for k, v in attrs]
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):  # <path/>, in SVG only.
    assert "svg" in self.open, tag
    self.attributes += [(k, v or "") for k, v in attrs]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] != "style":
      self.texts.append(data)

  def values(self, name):
    return [v for k, v in self.attributes if k == name]


def in_order(text, pieces):
  at = 0
  for piece in pieces:
    assert piece in text[at:], piece
    at = text.index(piece, at)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
  """Folder and Markdown of a report with everything in it."""
  folder = tmp_path_factory.mktemp("golden")
  (folder / "report").mkdir()
  points, label = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]), np.array([0, 1, 1])
  panels = [maps.EmbeddingMap("alone", m, points, (0.5, 0.3), label, label)
            for m in ("m0", "m1")]  # fmt: skip
  names = ("x", "y"), ("d0", "d1")
  found = maps.EmbeddingMaps("cooccurrence", "d0", 0, *names, tuple(panels))
  maps.write_maps(folder / "report", found)
  text = reporting.write_report(
    folder,
    protocol.read_records(FOLDER / "results.jsonl"),
    title="A first look",
    commands=["python main.py --config=x"],
    left_out=["heads, seed 7: stopped being finite"],
    methods=("erm", "heads", "mer_kde", "mm", "simmmdg"),
  )
  return folder, text


HEADINGS = (
  *("cooccurrence (m0 + m1)", "A first look", "Did it help?"),
  "Unimodal heads, MER (kde) and MM are worse than ERM.",
  *(
    "Unimodal heads: worse",
    "For these targets: 8 pairs",
    "Left out",
  ),
  *("heads, seed 7", "SimMMDG: no runs", "The numbers", "Over training"),
  *("Leaning on pairings", "With a modality missing", "Networks of the last step."),
  *("mean for m1", "With a modality corrupted", "m1: spikes", "Inside the embeddings"),
  *("domain told (%)", "Embeddings in two dimensions", "d0 held out, seed 0"),
  *("Calibration and other metrics", "nll (nats)", "Checkpoint selected on source"),
  *("Last step", "Oracle", "Where the numbers come from", "python main.py --config=x"),
  *("version 62fc58e09811", "mer.bandwidth 0.3", "How to read this"),
)


def test_page_and_markdown_have_everything_in_order(golden):
  folder, text = golden
  in_order(re.sub(r"[*\\]", "", text), HEADINGS)
  page = Reader(folder)
  in_order(page.text, HEADINGS)
  assert text == (folder / "report" / "report.md").read_text()
  assert text.startswith("# cooccurrence (m0 + m1)\n")
  assert page.tags.count("details") == 3  # The other rules are folded.
  assert page.text.index("Oracle") > page.text.index("Calibration")
  numbers = re.sub(r"\xa0", " ", page.text)
  for line in re.findall(r"^\| (.*) \|$", text, flags=re.MULTILINE):
    for cell in line.split("|"):  # The same numbers in both.
      assert set(cell.strip("*: -")) == set() or cell.strip(" *:-") in numbers, cell


def test_the_page_is_one_file_that_needs_nothing(golden):
  page = Reader(golden[0])
  assert not {"script", "link", "iframe", "object", "img"}.intersection(page.tags)
  assert set(re.findall(r"https?://[^\"' <]+", page.raw)) == {
    *("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")
  }
  assert "default-src 'none'" in page.values("content")[0]  # Whatever a name may try.
  for piece in ("prefers-color-scheme: dark", "@media print", "width=device-width"):
    assert piece in page.raw
  ids = page.values("id")
  assert len(ids) == len(set(ids)) > 50
  wanted = [v[1:] for k in ("href", "xlink:href") for v in page.values(k)]
  wanted += re.findall(r"url\(#(.*?)\)", " ".join(v for _, v in page.attributes))
  assert wanted
  assert set(wanted) <= set(ids)
  figures = page.tags.count("svg")
  assert figures == page.values("role").count("img") == len(page.values("aria-label"))
  assert figures > 15


def test_every_file_is_there_and_the_table_can_be_read(golden):
  folder, text = golden
  images = re.findall(r"\]\((.*?)\)", text)
  assert len(images) == len(set(images)) == Reader(folder).tags.count("svg")
  assert all((folder / "report" / name).exists() for name in images)
  papers = {p.stem for p in (folder / "report").glob("*.pdf")}
  assert papers == {"differences", "targets", "missing", "reliability"}
  found = pd.read_csv(folder / "report" / "table.csv")
  assert len(found) == 4 * 4 * 4 * 2  # Rules x methods x targets x seeds.
  mean = found.query("selection == 'source_val' and method == 'erm'")["value"].mean()
  assert mean == pytest.approx(0.61525)
  assert (folder / "report" / "table.tex").read_text().count(r"\begin{table}") == 4


def test_a_summary_ends_a_command(golden):
  folder, _ = golden
  lines = (folder / "report" / "summary.txt").read_text().splitlines()
  assert lines[0] == "Unimodal heads, MER (kde) and MM are worse than ERM."
  assert re.match(
    r"Largest: MER \(kde\) −5\.2 points \[−7\.4, −3\.0\], ahead", lines[1]
  )
  assert lines[2] == (
    "On source rows with modalities re-paired ERM loses 7.7 points. Not all is there: "
    "see the report."
  )
  assert lines[-1] == f"Report: {folder / 'report' / 'index.html'}"
  assert max(map(len, lines[:-1])) <= 100
  assert lines[4].split()[:2] == ["method", "mean"]
  assert lines[4].endswith("d3")
  assert lines[6].split()[:2] == ["ERM", "61.5"]
  assert len(lines) == 12


def test_names_from_the_data_are_shown_and_never_obeyed(tmp_path, experiment):
  """A modality, a method, a target and a dataset that look like markup."""
  rename = {"video": EVIL, "mer": 'a"b\x27<i>', "a": "&amp;<b>$x$"}

  def renamed(r):
    metrics = {k.replace("video", EVIL): v for k, v in r["metrics"].items()}
    metrics[f"target/without_{EVIL}/accuracy"] = 0.1
    return r | {
      "dataset": "<img src=x onerror=y>",
      "modalities": [rename.get(m, m) for m in r["modalities"]],
      "method": rename.get(r["method"], r["method"]),
      "target": rename.get(r["target"], r["target"]),
      "hyper": {EVIL: 1.0},
      "metrics": metrics,
    }

  text = reporting.write_report(
    tmp_path, [renamed(r) for r in experiment], title=EVIL, commands=[EVIL],
    left_out=[f"run {EVIL}"], methods=[f"no {EVIL}"],
  )  # fmt: skip
  page = Reader(tmp_path)
  assert not {"script", "i", "b", "img"}.intersection(page.tags)
  assert not [k for k, _ in page.attributes if k.startswith("on")]
  assert page.text.count(EVIL) > 10
  for name in ('a"b\x27<i>', "&amp;<b>$x$", "<img src=x onerror=y>"):
    assert name in page.text
  assert "<script" not in text
  assert "<img" not in text
  assert "&lt;script>" in text


def told(make, tmp_path, gains, *, metric="accuracy", seeds=8, targets="a", **options):
  """Headline and sentences on ERM at 0.5 and one method per gain."""
  records = []
  for name, gain in {"erm": 0.0, **gains}.items():
    for target in targets:
      for seed in range(seeds):
        gain_of = gain[target] if isinstance(gain, dict) else gain
        # Gains differ by a tenth between seeds.
        value = 0.5 + gain_of * (1 + 0.1 * (-1) ** seed)
        metrics = {f"val/{metric}": 0.9, f"target/{metric}": value}
        fields = dict(target=target, sources=["s"], seed=seed, metrics=metrics)
        records.append(make(method=name, **fields))
  text = reporting.write_report(tmp_path, records, metric=metric, **options)
  answer = text.split("## Did it help?")[1].split("## ")[0].strip()
  headline, *rest = answer.split("\n\n")
  return headline.strip("*"), "\n".join(rest)


@pytest.mark.usefixtures("undrawn")
class TestVerdict:
  """The generated sentences say what the statistics say, and no more."""

  def test_one_better_method(self, make, tmp_path):
    headline, text = told(make, tmp_path, {"mer": 0.1})
    start = "Yes: mer is 10.0 points better than ERM in target accuracy on a."
    assert headline == start
    assert "+10.0 points of target accuracy on a (95 % interval over seeds +9." in text
    assert (
      "For this target: 8 pairs of runs with equal seed and split, sign-flip p = 0.008."
    ) in text
    assert "One held-out domain says nothing about others: there is no interval" in text

  def test_lower_may_be_better(self, make, tmp_path):
    headline, _ = told(make, tmp_path, {"mer": -0.1})
    assert headline.startswith("No, it hurt: mer is 10.0 points worse than ERM in")
    headline, text = told(make, tmp_path, {"mer": -0.1}, metric="nll")
    assert headline == "Yes: mer is 0.100 nats better than ERM in target nll on a."
    assert "−0.100 nats of target nll on a" in text

  def test_targets_from_most_to_least_helped(self, make, tmp_path):
    gains = {"mer": {"a": 0.1, "b": -0.02, "c": 0.3}}
    _, text = told(make, tmp_path, gains, targets="abc")
    assert "on average over 3 held-out domains" in text
    assert (
      ", ahead on 2 of 3: from +30.0 on c to −2.0 on b. For these targets: 24" in text
    )
    # (.1 -.02 .3): mean .127, deviation .162; t(0.975, 2) = 4.30: half is .402.
    assert "(95 % interval over domains −27." in text
    assert "Student t over the 3 held-out ones (2 degrees of freedom)" in text

  def test_few_pairs_are_called_too_few(self, make, tmp_path):
    headline, text = told(make, tmp_path, {"mer": 0.4}, seeds=4)
    assert headline == (
      "Not shown: mer is not shown to differ from ERM (+40.0 points of target accuracy "
      "on a)."
    )
    # 2 / 2^4 = 0.125 is the least p of four pairs.
    assert "So few pairs cannot give p below 0.12, whatever the effect" in text
    assert "So few" not in told(make, tmp_path, {"mer": 0.4}, seeds=6)[1]
    # Six pairs reach 0.031, but not when Holm multiplies by two.
    headline, text = told(make, tmp_path, {"mer": 0.4, "mm": 0.3}, seeds=6)
    assert headline == "mer and MM are not shown to differ from ERM."
    assert text.count("after Holm's adjustment. So few pairs") == 2

  def test_methods_are_grouped_by_outcome(self, make, tmp_path):
    gains = {"up": 0.1, "down": -0.1, "same": 0.0, "up2": 0.2}
    headline, _ = told(make, tmp_path, gains, seeds=10)
    assert headline == (
      "up and up2 are better than ERM; down is worse than ERM; "
      "same is not shown to differ from ERM."
    )

  def test_many_methods_have_a_line_each_best_first(self, make, tmp_path):
    gains = {f"m{i}": 0.05 * i for i in range(-1, 7)}
    headline, text = told(make, tmp_path, gains, seeds=12)
    assert headline == (
      "6 methods are better than ERM, most of all m6 (+30.0 points); m-1 is worse "
      "than ERM; m0 is not shown to differ from ERM."
    )
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    assert [line[4:6] for line in lines] == [f"m{i}" for i in "6543210-"]
    # 2 / 2^12 times eight methods.
    assert re.match(
      r"- \*\*m6: better\*\*; \+30\.0 points \[.*\], p = 0\.004", lines[0]
    )
    assert "95 % intervals over seeds; p: sign-flip over pairs" in text
    assert "So few" not in text
    assert "so few pairs cannot" in told(make, tmp_path, gains, seeds=4)[1]

  def test_a_small_p_with_an_interval_around_zero_claims_nothing(self, make, tmp_path):
    # Large on one target, slightly negative on two.
    gains = {"mer": {"a": 0.3, "b": -0.01, "c": -0.01}}
    headline, text = told(make, tmp_path, gains, targets="abc")
    assert headline.startswith("Not shown")
    assert "So it differs here, but the interval over domains includes 0" in text

  @pytest.mark.parametrize(
    ("keep", "said"),
    [
      (lambda r: r["method"] == "mer", "there are no runs of ERM to compare mer with"),
      (lambda r: r["method"] == "erm", "ERM is the only method"),
      (
        lambda r: (r["method"] == "mer") == (r["target"] == "a"),
        "that pair with those",
      ),
    ],
  )
  def test_without_pairs_it_says_why(self, tmp_path, experiment, keep, said):
    records = [r for r in experiment if r["step"] == 20 and keep(r)]
    assert said in reporting.write_report(tmp_path, records)


@pytest.mark.usefixtures("undrawn")
def test_several_tables_have_an_overview_and_files_of_their_own(tmp_path, experiment):
  vary = lambda r, **fields: r | fields | {"run_id": f"{fields}{r['run_id']}"}
  last = [r for r in experiment if r["step"] == 20]
  records = [
    *experiment,
    *(vary(r, dataset="other/set", data_version="9") for r in last),
    *(vary(r, dataset="other/set", data_version="9", modalities=["video"])
      for r in last if r["method"] == "erm"),
  ]  # fmt: skip
  text = reporting.write_report(tmp_path, records, title="Two", methods=["erm", "mer"])
  assert text.startswith("# toy, other/set\n\nTwo\n")
  lines = re.search(r"### Overview\n\n((?:\|.*\n)+)", text)[1].splitlines()
  body = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
  assert body[0] == ["table", "targets", "ERM", "mer"]
  assert [line[0] for line in body[2:]] == [
    *("toy (video + audio)", "other/set (video + audio)", "other/set (video)")
  ]
  # Means of the fixture: ERM .42; MER .10 above it in every pair of six.
  assert re.fullmatch(r"\*42\.0 ± \d+\.\d\*", body[2][2])
  assert re.fullmatch(r"\*\*52\.0 ± \d+\.\d \(\+10\.0\*\)\*\*", body[2][3])
  assert body[4][3] == "–"
  assert "- mer: no runs (other/set (video))" in text
  # Pooled over the two with both modalities: four domains, the same gain on each.
  assert re.search(r"\| mer +\| +\+10\.0 \[.*\| +helps \|", text)
  summary = (tmp_path / "report" / "summary.txt").read_text()
  assert summary.startswith("All sets together. Against ERM, helps: mer.")
  names = {p.name for p in (tmp_path / "report").iterdir()}
  assert "targets-toy-video-audio.svg" in names
  assert "curves-other-set-video-audio-key.svg" not in names  # One step has no curve.


@pytest.mark.usefixtures("undrawn")
def test_a_grid_of_many_methods_has_a_line_for_each(tmp_path, experiment):
  more = [r | {"method": f"m{i}", "run_id": f"{i}{r['run_id']}"}
          for r in experiment for i in range(8) if r["method"] == "mer"]  # fmt: skip
  rows = [r for r in experiment + more if r["step"] == 20]
  other = [r | {"dataset": "other", "run_id": "o" + r["run_id"]} for r in rows]
  text = reporting.write_report(tmp_path, rows + other)
  table = re.search(r"### Overview\n\n((?:\|.*\n)+)", text)[1].splitlines()
  assert "toy (video + audio)" in table[0]
  assert [line.split("|")[1].strip() for line in table[2:5]] == [
    "targets",
    "ERM",
    "mer",
  ]
  panels = [p.name for p in (tmp_path / "report").glob("overview-*.svg")]
  lines = (tmp_path / "report" / "summary.txt").read_text().splitlines()
  assert max(map(len, lines[:-1])) <= 100
  assert sorted(panels) == [f"overview-{d}-video-audio.svg" for d in ("other", "toy")]


@pytest.mark.usefixtures("undrawn")
def test_linear_models_stand_beside_the_networks(tmp_path, experiment):
  rows, targets = list(experiment), sorted({r["target"] for r in experiment})
  table = reporting.group_of(rows[0])
  score = lambda x: dict.fromkeys(targets, x)
  models = [
    linear.ModelRow(linear.ALL, 0.9, score(0.95)),
    linear.ModelRow("audio", 0.8, score(0.98)),
  ]
  text = reporting.write_report(tmp_path, rows, linear={table: models})
  assert "### Linear models on the same splits" in text
  assert re.search(r"audio *\| *98\.0", text)
  assert "Fusion overfits: against 'audio'" in text
  assert re.search(r"ERM: it is \d+\.\d points behind a logistic regression", text)
  summary = (tmp_path / "report" / "summary.txt").read_text()
  assert "behind a logistic regression" in " ".join(summary.split())
  assert "Linear models" in (tmp_path / "report" / "index.html").read_text()
  # Of another table they are not shown.
  other = (table[0], (*table[1], "more"), table[2])
  assert "Linear" not in reporting.write_report(tmp_path, rows, linear={other: models})


@pytest.mark.usefixtures("undrawn")
def test_each_modality_alone_is_what_never_met(tmp_path, experiment):
  # Two modalities; the best one on sources is 20 points better than all on targets.
  only = {
    "val/only_video/accuracy": 0.85, "target/only_video/accuracy": 0.61,
    "val/only_audio/accuracy": 0.5, "target/only_audio/accuracy": 0.9,
  }  # fmt: skip
  uniform = [
    r | {"method": "uniform", "run_id": "u" + r["run_id"],
         "metrics": r["metrics"] | only}
    for r in experiment
    if r["method"] == "erm"
  ]  # fmt: skip
  text = reporting.write_report(tmp_path, [*experiment, *uniform])
  part = text.partition("### Each modality alone")[2].partition("###")[0]
  rows = [[c.strip() for c in x.split("|")[1:4]] for x in part.splitlines() if "|" in x]
  assert rows[2:] == [
    ["all modalities", "42.0", "90.0"],
    ["video", "61.0", "85.0"],
    ["audio", "90.0", "50.0"],
    ["average of the single ones", "42.0", "90.0"],
  ]
  said = (
    "Fusion overfits: against 'video', the best single one on source validation, all"
  )
  assert said in " ".join(part.split())
  summary = (tmp_path / "report" / "summary.txt").read_text()
  assert said in " ".join(summary.split())
  assert "Each modality alone" not in reporting.write_report(tmp_path, experiment)


@pytest.mark.usefixtures("undrawn")
def test_what_is_missing_is_named(tmp_path, experiment):
  last = [r for r in experiment if r["step"] == 20]
  part = [r for r in last if (r["method"], r["target"]) != ("mer", "b")]
  part = [r for r in part if (r["method"], r["target"], r["seed"]) != ("erm", "a", 1)]
  text = reporting.write_report(tmp_path, part, methods=["erm", "mer", "mer_kde"])
  in_order(text, [
    *("### Not there", "- MER (kde): no runs", "- ERM: 2 of 3 runs on a"),
    "- mer: no run on b",
  ])  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_the_headline_may_be_another_rule_and_two_settings_are_told_apart(
  tmp_path, experiment
):
  text = reporting.write_report(tmp_path, experiment, rule="re-paired_val")
  head, _, rest = text.partition("### Checkpoint selected on source validation\n")
  # ERM: step 30 is best on re-paired rows, step 20 on source validation.
  assert "**47.0" in head or "*47.0" in head
  assert "*42.0" in rest
  both = experiment + [
    r | {"tags": {"network.fusion": "gated"}, "run_id": "g" + r["run_id"]}
    for r in experiment
    if r["method"] == "erm"
  ]
  text = reporting.write_report(tmp_path, both)
  assert "| ERM [network.fusion=gated]" in text


def test_records_of_two_versions_are_refused_before_anything_is_written(tmp_path, make):
  mixed = [make(), make(method="mer", data_version="2")]
  with pytest.raises(ValueError, match="different data_version"):
    reporting.write_report(tmp_path, mixed)
  assert not list(tmp_path.iterdir())
  with pytest.raises(ValueError, match="no records"):
    reporting.write_report(tmp_path, [])


def test_provenance_says_what_a_repeat_needs(experiment, make):
  records = [r | {"hyper": {"mer.weight": 0.1 * r["seed"]}} for r in experiment]
  found = provenance.facts(records, commands=["python main.py --config=c.py"])
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
    "settings tried": ["mer 1, ERM 1"],
    "code": ["0123456789-dirty"],
    "protocol (hash of the config)": ["c0"],
    "device": ["2 cores of some CPU"],
    "hyperparameters of mer": ["mer.weight 0 or 0.1 or 0.2"],
    "hyperparameters of ERM": ["mer.weight 0 or 0.1 or 0.2"],
  }
  runs = [
    make(
      target=t, sources=[s], seed=seed, hyper={"w": seed / 4}, tags={"mer.kind": "kde"}
    )
    for t, s in (("a", "b"), ("c", "d"))
    for seed in (0, 1, 2, 4)
  ]
  found = provenance.facts(runs)
  assert "commands" not in found  # Nobody said them.
  assert found["target ← sources"] == ["a ← b", "c ← d"]
  assert found["seeds"] == ["0, 1, 2, 4"]
  assert found["hyperparameters of ERM"] == ["w 0 to 1", "mer.kind kde"]
