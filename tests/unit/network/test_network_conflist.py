# SPDX-License-Identifier: Apache-2.0
"""The first valid CNI configuration of the directory is the pods' network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pvecri.network import conflist
from pvecri.network.conflist import ConfigDirectory
from pvecri.network.errors import NetworkNotReady


def listed(name: str, **more: object) -> str:
    return json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "bridge", "mtu": 1400}], **more})


def test_plugin_options_are_kept_unchanged() -> None:
    plugins = [
        {"type": "bridge", "ipam": {"type": "host-local"}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]

    network = conflist.parse(listed("pods", plugins=plugins).encode(), "10-pods.conflist")

    assert (network.name, network.version, network.path) == ("pods", "1.0.0", "10-pods.conflist")
    assert [plugin.options for plugin in network.plugins] == plugins
    assert [plugin.can("portMappings") for plugin in network.plugins] == [False, True]


def test_a_single_plugin_is_a_list_of_one() -> None:
    network = conflist.parse(
        b'{"cniVersion": "0.4.0", "name": "pods", "type": "ptp", "mtu": 1400}', "10-pods.conf"
    )

    assert [plugin.type for plugin in network.plugins] == ["ptp"]
    assert network.plugins[0].options["mtu"] == 1400


def test_network_round_trips() -> None:
    network = conflist.parse(listed("pods", disableGC=True).encode(), "path")

    assert conflist.parse(conflist.to_json(network), "path") == network


def test_latest_common_version_is_chosen() -> None:
    network = conflist.parse(listed("pods", cniVersions=["0.4.0", "1.1.0", "2.0.0"]).encode(), "path")

    assert network.version == "1.1.0"
    assert network.has_version("0.4.0")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ('{"cniVersion": "1.0.0", "type": "bridge"}', "missing required field `name`"),
        ('{"cniVersion": "1.0.0", "name": "pods"}', "it contains no plugin"),
        ('{"cniVersion": "0.2.0", "name": "pods", "type": "bridge"}', "cniVersion 0.2.0 is not one of"),
        ('{"cniVersion": "1.0.0", "name": "../pods", "type": "bridge"}', "is not a valid network name"),
        ('{"cniVersion": "1.0.0", "name": "pods", "type": "../bridge"}', "is not a valid plugin name"),
    ],
)
def test_invalid_configuration_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        conflist.parse(text.encode(), "path")


def test_the_first_valid_file_by_name_wins(tmp_path: Path) -> None:
    (tmp_path / "00-readme.txt").write_text(listed("text"))
    (tmp_path / "05-broken.conflist").write_text("{")
    (tmp_path / "20-second.conflist").write_text(listed("second"))
    (tmp_path / "10-first.json").write_text(listed("first"))

    assert ConfigDirectory(tmp_path).network().name == "first"


def test_directory_is_read_again_after_a_change(tmp_path: Path) -> None:
    directory = ConfigDirectory(tmp_path)
    with pytest.raises(NetworkNotReady, match=r"no \.conflist, \.conf or \.json file"):
        directory.network()

    file = tmp_path / "10-pods.conflist"
    file.write_text(listed("one"))
    assert directory.network().name == "one"
    file.write_text(listed("another"))
    assert directory.network().name == "another"
    file.unlink()
    with pytest.raises(NetworkNotReady):
        directory.network()


def test_directory_is_read_again_after_a_change_in_a_folder_of_plugins(tmp_path: Path) -> None:
    (tmp_path / "10-pods.conflist").write_text(listed("pods"))
    folder = tmp_path / "pods"
    folder.mkdir()
    directory = ConfigDirectory(tmp_path)
    before = [plugin.type for plugin in directory.network().plugins]
    (folder / "90-tuning.conf").write_text('{"type": "tuning"}')
    assert [plugin.type for plugin in directory.network().plugins] == [*before, "tuning"]
    (folder / "90-tuning.conf").write_text('{"type": "firewall"}')
    assert [plugin.type for plugin in directory.network().plugins] == [*before, "firewall"]


def test_error_for_an_invalid_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "10-pods.conflist").write_text("{")

    with pytest.raises(
        NetworkNotReady, match=rf"{tmp_path} \(network\.conf_dir\): 10-pods\.conflist: .*truncated"
    ):
        ConfigDirectory(tmp_path).network()
    with pytest.raises(NetworkNotReady):
        ConfigDirectory(tmp_path / "missing").network()


def test_the_example_is_a_network_with_host_ports() -> None:
    example = Path(__file__).parents[3] / "examples" / "10-pvecri.conflist"

    network = conflist.parse(example.read_bytes(), str(example))

    assert [plugin.type for plugin in network.plugins] == ["bridge", "portmap"]
    assert network.plugins[1].can("portMappings")
