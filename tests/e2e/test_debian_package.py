# SPDX-License-Identifier: Apache-2.0
"""The Debian package: built from this checkout, and installed into a fresh Debian.

The Debian is that of this machine, or PVECRI_PACKAGE_SUITE (bookworm, trixie). No systemd runs there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ONLINE = ("nsenter", "--target", str(os.getppid()), "--net", "--")
"""Runs a command in the network namespace of the tests' caller: that of the tests has no links."""

OLDER = "0.0.1"

INFORMATION = (
    "binary-has-unneeded-section",
    "extra-license-file",
    "hardening-no-bindnow",
    "package-supports-alternative-init-but-no-init.d-script",
    "spelling-error-in-binary",
)
"""Tags of lintian's lowest severity that the package may have: the libraries', and that systemd is required."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="installs Debian into a directory: needs root")


def run(*command: str | Path) -> str:
    """The standard output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A folder that is deleted at once: pytest keeps its own, and a Debian has 700 MB."""
    with tempfile.TemporaryDirectory(prefix="pvt-package-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def package(directory: Path) -> Path:
    """The package of this checkout."""
    built = run(*ONLINE, "env", f"PVECRI_DEB_DIR={directory}", ROOT / "packaging/build-deb")
    return Path(built.strip())


@pytest.fixture(scope="module")
def older(package: Path, directory: Path) -> Path:
    """The same package with an older version and a module that newer ones do not have."""
    tree = directory / "older"
    run("dpkg-deb", "--raw-extract", package, tree)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"^Version: .*", f"Version: {OLDER}", control.read_text(), flags=re.MULTILINE))
    (tree / "usr/lib/pvecri/site-packages/pvecri/removed.py").write_text("")
    run("dpkg-deb", "-Zxz", "-z0", "--build", tree, directory / "older.deb")
    return directory / "older.deb"


class Debian:
    """A Debian in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command there, with /proc, in a mount namespace of its own; `check` is the caller's."""
        script = f'mount -t proc proc {self.root}/proc && exec chroot {self.root} "$@"'
        return subprocess.run(
            ["unshare", "--mount", "--fork", "--", "sh", "-c", script, "sh", *command],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
        )

    def succeed(self, *command: str) -> str:
        """Run a command that must succeed; returns its output and errors."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def install(self, package: Path) -> str:
        """Install a package, whose dependencies must be there."""
        shutil.copy(package, self.root / "root")
        return self.succeed("dpkg", "--install", f"/root/{package.name}")

    def path(self, absolute: str) -> Path:
        return self.root / absolute.removeprefix("/")


@pytest.fixture(scope="module")
def debian(package: Path, directory: Path) -> Debian:
    """A minimal Debian with the package's dependencies, and nothing that is merely recommended."""
    depends = run("dpkg-deb", "--field", package, "Depends")
    names = {each.split("|")[0].split("(")[0].strip().removesuffix(":any") for each in depends.split(",")}
    suite = os.environ.get("PVECRI_PACKAGE_SUITE") or codename()
    root = directory / "root"
    run(*ONLINE, "mmdebstrap", "--variant=minbase", f"--include={','.join(sorted(names))}", suite, root)
    return Debian(root)


def codename() -> str:
    found = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    assert found
    return found.group(1)


@pytest.fixture
def installed(debian: Debian, package: Path) -> Debian:
    """The Debian with the package. It stays for the next test."""
    if not debian.path("/usr/bin/pvecri").exists():
        debian.install(package)
    return debian


@pytest.fixture
def clean(debian: Debian) -> Debian:
    """The Debian without the package."""
    debian.succeed("dpkg", "--purge", "pvecri")
    return debian


def leftovers(debian: Debian) -> list[str]:
    """What of pvecri's is still in the file system, dpkg's own notes left out."""
    roots = ("etc", "usr", "var/lib", "run", "lib")
    found = [str(path) for root in roots for path in debian.path(root).rglob("*pvecri*")]
    return [path for path in found if "/dpkg/" not in path and "/deb-systemd-helper-" not in path]


def test_lintian_finds_nothing(package: Path) -> None:
    hints = run("lintian", "--allow-root", "--display-info", "--fail-on", "error,warning", package).splitlines()
    assert [hint for hint in hints if hint.split()[:1] != ["I:"] or hint.split()[2] not in INFORMATION] == []


