# SPDX-License-Identifier: Apache-2.0
"""Collects pvecri and the libraries that it needs for another machine: site_packages.py PROCESSOR FOLDER.

PROCESSOR is x86_64 or aarch64. The libraries are wheels of the Python Package Index in the versions of
requirements.lock, verified by its hashes. One folder is for every Python in PYTHONS: their files differ in the
compiled modules alone, and those have the version of Python in their names.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

PYTHONS = ("3.11", "3.13")
"""Those of Debian 12 and 13."""

EXTRAS = ("tracing",)
"""Those of pvecri that the package has, so that a setting is all that its options need."""

GLIBC = range(36, 16, -1)
"""The minor versions of manylinux wheels that run with the glibc 2.36 of Debian 12."""

RECORDS = ("RECORD", "WHEEL", "INSTALLER", "REQUESTED", "direct_url.json")
"""What pip notes for itself. The package manager has its own list of files."""


def main(processor: str, target: Path) -> None:
    """Make the folder `target`; it must not exist."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "locked.txt").write_text(locked(closure("pvecri", EXTRAS)))
        pip("wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(work), ".")
        (wheel,) = work.glob("*.whl")
        for python in PYTHONS:
            options = ["--target", str(work / python), "--no-compile", "--no-deps", *platform(processor, python)]
            pip("install", *options, "--require-hashes", "--requirement", str(work / "locked.txt"))
            pip("install", *options, "--no-index", str(wheel))
            clean(work / python)
            merge(work / python, target)


def closure(name: str, extras: tuple[str, ...] = (), found: frozenset[str] = frozenset()) -> frozenset[str]:
    """The normalised names of all distributions that an installed one with `extras` requires, itself excluded."""
    for requirement in map(Requirement, requires(name) or []):
        required = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if required not in found and is_needed(requirement, extras):
            found = closure(required, tuple(requirement.extras), found | {required})
    return found


def is_needed(requirement: Requirement, extras: tuple[str, ...]) -> bool:
    """Whether the requirement is for any of PYTHONS, with or without one of `extras`."""
    marker = requirement.marker
    return marker is None or any(
        marker.evaluate({"python_version": python, "python_full_version": f"{python}.0", "extra": extra})
        for python in PYTHONS
        for extra in ("", *extras)
    )


def locked(names: frozenset[str]) -> str:
    """The entries of requirements.lock for these distributions, with their hashes."""
    entries = re.split(r"\n(?=[a-z0-9])", Path("requirements.lock").read_text())
    chosen = {name: entry for entry in entries if (name := entry.partition("==")[0]) in names}
    if missing := names - chosen.keys():
        sys.exit(f"requirements.lock lacks {', '.join(sorted(missing))}: script/lock")
    return "\n".join(chosen.values())


def platform(processor: str, python: str) -> list[str]:
    """pip's options for wheels of a machine that is not necessarily this one."""
    tags = [f"manylinux_2_{minor}_{processor}" for minor in GLIBC] + [f"manylinux2014_{processor}"]
    chosen = [option for tag in tags for option in ("--platform", tag)]
    return [*chosen, "--python-version", python, "--implementation", "cp", "--only-binary", ":all:"]


def pip(*arguments: str) -> None:
    """Run this Python's pip."""
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def clean(folder: Path) -> None:
    """Remove what pip notes for itself, and programs of the libraries."""
    for name in RECORDS:
        for path in folder.glob(f"*.dist-info/{name}"):
            path.unlink()
    shutil.rmtree(folder / "bin", ignore_errors=True)


def merge(source: Path, target: Path) -> None:
    """Add `source`'s files to `target`; a file that is there already must be the same."""
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        elif not copy.exists():
            shutil.copyfile(path, copy)  # not its mode: some wheels have executable modules
        elif copy.read_bytes() != path.read_bytes():
            sys.exit(f"{path.relative_to(source)} differs between Python {' and '.join(PYTHONS)}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
