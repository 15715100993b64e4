# SPDX-License-Identifier: Apache-2.0
"""An invalid configuration is refused with the names of the setting and the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec import inspect

from pvecri.config import files
from pvecri.config.settings import Config, ConfigError, parse, read_secret


def settings() -> Iterator[tuple[str, str, inspect.Type]]:
    """Section, key and type of every setting."""
    described = inspect.type_info(Config)
    assert isinstance(described, inspect.StructType)
    for section in described.fields:
        assert isinstance(section.type, inspect.StructType)
        for setting in section.type.fields:
            yield section.name, setting.name, setting.type


SETTINGS = list(settings())


def wrong_value(kind: inspect.Type) -> str:
    """A TOML value that a setting of this type cannot have."""
    text = inspect.StrType | inspect.CustomType | inspect.UnionType | inspect.LiteralType
    takes_text = isinstance(kind, text)
    return "7" if takes_text else '"seven"'


@pytest.mark.parametrize(
    ("section", "key", "kind"), SETTINGS, ids=lambda value: value if type(value) is str else ""
)
def test_error_for_a_wrong_type_names_the_setting(section: str, key: str, kind: inspect.Type) -> None:
    with pytest.raises(ConfigError, match=rf"^/etc/p\.toml:2: {section}\.{key}: must be .*, and is "):
        parse(f"[{section}]\n{key} = {wrong_value(kind)}", "/etc/p.toml")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("proxmox.rootfs_size_gib", "-1"),
        ("proxmox.memory_overhead_mib", "-1"),
        ("proxmox.request_timeout", "0"),
        ("proxmox.task_timeout", "-0.5"),
        ("proxmox.vmid_range.first", "99"),
        ("proxmox.vmid_range.last", "1_000_000_000"),
        ("runtime.start_timeout", "0"),
        ("images.pull_timeout", "0"),
        ("images.max_layer_size", "0"),
        ("images.max_layer_entries", "0"),
        ("network.plugin_timeout", "0"),
        ("streaming.port", "-1"),
        ("streaming.port", "65536"),
        ("streaming.url_lifetime", "0"),
        ("streaming.idle_timeout", "0"),
        ("streaming.max_sessions", "0"),
    ],
)
def test_error_for_a_number_out_of_range_names_the_setting(setting: str, value: str) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"^configuration:1: {re.escape(setting)}: must be .*, and is {re.escape(value.replace('_', ''))}$",
    ):
        parse(f"{setting} = {value}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("proxmox.vmid_range = {first = 200, last = 199}", "proxmox.vmid_range: first is larger than last"),
        (
            "proxmox.url = 'http://pve1:8006'",
            "proxmox.url: 'http://pve1:8006' is not an https URL (https://HOST:8006)",
        ),
        (
            "proxmox = {url = 'http://pve1:8006', fingerprint = 'AB'}",
            "proxmox.url: 'http://pve1:8006' is not an ht",
        ),
        ("proxmox.url = 'pve1:8006'", "proxmox.url: 'pve1:8006' is not an https URL"),
        ("proxmox.url = 'https://'", "proxmox.url: 'https://' is not an https URL"),
        ("proxmox.url = 'https://pve1:x'", "proxmox.url: 'https://pve1:x' is not an https URL"),
        ("proxmox.url = 'https://[::1'", "proxmox.url: 'https://[::1' is not an https URL"),
        ("proxmox.token_id = 'a@pve!b'", "proxmox.token_id and proxmox.token_secret_file go together"),
        ("proxmox.token_secret_file = '/s'", "proxmox.token_id and proxmox.token_secret_file go together"),
        ("proxmox.username = 'a@pve'", "proxmox.username and proxmox.password_file go together"),
        ("proxmox.password_file = '/s'", "proxmox.username and proxmox.password_file go together"),
        (
            "proxmox = {token_id = 'a', token_secret_file = '/s', username = 'b', password_file = '/p'}",
            "set proxmox.token_id or proxmox.username, not both",
        ),
        ("streaming.tls_cert = '/c'", "streaming.tls_cert and streaming.tls_key go together"),
        ("streaming.tls_key = '/k'", "streaming.tls_cert and streaming.tls_key go together"),
        ("streaming.address = 'localhost'", "streaming.address: 'localhost' does not appear to be an IPv4 or"),
        ("runtime.socket = 'pvecri.sock'", "runtime.socket: must be an absolute path"),
        ("runtime.state_dir = 'state'", "runtime.state_dir: must be an absolute path"),
        ("runtime.run_dir = ''", "runtime.run_dir: must be an absolute path"),
        ("log.level = 'loud'", "log.level: 'loud' is none of debug, info, warning, error"),
        ("proxmox =", "Invalid value (at end of document)"),
    ],
)
def test_invalid_configuration_is_refused_with_message(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "/etc/p.toml")
    assert str(caught.value).startswith(f"/etc/p.toml: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runtime.sockets = '/s'", "1: runtime.sockets: there is no such setting; is runtime.socket meant?"),
        ("\nproxmox.vmid_range.middle = 150", "2: proxmox.vmid_range.middle: there is no such setting"),
        ("[podman]", "1: podman: there is no such section"),
        ("[prox-mox]", "1: prox-mox: there is no such section; is proxmox meant?"),
        ("proxmox = 3", "1: proxmox: must be a table, and is 3"),
        ("# x\n[proxmox]\npool = 'a'\ntags = ['a', 7]", "4: proxmox.tags[1]: must be text in quotes, and is 7"),
        ("proxmox.tags = 'a'", '1: proxmox.tags: must be a list, and is "a"'),
        ("images.root = 2024-01-01", "1: images.root: must be a path in quotes, and is the date 2024-01-01"),
        ("proxmox.unprivileged = 'no'", '1: proxmox.unprivileged: must be true or false, and is "no"'),
        ("streaming.port = 65536", "1: streaming.port: must be at most 65535, and is 65536"),
        (
            "user_namespaces.mode = 'x'",
            '1: user_namespaces.mode: must be one of "cri", "per-pod", "shared", and is "x"',
        ),
        ("[network.classes.lan]", "1: network.classes.lan.bridge: must be set"),
        (
            "[network.classes.ok]\nbridge = 'a'\n[network.classes.'my lan']\nbridge = 'a'\nip = 'x'",
            '5: network.classes."my lan".ip: must be one of "", "dhcp", and is "x"',
        ),
        (
            "network.classes.lan.bridge = 'a b'",
            '1: network.classes.lan.bridge: must match the pattern ^[A-Za-z0-9_.-]{1,15}$, and is "a b"',
        ),
        (
            "[runtime.default_sysctls]\n'net.a' = 1",
            '2: runtime.default_sysctls."net.a": must be text in quotes, and',
        ),
        (
            "[proxmox]\npool = '''\nurl = 7\n'''\nurl = 8",
            "5: proxmox.url: must be text in quotes, and is 8",
        ),
    ],
)
def test_error_names_line_setting_and_value_in_plain_words(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "/etc/p.toml")
    assert str(caught.value).startswith(f"/etc/p.toml:{message}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "proxmox.vmid_range = {first = 200, last = 200}",
        "proxmox = {token_id = 'a@pve!b', token_secret_file = '/s'}",
        "proxmox = {username = 'a@pve', password_file = '/p'}",
        "streaming = {tls_cert = '/c', tls_key = '/k'}",
        "streaming.address = '::1'",
        "streaming.port = 0",
        "streaming.port = 65535",
        "proxmox = {rootfs_size_gib = 0, memory_overhead_mib = 0}",
        "proxmox.vmid_range = {first = 100, last = 999_999_999}",
        "proxmox.request_timeout = 5",
        "proxmox.url = 'https://[fd00::1]:8006/'",
        "proxmox.url = 'HTTPS://pve1.example.org'",
        "log.level = 'WARNING'",
    ],
)
def test_valid_configuration_is_accepted(text: str) -> None:
    parse(text)


def test_an_empty_file_means_the_defaults() -> None:
    assert parse("") == Config()


def test_all_settings_are_read() -> None:
    read = parse("proxmox.storage = 'zfs'\n[runtime]\nconmon = '/opt/conmon'\n[images]\nroot = '/images'")
    assert (read.proxmox.storage, read.runtime.conmon) == ("zfs", "/opt/conmon")
    assert read.images_root == Path("/images")
    assert (
        msgspec.structs.replace(read, proxmox=Config().proxmox, runtime=Config().runtime).images.driver
        == "overlay"
    )


def test_images_root_defaults_to_the_state_directory() -> None:
    assert parse("runtime.state_dir = '/srv/pvecri'").images_root == Path("/srv/pvecri/images")


def test_node_name_defaults_to_the_short_hostname(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "pve1.example.org")
    assert parse("").proxmox.node_name == "pve1"
    assert parse("proxmox.node = 'pve2'").proxmox.node_name == "pve2"


# -- files ---------------------------------------------------------------------------------------------------


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("log.level = 'debug'")
    assert files.load(path).config.log.level == "debug"
    path.write_text("log.level = 3")
    with pytest.raises(ConfigError, match=rf"^{path}:1: log\.level: must be text in quotes"):
        files.load(path)


def test_error_for_an_unreadable_file_has_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: No such file or directory$"):
        files.load(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match=r"Is a directory$"):
        files.load(tmp_path)


def test_error_for_a_non_utf8_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"log.level = '\xff'")
    with pytest.raises(ConfigError, match=rf"^{path}: "):
        files.load(path)


def test_secret_is_stripped(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("0a1b \n")
    assert read_secret(path, "proxmox.token_secret_file") == "0a1b"


@pytest.mark.parametrize(
    ("text", "problem"),
    [(None, "No such file or directory"), (b" \n", "is empty"), (b"\xff", "is not UTF-8 text: .*")],
)
def test_error_for_a_missing_secret_names_the_setting(tmp_path: Path, text: bytes | None, problem: str) -> None:
    path = tmp_path / "secret"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ConfigError, match=rf"^proxmox\.token_secret_file: {path}.* {problem}$"):
        read_secret(path, "proxmox.token_secret_file")


@pytest.mark.parametrize(
    ("text", "storage"),
    [
        ("", "local"),
        ('[images]\nstorage = "tank"', "tank"),
        ('[proxmox]\npool = "k8s"\n[images]\nstorage = "tank"', "tank"),
        ('[proxmox]\nstorage = "local"\n[images]\nstorage = "tank"', "local"),
    ],
)
def test_proxmox_storage_defaults_to_images_storage(text: str, storage: str) -> None:
    assert parse(text).proxmox.storage == storage
