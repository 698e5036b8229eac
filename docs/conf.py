"""How Sphinx builds the documentation, `make docs`: the Markdown files of the repository, at the paths that they have in it."""

import re
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

project = "lorank"
version = release = version_of("lorank")
copyright = "the lorank authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "results/**/*.md",
    "recipes/**/README.md",
    "src/**/README.md",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
exclude_patterns = [".*", "build", "dist", "downloads", "runs", "tests"]  # not even looked into

myst_heading_anchors = 4
default_role = "code"  # docstrings have code between single backticks, as Markdown has
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = "lorank"
html_copy_source = False
html_additional_pages = {"index": "to_docs_index.html"}
templates_path = ["templates"]

TABLE_ROW = re.compile(r"\s*\|(.+)\|\s*$")
EXTERNAL: set[str] = set()


def with_list_tables(lines: list[str]) -> list[str]:
    """Markdown tables of a docstring, as reStructuredText has them."""
    found: list[str] = []
    for number, line in enumerate(lines):
        match = TABLE_ROW.match(line)
        if match is None:
            found.append(line)
        elif set(match[1]) <= set("-| "):
            continue
        else:
            indent = " " * (len(line) - len(line.lstrip()))
            if number == 0 or not TABLE_ROW.match(lines[number - 1]):
                found += [f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
            first, *others = (cell.strip() for cell in re.split(r"(?<!\\)\|", match[1]))
            found += [f"{indent}   * - {first}", *(f"{indent}     - {cell}" for cell in others)]
    return found


def give_title(app: Sphinx, page: str, source: list[str]) -> None:
    """Tables that `lorank compare` has written begin without a heading, and a page needs one."""
    if page.endswith("/table"):
        source[0] = f"# All numbers of {Path(page).parent}\n\n{source[0]}"


def read_docstring(app: Sphinx, what: str, name: str, subject: Any, options: Any, lines: list[str]) -> None:
    """Google's sections. Not by the extension, which takes `SHA-256 over modules: ...` of a property for a type."""
    config = Config(napoleon_use_ivar=True, napoleon_use_rtype=False)
    kind = "method" if what == "property" else what
    lines[:] = GoogleDocstring(with_list_tables(lines), config, what=kind, name=name, obj=subject).lines()


def list_external_links(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Note where each page leads to outside of the documentation."""
    links = (node.get("refuri", "") for node in tree.findall(nodes.reference))
    EXTERNAL.update(f"{link}  {page}\n" for link in links if re.match("https?:", link))


def write_external_links(app: Sphinx, error: Exception | None) -> None:
    """The list, as `external_links.txt`. Nobody follows them here: a build needs no network."""
    if error is None:
        Path(app.outdir, "external_links.txt").write_text("".join(sorted(EXTERNAL)), encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Connect the above."""
    app.connect("source-read", give_title)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("doctree-resolved", list_external_links)
    app.connect("build-finished", write_external_links)
