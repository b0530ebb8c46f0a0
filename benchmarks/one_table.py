"""One Markdown table of the Markdown tables that benchmarks printed into a folder.

python benchmarks/one_table.py OUT    # OUT/*.txt, see all_gpu.sh
"""

from __future__ import annotations

from collections.abc import Iterator
import pathlib
import sys

_ENDS = 200  # characters of the last line of a benchmark that failed


def rows(text: str) -> Iterator[tuple[str, str]]:
  """``(case, "column value; ...")`` of each row; the first column is the case."""
  header: list[str] = []
  for line in text.splitlines():
    if not line.startswith("|"):
      header = []
      continue
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    if not header:
      header = cells
    elif set("".join(cells)) - set("-: "):
      pairs = zip(header[1:], cells[1:], strict=False)
      yield (
        f"{header[0]} {cells[0]}".strip(),
        "; ".join(f"{name} {value}".strip() for name, value in pairs),
      )


def main(folder: pathlib.Path) -> None:
  print("| benchmark | case | result |\n|---|---|---|")
  for path in sorted(folder.glob("*.txt")):
    text = path.read_text(errors="replace")
    device = next((x for x in text.splitlines() if x.lower().startswith("device")), "")
    if device:
      print(f"| {path.stem} | | {device} |")
    for case, result in rows(text):
      print(f"| {path.stem} | {case} | {result} |")
    last = text.strip().splitlines()[-2:]
    if last and last[-1].startswith("failed with"):
      print(f"| {path.stem} | | {last[-1]}: {last[0][:_ENDS].replace('|', '/')} |")


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
