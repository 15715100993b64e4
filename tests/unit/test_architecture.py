# SPDX-License-Identifier: Apache-2.0
"""The rules of docs/architecture.md: imports run downwards, modules and functions are short."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from graphlib import TopologicalSorter
from pathlib import Path

import pvecri
import pvecri_embedded

PACKAGE = Path(pvecri.__file__).parent
EMBEDDED = Path(pvecri_embedded.__file__).parent
GENERATED = (PACKAGE / "cri/proto", PACKAGE / "nri/proto")

GROUND = {
    "model",
    "config",
    "errors",
    "concurrency",
    "backoff",
    "database",
    "supervision",
    "observability",
    "tls",
}
THIN = GROUND | {"linux"}
PARTS = THIN | {"streaming", "oci", "images", "network", "proxmox"}

MAY_IMPORT = {
    "errors": set(),
    "concurrency": set(),
    "backoff": set(),
    "model": set(),
    "database": {"errors"},
    "config": {"errors"},
    "tls": {"config"},
    "observability": {"concurrency", "config", "errors", "tls"},
    "supervision": {"backoff", "errors", "observability"},
    "linux": GROUND,
    "streaming": THIN,
    "oci": THIN | {"streaming"},
    "images": THIN,
    "network": THIN,
    "proxmox": THIN,
    "pods": PARTS,
    "nri": PARTS | {"pods"},
    "cri": PARTS | {"pods"},
    "front": PARTS | {"pods"},
    "reload": {"config"},
    "daemon": PARTS | {"pods", "nri", "cri", "front", "reload"},
    "checks": PARTS | {"pods"},
    "setup": PARTS | {"pods", "checks"},
    "cli": PARTS | {"pods", "cri", "daemon", "checks", "setup"},
    "__main__": {"cli"},
    "__init__": set(),
    # A distribution of its own, under another licence: it shares no line with pvecri.
    "pvecri_embedded": set(),
}
"""What each component may import besides itself."""

THIRD_PARTY = {
    "msgspec": set(MAY_IMPORT) - {"pvecri_embedded"},
    "aiohttp": {"pvecri_embedded", "observability"},
    "fakepve": {"pvecri_embedded"},
    "google": {"cri", "nri"},
    "grpc": {"cri"},
    "h11": {"proxmox", "streaming"},
    "opentelemetry": {"observability"},
    "prometheus_client": {"observability"},
    "shtab": {"cli"},
    "wsproto": {"streaming"},
    "yaml": {"checks", "oci"},
}
"""Which components may use which library: nobody else sees an HTTP response, a protobuf message or a frame."""

MAKES_TASKS = {
    "concurrency": "its callers await the result",
    "supervision": "is the supervisor",
    "cri.server": "the callback is of a gRPC call's end, not of a task",
    "images.registry.proxy": "the request that makes it awaits it",
    "images.unpacking.client": "catches all itself, and every job under way gets an answer",
    "oci.exec_io": "leaving the context awaits it",
    "oci.kill": "the kill awaits it",
    "oci.runtime": "the start of an exec awaits it",
    "oci.sessions": "the session awaits it",
    "pods.sandbox.shutdown": "a task group awaits it",
    "streaming.portforward": "a task group or the copy awaits it",
    "streaming.session": "the session awaits it and reports its error",
    "streaming.streams": "the wait awaits it",
    "streaming.transport": "the wait awaits it, and what outlasts the wait raises nothing",
    "cli.image_progress": "the command awaits it",
}
"""Modules that make tasks without a supervisor, and who gets to see such a task's exception (decision 0068)."""

FUNCTION_LINES = 60
MODULE_LINES = 500


@dataclass(frozen=True)
class Module:
    """A file of a package. `component` is the folder or file below pvecri, or pvecri_embedded as a whole."""

    path: Path
    package: Path

    @property
    def name(self) -> str:
        return ".".join(self.path.relative_to(self.package.parent).with_suffix("").parts)

    @property
    def component(self) -> str:
        return self.package.name if self.package == EMBEDDED else self.name.split(".")[1]

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text())

    def __str__(self) -> str:
        return self.name


MODULES = [
    Module(path, package)
    for package in (PACKAGE, EMBEDDED)
    for path in sorted(package.rglob("*.py"))
    if path.parent not in GENERATED
]
NAMES = {module.name for module in MODULES}
COMPONENTS = {module.component for module in MODULES}


@cache
def imported(module: Module) -> tuple[str, ...]:
    """The full name of all that a module imports, wherever in it the import stands."""
    return tuple(_imported(module))


