"""Executes notebooks, stores what they show: ``python notebooks/execute.py [FILE]``.

The pages of a code host and the docs show what is stored; CI executes them anew.
"""

import os
from pathlib import Path
import sys

import nbclient
import nbformat

FOLDER = Path(__file__).parent


def execute(path: Path) -> None:
  """Executes one in place; keeps no times, and of the streams stdout alone."""
  notebook = nbformat.read(path, as_version=4)
  where = {"metadata": {"path": str(FOLDER)}}
  nbclient.NotebookClient(notebook, record_timing=False, resources=where).execute()
  notebook.metadata["language_info"] = {"name": "python"}  # Not the version.
  for cell in notebook.cells:
    if cell.cell_type == "code":
      cell.metadata.pop("execution", None)
      cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
  nbformat.write(notebook, path)


if __name__ == "__main__":
  os.environ.pop("MPLBACKEND", None)  # Figures belong into the notebook.
  for name in sys.argv[1:] or sorted(FOLDER.glob("*.ipynb")):
    print(name)
    execute(Path(name))
