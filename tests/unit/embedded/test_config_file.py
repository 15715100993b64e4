# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pvecri_embedded.lxc import nics
from pvecri_embedded.lxc.cgroup import CgroupTree
from pvecri_embedded.lxc.config_file import render


@pytest.fixture
def cgroups(tmp_path: Path) -> CgroupTree:
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "cpuset.cpus.effective").write_text("0-3\n")
    return CgroupTree(tmp_path)


def lines(cgroups: CgroupTree, **config: Any) -> list[str]:
    rendered = render(900, config, nics.parse(900, config), Path("/var/lib/lxc/900/rootfs"), cgroups)
    return rendered.splitlines()


def keys(rendered: list[str]) -> list[str]:
    return [line.partition(" = ")[0] for line in rendered]


def test_config_of_a_sandbox_ct_equals_proxmoxs(cgroups: CgroupTree) -> None:
    rendered = lines(cgroups, unprivileged=1, hostname="pod", memory=64, swap=0, console=0, tty=0)
    assert rendered[:4] == [
        "lxc.cgroup.relative = 0",
        "lxc.cgroup.dir.monitor = lxc.monitor/900",
        "lxc.cgroup.dir.container = lxc/900",
        "lxc.cgroup.dir.container.inner = ns",
    ]
    assert {"lxc.idmap = u 0 100000 65536", "lxc.idmap = g 0 100000 65536"} <= set(rendered)
    assert {"lxc.console.path = none", "lxc.tty.max = 0", "lxc.uts.name = pod"} <= set(rendered)
    assert "lxc.cgroup2.memory.max = 67108864" in rendered


def test_ct_without_nics_has_no_network_keys(cgroups: CgroupTree) -> None:
    assert not [key for key in keys(lines(cgroups, unprivileged=1)) if key.startswith("lxc.net")]


def test_privileged_ct_has_no_id_map(cgroups: CgroupTree) -> None:
    assert "lxc.idmap" not in keys(lines(cgroups))


def test_nic_becomes_a_veth_to_its_bridge(cgroups: CgroupTree) -> None:
    rendered = lines(cgroups, net1="name=eth1,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,mtu=1450,type=veth")
    assert [line for line in rendered if line.startswith("lxc.net.")] == [
        "lxc.net.1.type = veth",
        "lxc.net.1.veth.pair = veth900i1",
        "lxc.net.1.name = eth1",
        "lxc.net.1.link = vmbr0",
        "lxc.net.1.hwaddr = BC:24:11:00:00:01",
        "lxc.net.1.mtu = 1450",
        "lxc.net.1.flags = up",
    ]


def test_raw_keys_follow_the_keys_they_override_and_cores_are_last(cgroups: CgroupTree) -> None:
    rendered = lines(cgroups, lxc=[["lxc.uts.name", "other"]], cores=1)
    assert rendered.index("lxc.uts.name = other") > rendered.index("lxc.uts.name = CT900")
    assert rendered[-1] == "lxc.cgroup2.cpuset.cpus = 0"


def test_entrypoint_and_environment_are_those_of_init(cgroups: CgroupTree) -> None:
    rendered = lines(cgroups, entrypoint="/bin/sleep 9", env="A=1\0B=two words")
    assert "lxc.init.cmd = /bin/sleep 9" in rendered
    assert [line for line in rendered if line.startswith("lxc.environment")] == [
        "lxc.environment = TERM=linux",
        "lxc.environment = A=1",
        "lxc.environment = B=two words",
    ]


def test_tag_is_the_vlan_of_the_port(cgroups: CgroupTree) -> None:
    assert "lxc.net.0.veth.vlan.id = 20" in lines(cgroups, net0="name=eth0,bridge=vmbr0,tag=20")
