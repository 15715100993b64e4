# SPDX-License-Identifier: Apache-2.0
"""Hooks of mkdocs (mkdocs.yml), which make a site of pages that are written for reading in the repository.

A link may lead to any file of the repository: to one outside docs/, to a folder, with the anchors that code hosts
give to headings. Files outside docs/ that pages link to are put into the site, below repository/.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = "repository/"
"""Where the site has the files that are not in docs/."""

DECISIONS = "decisions/README.md"
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=#|\))")
ITEM = re.compile(r"(\d+\. +|[-*] +)\S")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Headings get the anchors of code hosts."""
    config.mdx_configs["toc"] = {"slugify": anchor, "toc_depth": 3}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the list of decisions, and every file outside docs/ that a page links to, or a page added so."""
    files.append(File.generated(config, DECISIONS, content=decisions()))
    todo = [f"docs/{file.src_uri}" for file in files.documentation_pages() if file.src_uri != DECISIONS]
    for path in todo:
        for link in LINK.findall((ROOT / path).read_text()):
            target = file_of(path, link)
            if target is None or target.startswith("docs/") or files.get_file_from_path(OUTSIDE + target):
                continue
            files.append(File.generated(config, OUTSIDE + target, abs_src_path=str(ROOT / target)))
            if target.endswith(".md"):
                todo.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links led to where the site has the files, and lists as Python-Markdown reads them."""
    here = page.file.src_uri
    source = here.removeprefix(OUTSIDE) if here.startswith(OUTSIDE) else f"docs/{here}"

    def led(link: re.Match[str]) -> str:
        target = file_of(source, link[0])
        if target is None:
            return link[0]
        uri = target.removeprefix("docs/") if target.startswith("docs/") else OUTSIDE + target
        return posixpath.relpath(uri, posixpath.dirname(here) or ".")

    return indented(LINK.sub(led, markdown))


def file_of(page: str, link: str) -> str | None:
    """The repository's file that a page's link means; of a folder its README.md. None for no file of it."""
    if "://" in link or link.startswith("mailto:"):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    if target == f"docs/{posixpath.dirname(DECISIONS)}":
        return f"docs/{DECISIONS}"
    if (ROOT / target).is_dir():
        target += "/README.md"
    return target if (ROOT / target).is_file() else None


def decisions() -> str:
    """The page that lists the decisions by their titles."""
    rows = []
    for path in sorted((ROOT / "docs/decisions").glob("0*.md")):
        number, _, title = path.read_text().partition("\n")[0].removeprefix("# ").partition(": ")
        rows.append(f"| [{number}]({path.name}) | {title} |")
    return "\n".join(
        ["# Decisions", "", "Reasons and rejected alternatives.", "", "| | |", "|---|---|", *rows, ""]
    )


def anchor(heading: str, _separator: str) -> str:
    """A heading's anchor, as code hosts derive it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def indented(markdown: str) -> str:
    """Markdown whose lists' items are continued at four columns, as Python-Markdown reads them.

    In CommonMark an item is continued at the width of its marker.
    """
    lines, width = [], 0
    for line in markdown.splitlines():
        if item := ITEM.match(line):
            width = len(item[1])
        elif line and not line.startswith(" "):
            width = 0
        belongs = width and line.startswith(" " * width)
        lines.append(" " * (4 - width) + line if belongs else line)
    return "\n".join(lines) + "\n"
