# SPDX-License-Identifier: Apache-2.0
"""The documentation matches the code, and its links have targets."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from pvecri.config import files
from pvecri.config.settings import Config, Section
from pvecri.cri.image_service import ImageService
from pvecri.cri.proto import cri_pb2
from pvecri.cri.runtime_service import RuntimeService
from pvecri.cri.server import snake_case

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src/pvecri"
ARCHITECTURE = (DOCS / "architecture.md").read_text()
SERVICES = {"RuntimeService": RuntimeService, "ImageService": ImageService}


def settings() -> Iterator[str]:
    """Every `section.key` of the configuration file."""
    for section in msgspec.structs.fields(Config):
        assert isinstance(section.type, type)
        assert issubclass(section.type, Section)
        for setting in msgspec.structs.fields(section.type):
            yield f"{section.name}.{setting.name}"


def calls() -> Iterator[tuple[str, str, bool]]:
    """Every call of the CRI: its service, its name, and whether it has a method here."""
    for name, implementation in SERVICES.items():
        for method in cri_pb2.DESCRIPTOR.services_by_name[name].methods:
            yield name, method.name, hasattr(implementation, snake_case(method.name))


@pytest.mark.parametrize("setting", list(settings()))
def test_configuration_page_has_a_row_for_every_setting(setting: str) -> None:
    assert re.search(rf"^\| `{re.escape(setting)}` \|", (DOCS / "configuration.md").read_text(), re.MULTILINE)


def test_configuration_page_has_no_setting_that_does_not_exist() -> None:
    documented = re.findall(r"^\| `(\w+\.\w+)` \|", (DOCS / "configuration.md").read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(settings())


def test_configuration_page_has_the_defaults() -> None:
    page = (DOCS / "configuration.md").read_text()
    for section in msgspec.structs.fields(Config):
        for setting in msgspec.structs.fields(type(section.default)):
            if isinstance(setting.default, str | int | float):
                written = msgspec.json.encode(setting.default).decode()
                row = rf"^\| `{section.name}\.{setting.name}` \| [^|]* \| `{re.escape(written)}` \|"
                assert re.search(row, page, re.MULTILINE), f"{section.name}.{setting.name} is {written}"


@pytest.mark.parametrize(("service", "name", "answered"), list(calls()))
def test_cri_page_says_of_every_call_whether_it_is_implemented(service: str, name: str, answered: bool) -> None:
    word = "yes" if answered else "UNIMPLEMENTED"
    row = re.search(rf"^\| `{name}` \| ([^|]*) \|", (DOCS / "cri.md").read_text(), re.MULTILINE)
    assert row is not None, f"docs/cri.md has no row for {service}.{name}"
    assert row[1].strip() == word


def fields() -> Iterator[str]:
    """Every `Message.field` that a request for a pod, a container or an image can carry, but for Windows."""
    todo = ["PodSandboxConfig", "ContainerConfig", "AuthConfig"]
    leaves = ("Windows", "KeyValue", "Int64Value", "IDMapping", "SELinuxOption", "HugepageLimit", "Metadata")
    for name in todo:
        for field in cri_pb2.DESCRIPTOR.message_types_by_name[name].fields:
            if field.name == "windows":
                continue
            yield f"{name}.{field.name}"
            below = field.message_type
            if below is None or below.GetOptions().map_entry or below.name in todo:
                continue
            if not any(leaf in below.name for leaf in leaves):
                todo.append(below.name)


def test_page_of_fields_has_a_row_for_every_field_and_no_other() -> None:
    documented = re.findall(r"^\| `(\w+\.\w+)` \|", (DOCS / "cri-fields.md").read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(fields())


def test_example_configuration_is_valid() -> None:
    files.load(ROOT / "examples/config.toml")


@pytest.mark.parametrize("page", sorted(path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")), ids=str)
def test_links_of_a_page_have_targets(page: Path) -> None:
    check_links(ROOT / page)


@pytest.mark.parametrize("page", ["README.md", "packaging/README.md"])
def test_links_of_a_readme_have_targets(page: str) -> None:
    check_links(ROOT / page)


def test_index_of_the_documentation_names_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    paths = (path for folder in (".", "operations", "guides") for path in (DOCS / folder).glob("*.md"))
    pages = [str(path.relative_to(DOCS)) for path in paths]
    assert [page for page in pages if f"({page})" not in index and page != "README.md"] == []


@pytest.mark.parametrize("guide", sorted((DOCS / "guides").glob("*.md")), ids=lambda path: path.stem)
def test_guide_begins_with_what_of_it_was_run(guide: Path) -> None:
    assert re.search(r"^\*(Run|Not run)\b", guide.read_text().partition("\n## ")[0], re.MULTILINE)


def test_example_kubelet_configuration_matches_the_defaults() -> None:
    sample = yaml.safe_load((ROOT / "examples/kubelet.yaml").read_text())
    vmids = Config().proxmox.vmid_range
    assert sample["containerRuntimeEndpoint"] == f"unix://{Config().runtime.socket}"
    assert sample["maxPods"] <= vmids.last - vmids.first + 1
    assert sample["featureGates"] == {"PodAndContainerStatsFromCRI": True}


def test_architecture_page_lists_every_package_and_module_of_the_top() -> None:
    picture = ARCHITECTURE.split("## Packages")[1].split("## ")[0]
    listed = {
        path
        for line in picture.splitlines()
        if line.startswith("    ")
        for path in re.findall(r"[\w/]+(?:/|\.py)(?=[,\s])", line[:32])
    }
    packages = {f"{path.parent.relative_to(PACKAGE)}/" for path in PACKAGE.rglob("__init__.py")} - {"./"}
    modules = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    assert listed == {name for name in packages | modules if not name.endswith("proto/")}


def steps() -> Iterator[tuple[str, str]]:
    """Every file and function in the tables of docs/architecture.md that follow a CRI call through the code."""
    yield from re.findall(r"^\| `([\w/]+\.py)` \| `([\w.]+)` \|", ARCHITECTURE, re.MULTILINE)


def definitions(node: ast.AST, prefix: str = "") -> Iterator[str]:
    """The qualified names of all classes and functions in a module, nested ones as `outer.inner`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name
            yield from definitions(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize(("file", "function"), list(steps()))
def test_every_function_that_the_architecture_page_names_exists(file: str, function: str) -> None:
    assert function in set(definitions(ast.parse((PACKAGE / file).read_text())))


@pytest.mark.parametrize("call", ["RunPodSandbox", "CreateContainer", "PullImage"])
def test_architecture_page_follows_a_call_from_its_method_in_the_service(call: str) -> None:
    section = ARCHITECTURE.split(f"## {call}, file by file")[1].split("\n## ")[0]
    assert f".{snake_case(call)}`" in section


def test_every_path_and_class_on_the_architecture_page_exists() -> None:
    paths = set(re.findall(r"`([\w./]+/|[\w./]+\.py)`", ARCHITECTURE))
    assert [path for path in paths if not (PACKAGE / path).exists() and not (ROOT / path).exists()] == []
    defined = {
        name
        for path in PACKAGE.rglob("*.py")
        if not path.stem.endswith(("_pb2", "_pb2_grpc"))
        for name in definitions(ast.parse(path.read_text()))
    }
    named = re.findall(r"`([A-Z][a-z]+[A-Z]\w*(?:\.\w+)?|[A-Z]\w+\.\w+)`", ARCHITECTURE)
    known_elsewhere = {"AsyncExitStack"}
    assert set(named) - defined - known_elsewhere == set()


def check_links(page: Path) -> None:
    for path, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        if "://" in path:
            continue
        target = page.parent / path if path else page
        assert target.exists(), f"{page} links to {path}, which does not exist"
        assert not anchor or anchor in anchors(target), (
            f"{page} links to {path}#{anchor}, which has no such section"
        )


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts derive them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
