# SPDX-License-Identifier: Apache-2.0
"""The documentation's site: mkdocs.yml and script/lib/docs_site.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import docs_site
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "examples", "packaging", "embedded", "script/lib")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the site is made of."""
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "src"))
    for file in (*ROOT.glob("*.md"), ROOT / "mkdocs.yml", ROOT / "LICENSE"):
        shutil.copy(file, tmp_path)
    return tmp_path


def build(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a checkout, into its .cache/site."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]  # with --quiet nothing fails
    return subprocess.run(command, cwd=checkout, check=False, capture_output=True, text=True)


def test_links_to_files_outside_docs_lead_to_the_sites_copy(checkout: Path) -> None:
    built = build(checkout)
    assert built.returncode == 0, built.stderr
    site = checkout / ".cache/site"
    assert 'href="repository/packaging/index.html"' in (site / "index.html").read_text()
    assert 'href="../docs/' not in (site / "repository/packaging/index.html").read_text()
    assert (site / "repository/examples/kubelet.yaml").read_text() == (ROOT / "examples/kubelet.yaml").read_text()
    assert "0001-a-pod-is-a-ct.html" in (site / "decisions/index.html").read_text()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[x](nowhere.md)", "nowhere.md"),
        ("[x](../examples/nowhere.yaml)", "nowhere.yaml"),
        ("[x](kubelet.md#nowhere)", "#nowhere"),
        ("[x](../packaging/README.md#nowhere)", "#nowhere"),
    ],
)
def test_link_without_a_target_fails_the_build(checkout: Path, text: str, complaint: str) -> None:
    with (checkout / "docs/nri.md").open("a") as page:
        page.write(f"\n{text}\n")
    built = build(checkout)
    assert built.returncode != 0
    assert complaint in built.stderr


def test_page_without_a_place_in_the_navigation_fails_the_build(checkout: Path) -> None:
    (checkout / "docs/new.md").write_text("# New\n")
    built = build(checkout)
    assert built.returncode != 0
    assert "new.md" in built.stderr


def test_items_of_lists_are_continued_at_four_columns() -> None:
    text = "1. One:\n\n       code\n\n   more\n* Two:\n\n      code\n\nText:\n\n    code\n"
    assert docs_site.indented(text) == (
        "1. One:\n\n        code\n\n    more\n* Two:\n\n        code\n\nText:\n\n    code\n"
    )
