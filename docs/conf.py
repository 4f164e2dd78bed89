"""Sphinx: ``python -m sphinx -W --keep-going docs docs/_build/html`` (the extra ``docs``).

The reference is generated from the code by the package ``from_code``.
"""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "flask_c2meter"
copyright = "the flask_c2meter maintainers"
version = release = installed("flask_c2meter")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click", "from_code.directive"]
exclude_patterns = ["_build"]

# Pages link to each other's headings.
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True

# Help texts mark code as Markdown does.
default_role = "literal"

# Options and JSON are shown as they are typed.
smartquotes = False

html_theme = "furo"
html_title = "flask_c2meter"
# Nothing comes from another host.
html_theme_options = {"source_view_link": "", "top_of_page_buttons": []}
html_show_sphinx = False
html_copy_source = False
