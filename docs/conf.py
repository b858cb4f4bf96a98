"""The site, offline: no font, script or picture of another host; ``make docs``.

What is made when it is built lies in ``docs/made``: copies of the notebooks with their stored outputs (nothing
is run), their cards' pictures, and the live pages of the gallery, where this version can make pages.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import command_line
import making
import references

import llava_probe as lp

project = "llava_probe"
author = "the llava_probe authors"
release = version = lp.__version__
copyright = "the llava_probe authors, Apache-2.0"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.githubpages",
    "sphinx_design",
    "sphinx_copybutton",
]
exclude_patterns = ["made/pages", "made/verbs.rst", "tables"]
nitpicky = True
smartquotes_action = "qe"  # quotes and ellipses; two hyphens begin an option
keep_warnings = True

# --- pages ---
myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js: dict[str, Any] = {}  # else its loader comes from another host
nb_mime_priority_overrides = [("html", "text/html", 0), ("html", "image/png", 10), ("html", "text/plain", 20)]

# --- the API ---
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # they are shown as written, by references.as_written
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # else two names in a line are a type and a name
add_module_names = False
toc_object_entries = False
nitpick_ignore_regex = references.ELSEWHERE

# --- the look ---
html_theme = "furo"
html_title = "llava_probe"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["made/pages"]
html_show_sourcelink = False
html_show_search_summary = False  # it fetches pages, which a browser refuses for a site opened from disk
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "friendly", "monokai"

myst_substitutions = making.gallery(HERE.parent, HERE / "made")
(HERE / "made" / "verbs.rst").write_text(command_line.verbs(), encoding="utf-8")


def setup(app: Any) -> None:
    """Signatures and docstrings are read in our own way; the numbers say before and after napoleon, which is at 500."""
    app.connect("missing-reference", references.documented)
    app.connect("doctree-resolved", references.linked)
    app.connect("autodoc-process-signature", references.as_written)
    app.connect("autodoc-process-docstring", references.in_our_words, priority=400)
    app.connect("autodoc-process-docstring", references.colons_again, priority=600)
