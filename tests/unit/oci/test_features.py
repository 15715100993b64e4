# SPDX-License-Identifier: Apache-2.0
"""Detection of the OCI runtime, the lowest oom_score_adj and AppArmor."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from pvecri.config.settings import Config, ConfigError
from pvecri.oci import apparmor, features
from pvecri.oci.features import HostFeatures, RuntimeBinary


@pytest.fixture(autouse=True)
def _no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty PATH but for a test's own programs, so that AppArmor is not changed."""
    monkeypatch.setenv("PATH", str(tmp_path))


def program(directory: Path, name: str, version: str = "", features: str = "{}") -> Path:
    """A program with these outputs of `--version` and `features`."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    answers = f"case $1 in --version) echo '{version}';; features) echo '{features}';; *) exit 1;; esac"
    path.write_text(f"#!/bin/sh\n{answers}\n")
    path.chmod(0o755)
    return path


async def discovered(path: Path, conmon: str = "/bin/true") -> HostFeatures:
    config = Config()
    return await features.discover(
        replace(config, runtime=replace(config.runtime, oci_runtime=str(path), conmon=conmon))
    )


@pytest.mark.parametrize(
    ("output", "kind", "version"),
    [
        ("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev", "runc", (1, 1, 5)),
        ("runc version 1.3.0-rc.1", "runc", (1, 3, 0)),
        (
            "crun version 1.8.1\ncommit: f8a096be060b22ccd3d5f3ebe44108517fbf6c30\nrundir: /run/crun",
            "crun",
            (1, 8, 1),
        ),
        ("crun version 1.21", "crun", (1, 21)),
        ("crun version UNKNOWN", "", ()),
        ("youki version 0.3.0", "", ()),
        ("", "", ()),
    ],
)
async def test_oci_runtime_is_identified_by_its_version_output(
    output: str, kind: str, version: tuple[int, ...], tmp_path: Path
) -> None:
    path = program(tmp_path, "runtime", output)
    if kind:
        found = (await discovered(path)).oci_runtime
        assert (found.path, found.kind, found.version) == (str(path), kind, version)
    else:
        with pytest.raises(ConfigError, match=rf"^runtime\.oci_runtime: {path} is neither runc nor crun: "):
            await discovered(path)


@pytest.mark.parametrize(
    ("output", "checkpoints"),
    [
        ("runc version 1.1.5+ds1", True),
        ("crun version 1.8.1\n+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF +YAJL", False),
        ("crun version 1.21\n+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF +CRIU +WASM:wasmedge +YAJL", True),
    ],
)
async def test_crun_may_be_built_without_checkpoints(output: str, checkpoints: bool, tmp_path: Path) -> None:
    found = await discovered(program(tmp_path, "runtime", output))
    assert found.oci_runtime.checkpoints is checkpoints


@pytest.mark.parametrize(
    ("features", "recursive"),
    [('{"mountOptions": ["ro", "rro"]}', True), ('{"mountOptions": ["ro"]}', False), ("{}", False), ("", False)],
)
async def test_recursive_readonly_is_detected_from_runtime_features(
    features: str, recursive: bool, tmp_path: Path
) -> None:
    found = await discovered(program(tmp_path, "runtime", "runc version 1.2.0", features))
    assert found.oci_runtime.recursive_readonly is recursive


@pytest.mark.parametrize(
    ("kind", "version", "wants"),
    [
        ("runc", (1, 1, 5), True),
        ("runc", (1, 1, 9), True),
        ("runc", (1, 1, 10), False),
        ("runc", (1, 2), False),
        ("crun", (1, 8, 1), False),
    ],
)
def test_only_runc_before_1_1_10_needs_mappings_with_a_userns_path(
    kind: str, version: tuple[int, ...], wants: bool
) -> None:
    assert RuntimeBinary("/x", kind, version).needs_mappings_with_userns_path is wants


async def test_missing_program_is_reported_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        await discovered(program(tmp_path, "runtime", "runc version 1.2.0"), conmon="no-such-conmon")
    assert str(caught.value) == "runtime.conmon: the program 'no-such-conmon' is not installed"
    with pytest.raises(ConfigError, match=r"^runtime\.oci_runtime: the program '.*/nothing' is not installed$"):
        await discovered(tmp_path / "nothing")


def can_have_oom_score(score: int) -> bool:
    command = ["/bin/sh", "-c", f"echo {score} >/proc/self/oom_score_adj"]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


async def test_lowest_oom_score_adj_can_be_set_and_no_lower_one_can(tmp_path: Path) -> None:
    lowest = (await discovered(program(tmp_path, "runtime", "runc version 1.2.0"))).lowest_oom_score_adj
    assert can_have_oom_score(lowest)
    assert not can_have_oom_score(lowest - 1)


# -- AppArmor ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "loaded"),
    [
        ("pvecri-default", True),
        ("lxc-container-default (with a space)", True),
        ("/usr/bin/man", True),
        ("pvecri", False),
        ("pvecri-default (enforce)", False),
        ("", False),
    ],
)
def test_apparmor_profile_is_loaded_if_the_kernel_lists_it(
    profile: str, loaded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "profiles"
    listed.write_text(
        "pvecri-default (enforce)\nlxc-container-default (with a space) (complain)\n/usr/bin/man (kill)\n"
    )
    monkeypatch.setattr(apparmor, "LOADED", listed)
    assert apparmor.is_loaded(profile) is loaded


def test_no_profile_is_loaded_without_apparmor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apparmor, "LOADED", tmp_path / "nothing")
    assert not apparmor.is_loaded(apparmor.DEFAULT_PROFILE)


async def test_default_profile_is_piped_to_apparmor_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = tmp_path / "apparmor_parser"
    parser.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/arguments\nexec cat >{tmp_path}/profile\n')
    parser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert await apparmor.load_default()
    assert (tmp_path / "arguments").read_text() == "--replace --skip-cache\n"
    assert (tmp_path / "profile").read_text() == apparmor.PROFILE_TEXT


async def test_stderr_of_a_failing_apparmor_parser_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parser = tmp_path / "apparmor_parser"
    parser.write_text("#!/bin/sh\ncat >/dev/null\necho syntax error >&2\nexit 1\n")
    parser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert not await apparmor.load_default()
    assert "the profile pvecri-default cannot be loaded: syntax error" in caplog.text


async def test_missing_apparmor_parser_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not await apparmor.load_default()
    assert "apparmor_parser is not installed" in caplog.text


def test_default_profile_denies_kernel_interfaces() -> None:
    text = apparmor.PROFILE_TEXT
    assert text.count("{") == text.count("}")
    assert f"profile {apparmor.DEFAULT_PROFILE} flags=(attach_disconnected,mediate_deleted) {{" in text
    rules = [line.strip() for line in text.splitlines()[2:-1] if line.strip()]
    assert all(rule.endswith(",") for rule in rules)
    for path in ("/proc/sysrq-trigger", "/proc/kcore", "/sys/firmware/", "/sys/kernel/security/"):
        assert any(rule.startswith(f"deny {path}") for rule in rules)
