"""How Sphinx builds the documentation: `make docs`, offline, every warning an error."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

project = "ITA-MNER"
author = "The ITA-MNER developers"
[release] = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "notebooks"]
html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False
html_copy_source = False

# Links within and between pages go to headings, as they do where the pages are read as plain Markdown.
myst_heading_anchors = 4

# Docstrings are in Google style. Between single backticks stands code, as in Markdown.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# An override without a docstring would get that of transformers, whose Markdown is not ours.
autodoc_inherit_docstrings = False


def markdown_to_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Write the Markdown of a docstring as reStructuredText: inline code, blocks of code, and literal bars."""
    if what == "module":  # a block of four spaces is code; in other docstrings it may be a section's text
        for n in range(len(lines) - 2, 0, -1):
            if not lines[n] and lines[n + 1].startswith("    ") and not lines[n - 1].startswith("    "):
                lines[n : n + 1] = ["", "::", ""]
    text: list[str] = []
    for n, part in enumerate(
        re.split(r"^ *```(?:\w*)\n(.*?)^ *```$", "\n".join(lines), flags=re.DOTALL | re.MULTILINE)
    ):
        if n % 2:
            text.append("::\n\n" + "".join(f"    {line}\n" for line in part.split("\n")))
        else:
            text.append(re.sub(r"(?<!`)`([^`]+)`(?!`)(?=(\w?))|[|]", code_or_bar, part))
    lines[:] = "\n".join(text).split("\n")


def code_or_bar(found: re.Match[str]) -> str:
    """Two backticks around code, with a mark of its end where a letter follows; a bar as it is."""
    if found[0] == "|":
        return r"\|"
    return f"``{found[1]}``" + ("\\ " if found[2] else "")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", markdown_to_rst, priority=100)
