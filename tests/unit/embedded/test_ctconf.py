# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest

from pvecri_embedded.ctconf import CtConf, dump, parse

# As a Proxmox node wrote it.
FILE = """\
#{"k8s"%3A"%C3%A4%E2%82%AC","x"%3A1}
#line2 %2525 # hash
arch: amd64
cmode: console
console: 1
entrypoint: /bin/sleep 1000
features: nesting=1
hostname: ct201
memory: 128
ostype: unmanaged
protection: 0
rootfs: local:201/vm-201-disk-0.raw,size=1G
swap: 0
tags: b;k8s.io_x-y.z
tty: 0
unprivileged: 1
lxc.environment.runtime: A=1
"""


def test_config_of_a_proxmox_node_round_trips() -> None:
    assert dump(parse(FILE)) == FILE


def test_options_have_the_types_the_api_gives_them() -> None:
    config = parse("cpulimit: 0.5\ncores: 2\nunprivileged: 1\nhostname: 7\ntemplate: 1\n").config
    assert config == {"cpulimit": 0.5, "cores": 2, "unprivileged": 1, "hostname": "7", "template": 1}


def test_description_is_read_with_a_newline_after_each_line() -> None:
    assert parse(FILE).config["description"] == '{"k8s":"ä€","x":1}\nline2 %25 # hash\n'


@pytest.mark.parametrize(
    "conf",
    [
        CtConf({"memory": 64}),
        CtConf({"memory": 64, "env": "A=1\0B=two words", "lxc": [["lxc.signal.halt", "SIGTERM"]]}),
        CtConf({"memory": 64, "tags": "a"}, {"memory": 128, "tags": None}),
        CtConf({"memory": 64, "parent": "s1"}, {}, {"s1": {"memory": 32, "snaptime": 1795444187}}),
        CtConf({}, {"net0": "name=eth0"}, {"a": {"arch": "amd64"}, "b": {"arch": "arm64"}}),
    ],
)
def test_written_config_is_read_back(conf: CtConf) -> None:
    assert parse(dump(conf)) == conf


@pytest.mark.parametrize("line", ["no colon here", "", "   "])
def test_invalid_line_is_dropped(line: str) -> None:
    config: dict[str, Any] = parse(f"memory: 64\n{line}\n").config
    assert config == {"memory": 64}
