# SPDX-License-Identifier: Apache-2.0
"""CDI: spec files are found and parsed, and their edits are applied to an OCI spec."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support.plans import PLAN

from pvecri.errors import InvalidArgument
from pvecri.oci import cdi, runtime_spec, spec
from pvecri.oci.cdi import DeviceNode, EditMount, Edits, Hook
from pvecri.oci.runtime_spec import Mount, User


def write(directory: Path, name: str, kind: str = "vendor.com/gpu", **fields: Any) -> Path:
    """A spec file; `devices` by name with the edits for each, `edits` those for all."""
    devices = [{"name": device, "containerEdits": edits} for device, edits in fields.pop("devices", {}).items()]
    described = {
        "cdiVersion": "0.6.0",
        "kind": kind,
        "devices": devices,
        "containerEdits": fields.pop("edits", {}),
    }
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(json.dumps(described | fields))
    return path


def env(*variables: str) -> dict[str, Any]:
    return {"env": variables}


# -- finding -------------------------------------------------------------------------------------------------


def test_no_spec_file_is_read_without_a_device(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    assert cdi.find([], [tmp_path]) == ()


def test_edits_of_the_file_come_before_edits_of_the_device(tmp_path: Path) -> None:
    write(tmp_path, "gpu.json", edits=env("ALL=1"), devices={"0": env("GPU=0"), "1": env("GPU=1")})
    found = cdi.find(["vendor.com/gpu=1"], [tmp_path])
    assert [edits.env for edits in found] == [("ALL=1",), ("GPU=1",)]


def test_edits_of_a_file_are_applied_once_for_several_devices(tmp_path: Path) -> None:
    write(tmp_path, "gpu.json", edits=env("ALL=1"), devices={"0": env("A=0"), "1": env("B=1")})
    found = cdi.find(["vendor.com/gpu=0", "vendor.com/gpu=1", "vendor.com/gpu=0"], [tmp_path])
    assert [edits.env for edits in found] == [("ALL=1",), ("A=0",), ("B=1",)]


def test_edits_of_each_file_of_one_kind_are_applied(tmp_path: Path) -> None:
    write(tmp_path, "a.json", edits=env("ONE=1"), devices={"0": {}})
    write(tmp_path, "b.json", edits=env("TWO=2"), devices={"1": {}})
    found = cdi.find(["vendor.com/gpu=0", "vendor.com/gpu=1"], [tmp_path])
    assert [edits.env for edits in found if edits.env] == [("ONE=1",), ("TWO=2",)]


def test_later_directory_takes_precedence(tmp_path: Path) -> None:
    write(tmp_path / "etc", "gpu.json", devices={"0": env("FROM=etc")})
    write(tmp_path / "run", "gpu.json", devices={"0": env("FROM=run")})
    found = cdi.find(["vendor.com/gpu=0"], [tmp_path / "etc", tmp_path / "run", tmp_path / "nothing"])
    assert [edits.env for edits in found] == [(), ("FROM=run",)]


@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_spec_file_may_be_yaml(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"gpu.{suffix}"
    path.write_text("kind: vendor.com/gpu\ndevices:\n- name: all\n  containerEdits:\n    env: [A=1]\n")
    assert cdi.find(["vendor.com/gpu=all"], [tmp_path])[1].env == ("A=1",)


@pytest.mark.parametrize("name", ["vendor.com/gpu=2", "vendor.com/gpu", "other.com/gpu=0", "0", ""])
def test_unknown_device_is_refused_with_the_searched_directories(tmp_path: Path, name: str) -> None:
    write(tmp_path, "gpu.json", devices={"0": {}})
    with pytest.raises(InvalidArgument) as caught:
        cdi.find(["vendor.com/gpu=0", name], [tmp_path, Path("/nothing")])
    assert str(caught.value) == f"config.CDI_devices[1].name: no CDI spec in {tmp_path}, /nothing has {name!r}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("a.json", "[]"),
        ("a.json", '{"devices": []}'),
        ("a.json", '{"kind": "k", "devices": [{"name": 1}]}'),
        ("a.json", b"\xff"),
        ("a.yaml", "a: [b"),
        ("a.yaml", b"\xff"),
    ],
)
def test_malformed_spec_file_is_named(tmp_path: Path, name: str, text: str | bytes) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(
        InvalidArgument, match=rf"^config\.CDI_devices: the CDI spec {tmp_path}/{name} cannot be read"
    ):
        cdi.find(["vendor.com/gpu=0"], [tmp_path])


def test_other_files_and_unknown_fields_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("{")
    edits = {"env": ["A=1"], "intelRdt": {"closID": "x"}}
    write(tmp_path, "gpu.json", devices={"0": edits}, annotations={"a": "b"})
    assert cdi.find(["vendor.com/gpu=0"], [tmp_path])[1] == Edits(env=("A=1",))


def test_every_field_of_container_edits_is_parsed(tmp_path: Path) -> None:
    node = {"path": "/dev/g", "hostPath": "/dev/h", "type": "c", "major": 1, "minor": 2, "fileMode": 438}
    edits = {
        "env": ["A=1"],
        "deviceNodes": [node | {"permissions": "r", "uid": 3, "gid": 4}],
        "mounts": [{"hostPath": "/h", "containerPath": "/c", "type": "tmpfs", "options": ["ro"]}],
        "hooks": [{"hookName": "createContainer", "path": "/p", "args": ["p"], "env": ["B=2"], "timeout": 5}],
        "additionalGids": [7],
    }
    write(tmp_path, "gpu.json", devices={"0": edits})
    assert cdi.find(["vendor.com/gpu=0"], [tmp_path])[1] == Edits(
        env=("A=1",),
        device_nodes=(
            DeviceNode(
                path="/dev/g",
                host_path="/dev/h",
                type="c",
                major=1,
                minor=2,
                file_mode=438,
                permissions="r",
                uid=3,
                gid=4,
            ),
        ),
        mounts=(EditMount(host_path="/h", container_path="/c", type="tmpfs", options=("ro",)),),
        hooks=(Hook(hook_name="createContainer", path="/p", args=("p",), env=("B=2",), timeout=5),),
        additional_gids=(7,),
    )


# -- editing -------------------------------------------------------------------------------------------------


PLAIN = runtime_spec.decode(spec.build(PLAN))
SPEC = replace(
    PLAIN,
    process=replace(PLAIN.process, env=("PATH=/bin", "GPU=none"), user=User(uid=0, gid=0)),
    mounts=(Mount(destination="/proc"),),
)


def edited(*edits: Edits) -> Any:
    """The JSON of a small spec after edits."""
    return json.loads(runtime_spec.encode(functools.reduce(cdi.apply, edits, SPEC)))


def test_variable_replaces_the_one_of_the_same_name() -> None:
    assert edited(Edits(env=("GPU=0", "NEW=a=b")))["process"]["env"] == ["PATH=/bin", "GPU=0", "NEW=a=b"]


def test_mounts_are_appended() -> None:
    document = edited(Edits(mounts=(EditMount(host_path="/h", container_path="/c"),)))
    added = {"destination": "/c", "source": "/h", "type": "bind", "options": ["rbind", "ro"]}
    assert document["mounts"] == [{"destination": "/proc"}, added]


def test_additional_gids_are_deduplicated_and_zero_is_ignored() -> None:
    document = edited(*[Edits(additional_gids=(0, 44, 109))] * 2)
    assert document["process"]["user"]["additionalGids"] == [44, 109]


def test_hooks_are_appended_to_their_kind() -> None:
    hooks = [Hook(hook_name="poststop", path="/a"), Hook(hook_name="poststop", path="/b", timeout=3)]
    document = edited(*(Edits(hooks=(hook,)) for hook in hooks))
    first = {"path": "/a", "args": [], "env": []}
    assert document["hooks"] == {"poststop": [first, {"path": "/b", "args": [], "env": [], "timeout": 3}]}


def test_empty_edits_change_nothing() -> None:
    document = edited()
    user = document["process"]["user"] | {"additionalGids": []}
    assert edited(Edits()) == document | {"process": document["process"] | {"user": user}}


# -- devices -------------------------------------------------------------------------------------------------


def test_unset_fields_of_a_device_node_come_from_the_host_device() -> None:
    (device,) = cdi.devices([Edits(device_nodes=(DeviceNode(path="/dev/gpu", host_path="/dev/null"),))])
    assert (device.container_path, device.kind, device.major, device.minor) == ("/dev/gpu", "c", 1, 3)
    assert (device.uid, device.gid, device.access) == (0, 0, "rwm")
    assert device.mode == Path("/dev/null").stat().st_mode & 0o7777


def test_zero_fields_of_a_device_node_are_kept() -> None:
    node = DeviceNode(path="/dev/null", major=0, minor=0, file_mode=0, uid=5, gid=6, permissions="r", type="b")
    (device,) = cdi.devices([Edits(device_nodes=(node,))])
    assert (device.kind, device.major, device.minor, device.mode) == ("b", 0, 0, 0)
    assert (device.uid, device.gid, device.access) == (5, 6, "r")


def test_missing_host_device_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^config\.CDI_devices: /dev/nothing: No such file or directory$"):
        cdi.devices([Edits(device_nodes=(DeviceNode(path="/dev/nothing"),))])