def test_installation_has_programs_manual_pages_and_completions(installed: Debian, package: Path) -> None:
    version = run("dpkg-deb", "--field", package, "Version").partition("~")[0].strip()
    assert installed.succeed("pvecri", "--version") == f"pvecri {version}\n"
    assert installed.succeed("pvecri", "version") == f"pvecri {version}\n"
    assert version in installed.succeed("pvecri-runtime", "--version")
    for page in ("man1/pvecri.1", "man5/pvecri.toml.5", "man8/pvecri-runtime.8"):
        assert installed.path(f"/usr/share/man/{page}.gz").exists()
    for completion in (
        "bash-completion/completions/pvecri",
        "zsh/vendor-completions/_pvecri",
        "fish/vendor_completions.d/pvecri.fish",
    ):
        assert "check-config" in installed.path(f"/usr/share/{completion}").read_text()


def test_daemons_modules_all_load_with_the_packages_own_libraries(installed: Debian) -> None:
    program = "import pvecri.daemon, grpc, google.protobuf; print(grpc.__file__, google.protobuf.__file__)"
    found = installed.succeed("/usr/lib/pvecri/bin/python3", "-I", "-c", program).split()
    assert all(path.startswith("/usr/lib/pvecri/") for path in found), found


def test_nothing_is_configured_or_enabled_by_the_installation(installed: Debian) -> None:
    assert list(installed.path("/etc/pvecri").iterdir()) == []
    assert installed.path("/etc/pvecri").stat().st_mode & 0o777 == 0o700
    assert list(installed.path("/etc/systemd/system").rglob("pvecri*")) == []
    done = installed.run("pvecri", "check-config", "--offline")
    assert done.returncode == 1
    assert "/etc/pvecri/config.toml" in done.stderr


def test_example_configuration_of_the_package_is_valid(installed: Debian) -> None:
    installed.succeed("sh", "-c", "umask 077; echo secret >/etc/pvecri/token")
    example = "/usr/share/doc/pvecri/examples/config.toml"
    assert "OK" in installed.succeed("pvecri", "--config", example, "check-config", "--offline")


def test_files_name_the_packages_programs(installed: Debian) -> None:
    examples = installed.path("/usr/share/doc/pvecri/examples")
    units = [*installed.path("/usr/lib/systemd/system").glob("pvecri*.service")]
    assert len(units) == 2
    files = [*examples.rglob("*"), *units]
    text = "".join(path.read_text() for path in files if path.is_file())
    assert "/usr/bin/pvecri-runtime" in text
    assert "/usr/local" not in text
    assert "/opt" not in text


def test_upgrade_keeps_configuration_and_state_and_removes_old_modules(
    clean: Debian, older: Path, package: Path
) -> None:
    debian = clean
    debian.install(older)
    for kept in ("/etc/pvecri/config.toml", "/var/lib/pvecri/pods.db"):
        debian.path(kept).parent.mkdir(exist_ok=True)
        debian.path(kept).write_text("# kept\n")
    debian.install(package)
    assert debian.path("/etc/pvecri/config.toml").read_text() == "# kept\n"
    assert debian.path("/var/lib/pvecri/pods.db").read_text() == "# kept\n"
    assert list(debian.path("/usr/lib/pvecri").rglob("removed*")) == []
    debian.succeed("dpkg", "--remove", "pvecri")
    assert debian.path("/etc/pvecri/config.toml").exists()
    assert list(debian.path("/usr/lib").glob("pvecri")) == []
    debian.succeed("dpkg", "--purge", "pvecri")
    assert leftovers(debian) == []


def test_purge_unmounts_what_the_daemon_mounts_for_itself(clean: Debian, package: Path) -> None:
    debian = clean
    debian.install(package)
    debian.path("/var/lib/pvecri/images/overlay").mkdir(parents=True)
    script = (
        "mkdir -p /run/pvecri && mount -t tmpfs run /run/pvecri && "
        "mount --bind /var/lib/pvecri/images/overlay /var/lib/pvecri/images/overlay && dpkg --purge pvecri"
    )
    debian.succeed("sh", "-c", script)
    assert leftovers(debian) == []


def test_purge_keeps_the_files_of_running_pods_and_says_what_to_do(clean: Debian, package: Path) -> None:
    debian = clean
    debian.install(package)
    debian.path("/var/lib/pvecri").mkdir()
    script = (
        "mkdir -p /run/pvecri/pods/1 && mount -t tmpfs pod /run/pvecri/pods/1 && "
        "dpkg --purge pvecri && umount /run/pvecri/pods/1"
    )
    said = debian.succeed("sh", "-c", script)
    assert "pods are still running" in said
    assert "/var/lib/pvecri are kept" in said
    assert debian.path("/var/lib/pvecri").exists()
    for kept in ("/var/lib/pvecri", "/run/pvecri"):
        shutil.rmtree(debian.path(kept))
