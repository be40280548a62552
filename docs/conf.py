"""The site: the notebooks as committed (never run here) and the API from the docstrings.  Built by `make site`.

What it adds to these files is in tools/site.py.
"""

import os
from typing import Any

# Loaded before autodoc does it in its own way, which pydantic's models do not survive.
from paperlib import __version__
from paperlib.companion import experiments, runner, workflow  # noqa: F401

project = "Understanding Diffusion Objectives: a companion"
author = "the paperlib contributors"
copyright = author
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "tools.site",
]
exclude_patterns = ["_build"]
html_theme = "sphinx_book_theme"
html_title = project
html_domain_indices = False  # api/index.md is one
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_extra"]  # tools/moving.py makes it
html_context = {"default_mode": "auto"}  # light or dark as the reader's system has it
mathjax_path = "mathjax/3.2.2/tex-svg-full.js"  # put there by tools/mathjax.py: pages need no network
html_theme_options: dict[str, Any] = {"show_toc_level": 2, "use_download_button": True}
if repository := os.environ.get("PAPERLIB_REPOSITORY"):
    # Where the site is built from a repository with an address: "open in Colab" and "open in Binder" on each notebook.
    html_theme_options |= {
        "repository_url": repository,
        "repository_branch": "main",
        "path_to_docs": "",  # the notebooks, which alone have these buttons, lie in notebooks/ here and there
        "use_repository_button": True,
        "launch_buttons": {
            "notebook_interface": "jupyterlab",
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
        },
    }

nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {
    "members": True,
    "undoc-members": False,
    "show-inheritance": True,
    "no-value": True,
    "ignore-module-all": True,
}
python_use_unqualified_type_names = True
napoleon_use_ivar = True
viewcode_follow_imported_members = False
