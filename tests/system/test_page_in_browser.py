"""The page in headless Chromium, on a desk and on a phone, light and dark."""

import html
import json
import re
import shutil
import subprocess

import pytest

from mer_dg import protocol, reporting
from tests.reporting.test_golden import FOLDER

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]

# Runs in the page: what is cut, what overlaps, what is too pale to read.
LOOK = r"""
const wide = [document.documentElement, ...document.querySelectorAll(".scroll")]
  .filter(e => e.scrollWidth > e.clientWidth)
  .map(e => [e.className, e.scrollWidth, e.clientWidth]);
document.querySelectorAll("details").forEach(e => e.open = true);
const level = c => {
  const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v / 12.92
                               : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const channels = text => text.match(/[\d.]+/g).map(Number);
const behind = e => {
  for (; e; e = e.parentElement) {
    const c = channels(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c.slice(0, 3);
  }
  return [255, 255, 255];
};
const pale = new Set(), over = new Set();
const own = e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
const all = document.body.querySelectorAll("*:not(style):not(script)");
const texts = [...all].filter(own);
for (const e of texts) {
  const style = getComputedStyle(e), svg = e.closest("svg");
  const ink = level(channels(svg ? style.fill : style.color).slice(0, 3));
  const paper = level(behind(svg || e));
  const ratio = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
  if (ratio < 4.5) pale.add(`${e.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
}
for (const svg of document.querySelectorAll("svg")) {
  const boxes = [...svg.querySelectorAll("text")]
    .map(e => [e.textContent.trim(), e.getBoundingClientRect()]);
  boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
    const width = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const height = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    // Boxes hold the line's leading: a third of a line is no overlap of letters.
    if (width > 1 && height > p.height / 3) over.add(`${a} | ${b}`);
  }));
}
const found = {wide, pale: [...pale], over: [...over], width: innerWidth,
               dark: matchMedia("(prefers-color-scheme: dark)").matches,
               texts: texts.length};
parent.postMessage(JSON.stringify(found), "*");
"""
# A window is at least 500 px wide; a frame is as narrow as a phone.
FRAME = """<iframe src="look.html" style="width: {width}px; height: 900px; border: 0">
</iframe><script>
onmessage = e => document.body.append("FOUND" + e.data + "END")
</script>
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
  """Reports of a few methods, and of many on two sets, with a script that looks."""
  records = protocol.read_records(FOLDER / "results.jsonl")
  known = ("simmmdg", "md", "late", "pmr", "heads+md", "mixup", "ema", "swad", "sam")
  more = [
    r | {"method": m, "run_id": m + r["run_id"]}
    for r in records for m in known if r["method"] == "mer_kde"
  ]  # fmt: skip
  other = {"dataset": "gesture_phase", "modalities": ["hands and wrists", "velocity"]}
  second = [r | other | {"run_id": "g" + r["run_id"]} for r in records + more]
  found = {}
  for name, rows in {"few": records, "many": records + more + second}.items():
    folder = tmp_path_factory.mktemp(name)
    reporting.write_report(folder, rows, methods=("erm", "dann"), left_out=["mm: NaN"])
    text = (folder / "report" / "index.html").read_text()
    text = re.sub(r'<meta http-equiv="Content-Security.*?>', "", text)
    found[name] = folder / "look.html"
    found[name].write_text(text.replace("</body>", f"<script>{LOOK}</script></body>"))
  return found


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["few", "many"])
def test_nothing_is_cut_overlaps_or_is_too_pale(pages, tmp_path, name, width, dark):
  frame = pages[name].with_name(f"{width}.html")
  frame.write_text("<!DOCTYPE html><body>" + FRAME.format(width=width))
  words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
  words += [f"--user-data-dir={tmp_path}", "--window-size=1400,1000"]
  words += ["--hide-scrollbars", "--virtual-time-budget=10000", frame.as_uri()]
  words += ["--force-dark-mode"] * dark
  done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
  found = json.loads(html.unescape(re.search(r"FOUND({.*})END", done.stdout)[1]))
  assert (found["width"], found["dark"]) == (width, dark)
  assert found["texts"] > 300  # It did look.
  assert (found["wide"], found["pale"], found["over"]) == ([], [], [])
