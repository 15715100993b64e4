# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fakepve import TaskError

from pvecri_embedded.lxc import hooks, nics
from pvecri_embedded.lxc.dhcp import command
from pvecri_embedded.lxc.nics import Nic

HOOKS = Path("/var/lib/lxc/900/hook")
UP = "lxc.net.0.script.up"


def nic(options: str = "name=eth0,bridge=vmbr0") -> Nic:
    return nics.parse(900, {"net0": options})[0]


def on_ovs(options: str) -> Nic:
    return replace(nic(options), on_ovs=True, mtu=1500)


def test_interfaces_are_ordered_by_number() -> None:
    config = {"net10": "name=eth10,bridge=vmbr0", "net2": "name=eth2,bridge=vmbr0", "hostname": "pod"}
    assert [each.host_name for each in nics.parse(900, config)] == ["veth900i2", "veth900i10"]


def test_unplugged_interface_has_no_dhcp_client() -> None:
    assert nic("name=eth0,ip=dhcp,host-managed=1").by_dhcp
    assert not nic("name=eth0,ip=dhcp").by_dhcp
    assert not nic("name=eth0,ip=dhcp,host-managed=1,link_down=1").by_dhcp


async def test_the_host_manages_no_address_that_comes_by_router_advertisement() -> None:
    with pytest.raises(TaskError, match="net0: SLAAC is not supported for host-managed network configuration"):
        await nics.plugged([nic("name=eth0,ip=dhcp,ip6=auto,host-managed=1")])


def test_an_interface_on_a_linux_bridge_needs_no_script() -> None:
    assert hooks.scripts([nic("name=eth0,bridge=vmbr0,tag=20,ip=dhcp")], HOOKS) == {}


def test_switch_port_is_added_with_its_vlan_and_removed() -> None:
    texts = hooks.scripts([on_ovs("name=eth0,bridge=vmbr1,tag=20")], HOOKS)
    assert texts.keys() == {UP, hooks.POST_STOP}
    assert "--if-exists del-port veth900i0 -- add-port vmbr1 veth900i0 tag=20 -- set" in texts[UP]
    assert texts[hooks.POST_STOP].endswith("--if-exists del-port veth900i0\n")


def test_a_port_without_a_tag_is_a_trunk() -> None:
    assert "tag=" not in hooks.scripts([on_ovs("name=eth0,bridge=vmbr1")], HOOKS)[UP]


def test_an_unplugged_interface_is_no_port() -> None:
    assert hooks.scripts([on_ovs("name=eth0,bridge=vmbr1,link_down=1")], HOOKS) == {}


def test_a_rate_is_in_mebibytes_a_second_and_for_both_directions() -> None:
    limit = hooks.scripts([nic("name=eth0,bridge=vmbr0,rate=2.5")], HOOKS)[UP]
    assert "htb rate 2621440bps" in limit
    assert "police rate 2621440bps" in limit


def test_the_dhcp_client_of_an_interface_is_killed_at_the_end() -> None:
    texts = hooks.scripts([nic("name=eth0,bridge=vmbr0,ip=dhcp,host-managed=1")], HOOKS)
    assert texts.keys() == {hooks.POST_STOP}
    assert f"<{HOOKS}/dhclient4-eth0.pid" in texts[hooks.POST_STOP]


def test_the_dhcp_client_works_in_the_cts_network_namespace() -> None:
    client = command(4711, HOOKS, nic())
    assert client[:6] == ["/usr/bin/nsenter", "--target", "4711", "--net", "--uts", "--"]
    assert client[-1] == "eth0"


def test_start_replaces_scripts_and_keeps_leases(tmp_path: Path) -> None:
    for name in (UP, "dhclient4-eth0.pid", "dhclient4-eth0.leases"):
        (tmp_path / name).touch()
    lines = hooks.write({hooks.POST_STOP: "true\n"}, tmp_path)
    assert lines == [(hooks.POST_STOP, str(tmp_path / hooks.POST_STOP))]
    assert {path.name for path in tmp_path.iterdir()} == {hooks.POST_STOP, "dhclient4-eth0.leases"}
