"""Sphinx configuration. Build with: sphinx-build -W docs docs/_build"""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import _pages

_pages.make()

project = "mer-dg"
author = "The mer-dg authors"
copyright = "The mer-dg authors, Apache License 2.0"
_package = pathlib.Path(__file__).parents[1] / "mer_dg" / "__init__.py"
release = re.search(r'^__version__ = "(.+)"$', _package.read_text(), re.M)[1]

extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.autosummary",
  "sphinx.ext.mathjax",
  "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "results"]  # Reports, linked to as files.
html_theme = "furo"
html_title = f"mer-dg {release}"

# Notebooks are executed in CI and committed with what they showed (CONTRIBUTING.md).
nb_execution_mode = "off"
nb_output_stderr = "remove"  # Progress.

# The pages are read on a code host as well, where links lead out of docs/.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]

autosummary_generate = False  # The tables of a room link to its own page.
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # The docstrings give shapes and units, which types cannot.
napoleon_use_ivar = True  # Fields of a NamedTuple are otherwise described twice.
napoleon_use_rtype = False
