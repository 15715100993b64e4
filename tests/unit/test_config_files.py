# SPDX-License-Identifier: Apache-2.0
"""The main file and its drop-ins become one configuration, and can be shown as TOML again."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pvecri.cli import command_line
from pvecri.config import files
from pvecri.config.settings import Config, ConfigError, parse


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(
        '[proxmox]\nurl = "https://pve1:8006"\npool = "a"\nvmid_range = { first = 200, last = 300 }\n'
        '[images]\npinned = ["pause"]\n'
    )
    (tmp_path / "conf.d").mkdir()
    return path


def drop_in(main: Path, name: str, text: str) -> Path:
    path = main.parent / "conf.d" / name
    path.write_text(text)
    return path


def test_of_a_setting_in_several_files_the_last_one_counts_as_a_whole(main: Path) -> None:
    drop_in(main, "20-b.toml", 'proxmox.pool = "c"\nproxmox.vmid_range = { last = 1_000_000 }')
    drop_in(main, "10-a.toml", 'proxmox.pool = "b"\nlog.level = "debug"')
    drop_in(main, "30-c.conf", 'proxmox.pool = "no TOML file by its name"')
    loaded = files.load(main).config
    assert (loaded.proxmox.pool, loaded.log.level, loaded.proxmox.url) == ("c", "debug", "https://pve1:8006")
    assert (loaded.proxmox.vmid_range.first, loaded.proxmox.vmid_range.last) == (900_000, 1_000_000)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("proxmox.pol = 'b'", ":1: proxmox.pol: there is no such setting; is proxmox.pool meant?"),
        ("proxmox = 7", ":1: proxmox: must be a table, and is 7"),
        ("pool = 'b'", ":1: pool: there is no such section"),
        ("proxmox.pool = ", ": Invalid value (at end of document)"),
        ("\nproxmox.pool = 7", ":2: proxmox.pool: must be text in quotes, and is 7"),
        ("proxmox.url = 'http://pve1:8006'", ":1: proxmox.url: 'http://pve1:8006' is not an https URL"),
        # Of two files, the one that is read last is where somebody has changed something.
        ("images.root = '/i'\nimages.storage = 'tank'", ":2: set images.root or images.storage, not both"),
    ],
)
def test_error_names_the_file_of_the_setting(main: Path, text: str, problem: str) -> None:
    file = drop_in(main, "10-a.toml", text)
    with pytest.raises(ConfigError) as caught:
        files.load(main)
    assert str(caught.value).startswith(f"{file}{problem}")


def test_error_of_two_files_names_the_drop_in(main: Path) -> None:
    main.write_text(main.read_text() + 'root = "/images"\n')
    file = drop_in(main, "10-a.toml", 'images.storage = "tank"')
    with pytest.raises(ConfigError, match=f"^{file}:1: set images.root or images.storage, not both"):
        files.load(main)


def test_missing_main_file_is_an_error_also_with_drop_ins(main: Path) -> None:
    drop_in(main, "10-a.toml", 'log.level = "debug"')
    main.unlink()
    with pytest.raises(ConfigError, match=r"config\.toml: No such file"):
        files.load(main)


def test_storage_of_images_is_the_default_of_the_cts_storage_across_files(main: Path) -> None:
    drop_in(main, "10-a.toml", 'images.storage = "tank"')
    assert files.load(main).config.proxmox.storage == "tank"
    drop_in(main, "20-b.toml", 'proxmox.storage = "local"')
    assert files.load(main).config.proxmox.storage == "local"


def test_default_file_has_every_setting_and_changes_none() -> None:
    text = files.default_toml()
    assert parse(text) == Config()
    shown = {line.removeprefix("# ").partition(" =")[0] for line in text.splitlines() if " =" in line}
    assert shown >= {
        name for section in Config.__struct_fields__ for name in getattr(Config(), section).__struct_fields__
    }


def test_uncommented_defaults_are_the_defaults() -> None:
    lines = []
    for line in files.default_toml().splitlines():
        name, equals, value = line.removeprefix("# ").partition(" = ")
        lines.append(f"{name} = {value}" if equals and name.isidentifier() else line)
    text = "\n".join(lines)
    assert parse(text) == Config()
    assert tomllib.loads(text)["proxmox"]["vmid_range"] == {"first": 900_000, "last": 999_999}


def test_dump_is_the_configuration_again(main: Path) -> None:
    drop_in(
        main,
        "10-a.toml",
        '[network.classes."l a"]\nbridge = "vmbr1"\nfirewall_rules = ["in \\"x\\"", "ü\\u007f"]\n'
        '[runtime.default_sysctls]\n"net.core.somaxconn" = "1"\n[streaming]\nidle_timeout = 1.5',
    )
    loaded = files.load(main).config
    assert parse(files.dump(loaded)) == loaded


def test_differences_have_default_and_file(main: Path) -> None:
    file = drop_in(main, "10-a.toml", 'proxmox.pool = "b"\nimages.storage = "tank"\nlog.level = "info"')
    differing = files.differences(files.load(main))
    assert differing == [
        f'proxmox.url = "https://pve1:8006"  # default: "https://127.0.0.1:8006"; {main}',
        'proxmox.storage = "tank"  # default: "local"; derived',
        "proxmox.vmid_range = { first = 200, last = 300 }  "
        f"# default: {{ first = 900000, last = 999999 }}; {main}",
        f'proxmox.pool = "b"  # default: ""; {file}',
        f'images.storage = "tank"  # default: ""; {file}',
        f'images.pinned = ["pause"]  # default: []; {main}',
    ]


def test_commands_print_it(main: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["config", "default"]) == 0
    assert parse(capsys.readouterr().out) == Config()
    assert command_line.main(["--config", str(main), "config", "dump"]) == 0
    assert parse(capsys.readouterr().out) == files.load(main).config
    assert command_line.main(["--config", str(main), "config", "diff"]) == 0
    assert capsys.readouterr().out.startswith("proxmox.url = ")
    main.write_text("[")
    assert command_line.main(["--config", str(main), "config", "dump"]) == 1
    assert capsys.readouterr().err.startswith(f"pvecri: {main}: ")


@pytest.mark.parametrize("text", ["", "[proxmox]", "log.level = 'info'"])
def test_check_of_a_configuration_without_an_account_is_an_error(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check-config --offline` was satisfied with an empty file, with which the daemon does not start."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    assert command_line.main(["--config", str(path), "check-config", "--offline"]) == 1
    assert "set proxmox.token_id and proxmox.token_secret_file" in capsys.readouterr().err