def _imported(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = module.name.split(".")[: -node.level] if node.level else []
            base = ".".join((*parent, *((node.module,) if node.module else ())))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def component_of(name: str) -> str | None:
    """The component that an imported name belongs to; None for what is not ours, or is the package's own."""
    package, _, rest = name.partition(".")
    if package == EMBEDDED.name:
        return package
    component = rest.partition(".")[0]
    return component if package == "pvecri" and component in COMPONENTS else None


def module_of(name: str) -> str | None:
    """The module of ours that an imported name is, or is in."""
    candidates = (name, name.rpartition(".")[0], f"{name}.__init__", f"{name.rpartition('.')[0]}.__init__")
    return next((each for each in candidates if each in NAMES), None)


def test_every_component_is_in_the_table() -> None:
    assert COMPONENTS - MAY_IMPORT.keys() == set(), (
        "say in MAY_IMPORT what it may import, and in whose rows it stands"
    )


def test_imports_run_downwards_only() -> None:
    reached = [
        f"{module} imports {name}"
        for module in MODULES
        for name in imported(module)
        if component_of(name) not in MAY_IMPORT.get(module.component, set()) | {None, module.component}
    ]
    assert reached == []


def test_libraries_are_imported_only_by_their_components() -> None:
    misplaced = [
        f"{module} imports {name}"
        for module in MODULES
        for name in imported(module)
        if module.component not in THIRD_PARTY.get(name.partition(".")[0], set(MAY_IMPORT))
    ]
    assert misplaced == []


def test_every_imported_library_is_in_the_table() -> None:
    known = {"pvecri", "pvecri_embedded", *THIRD_PARTY, *sys.stdlib_module_names}
    used = {name.partition(".")[0] for module in MODULES for name in imported(module)}
    assert used - known == set()


def test_imports_have_no_cycles() -> None:
    graph = {
        module.name: {found for name in imported(module) if (found := module_of(name))} - {module.name}
        for module in MODULES
    }
    TopologicalSorter(graph).prepare()


def test_a_task_that_nobody_awaits_has_a_supervisor() -> None:
    makers = {
        module.name.removeprefix("pvecri.")
        for module in MODULES
        if module.name.startswith("pvecri.")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in ("create_task", "ensure_future", "add_done_callback")
    }
    assert makers == MAKES_TASKS.keys()


def test_an_idle_daemon_has_no_library_that_only_commands_and_options_need() -> None:
    """Each is half a megabyte or more: most serve metrics, wsproto streams, the stubs are a client's."""
    code = (
        "import sys; from pvecri import daemon; from pvecri.cli import command_line as cli; "
        "cli._only_serve(['serve']); print(*sys.modules)"
    )
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    others = {"aiohttp", "email", "http", "importlib.metadata", "opentelemetry", "prometheus_client"}
    others |= {"urllib.request", "wsproto"}
    ours = {"pvecri.checks", "pvecri.cri.proto.cri_pb2_grpc", "pvecri.cli.image", "pvecri.setup"}
    assert not (others | ours) & set(loaded)


def test_functions_are_short() -> None:
    functions = [
        (str(module), node.name, (node.end_lineno or 0) - node.lineno + 1)
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [each for each in functions if each[2] > FUNCTION_LINES] == []


def test_modules_are_short() -> None:
    sizes = [(str(module), len(module.path.read_text().splitlines())) for module in MODULES]
    assert [each for each in sizes if each[1] > MODULE_LINES] == []


def test_every_module_has_licence_and_docstring() -> None:
    unlicensed = [
        str(each) for each in MODULES if not each.path.read_text().startswith("# SPDX-License-Identifier: ")
    ]
    assert unlicensed == []
    assert [str(each) for each in MODULES if not ast.get_docstring(each.tree)] == []


def test_test_files_have_different_names() -> None:
    """pytest collects all folders at once and imports each file by its name alone."""
    names = Counter(path.name for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_names_imported_for_types_only_are_not_used_at_run_time() -> None:
    """With postponed annotations neither a linter nor the type checker finds that; the call fails."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = {alias.asname or alias.name for node in _for_types(tree) for alias in node.names}
        found += [f"{path.name}:{node.lineno} {node.id}" for node in _used(tree, names)]
    assert found == []


def _for_types(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return [each for block in blocks for each in block.body if isinstance(each, ast.Import | ast.ImportFrom)]


def _used(node: ast.AST, names: set[str]) -> Iterator[ast.Name]:
    """The uses of names outside of annotations, and of functions that import them themselves."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        imports = [each for each in ast.walk(node) if isinstance(each, ast.Import | ast.ImportFrom)]
        names = names - {alias.asname or alias.name for each in imports for alias in each.names}
    if isinstance(node, ast.Name) and node.id in names:
        yield node
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _used(child, names)
