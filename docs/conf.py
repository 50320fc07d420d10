"""Sphinx's configuration of the documentation site, which `make docs` builds.

The source folder is the repository, so that a relative link leads to the same page on GitHub and in the site. The site
loads nothing from a network.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for the extension site_reference

project = "cubediff"
html_title = "cubediff"
html_show_copyright = False
html_theme = "furo"
html_extra_path = ["site"]  # index.html, which leads to the root document
html_static_path, html_css_files = ["static"], ["tables.css"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "site_reference"]

root_doc = "docs/index"
include_patterns = [
    "*.md",
    "data/README.md",
    "docs/**",
    "examples/README.md",
    "experiments/*/README.md",
    "experiments/walkthrough.ipynb",
]
# docs/index.md includes docs/README.md, the list of pages on GitHub. The other folders hold no pages.
exclude_patterns = ["docs/README.md", ".*", "build", "data/[!R]*", "dist", "experiments/runs", "src", "tests"]

myst_heading_anchors = 4  # as GitHub's
nb_execution_mode = "off"
highlight_language = "text"  # of blocks without a language

default_role = "py:obj"  # `name` in docstrings: a link where the name is documented
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # Lightning's hooks are documented by Lightning
maximum_signature_line_length = 88
# Without a network there are no inventories of other projects. py:obj is the role of all code in docstrings. The other
# names are types of arguments that are documented with the argument.
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:.*", r"(?!cubediff\.).*"),
    ("py:class", r"cubediff\..*(Options|Settings|Decoder|Canvas|PhotoCamera|Progress|T)"),
]
