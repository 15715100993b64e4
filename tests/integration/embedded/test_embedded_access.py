# SPDX-License-Identifier: AGPL-3.0-or-later
"""Users, groups, tokens, roles, pools and ACLs made through the embedded node's API work as Proxmox's."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pve_replay.account import documented_account
from pve_replay.process import Login, NodeProcess, new_state_dir

USER = "/access/users/ann@pve"


@pytest.fixture
async def node() -> AsyncIterator[NodeProcess]:
    with new_state_dir() as state_dir:
        async with NodeProcess(state_dir) as process:
            await process.ask("POST", "/access/users", {"userid": "ann@pve", "password": "annspassword"})
            await process.ask("POST", "/access/roles", {"roleid": "Looker", "privs": "VM.Audit,Sys.Audit"})
            yield process


async def give(node: NodeProcess, path: str, role: str, **options: Any) -> None:
    await node.ask("PUT", "/access/acl", {"path": path, "roles": role, "users": "ann@pve", **options})


async def new_token(node: NodeProcess, name: str, **options: Any) -> Login:
    made = await node.ask("POST", f"{USER}/token/{name}", options)
    return Login(made["full-tokenid"], made["value"])


async def rights(node: NodeProcess, login: Login) -> dict[str, Any]:
    with node.asked_as(login):
        held = await node.get("/access/permissions")
        assert isinstance(held, dict)
        return held


async def test_secret_of_a_token_is_random_and_shown_once(node: NodeProcess) -> None:
    login = await new_token(node, "one", comment="first", privsep=0)
    assert uuid.UUID(login.secret).version == 4
    assert login.secret != (await new_token(node, "two")).secret
    assert await node.get(f"{USER}/token/one") == {"privsep": 0, "comment": "first"}
    assert login.secret not in str(await node.get("/access/users?full=1"))
    with node.asked_as(login):
        assert (await node.get("/version"))["release"] == "9.2"
    with node.asked_as(Login(login.tokenid, str(uuid.uuid4()))):
        assert await node.refusal("GET", "/version") == (401, "Authentication failed!")


async def test_new_secret_of_a_token_replaces_the_old_one(node: NodeProcess) -> None:
    old = await new_token(node, "one")
    new = await node.ask("PUT", f"{USER}/token/one", {"regenerate": 1})
    with node.asked_as(old):
        assert (await node.refusal("GET", "/version"))[0] == 401
    with node.asked_as(Login(old.tokenid, new["value"])):
        await node.get("/version")


async def test_token_of_a_disabled_or_deleted_user_is_refused(node: NodeProcess) -> None:
    login = await new_token(node, "one", privsep=0)
    await node.ask("PUT", USER, {"enable": 0})
    with node.asked_as(login):
        assert (await node.refusal("GET", "/version"))[0] == 401
    await node.ask("PUT", USER, {"enable": 1})
    with node.asked_as(login):
        await node.get("/version")
    await node.ask("DELETE", USER)
    with node.asked_as(login):
        assert (await node.refusal("GET", "/version"))[0] == 401


async def test_token_with_privilege_separation_has_its_own_rights(node: NodeProcess) -> None:
    await give(node, "/vms", "Looker")
    whole, separated = await new_token(node, "whole", privsep=0), await new_token(node, "sep")
    assert (await rights(node, whole))["/vms"] == {"VM.Audit": 1, "Sys.Audit": 1}
    assert await rights(node, separated) == {}
    await give(node, "/vms/100", "PVEVMAdmin", tokens=separated.tokenid, users="")
    assert await rights(node, separated) == {"/vms/100": {"VM.Audit": 1}}


async def test_change_of_a_role_takes_effect_at_once(node: NodeProcess) -> None:
    login = await new_token(node, "one", privsep=0)
    await give(node, "/nodes/pve", "Looker")
    await node.ask("PUT", "/access/roles/Looker", {"privs": "VM.Audit"})
    with node.asked_as(login):
        refused = await node.refusal("GET", "/nodes/pve/status")
    assert refused == (403, "Permission check failed (/nodes/pve, Sys.Audit)")
    await node.ask("PUT", "/access/roles/Looker", {"privs": "Sys.Audit", "append": 1})
    with node.asked_as(login):
        await node.get("/nodes/pve/status")


async def test_group_gives_its_members_rights(node: NodeProcess) -> None:
    login = await new_token(node, "one", privsep=0)
    await node.ask("POST", "/access/groups", {"groupid": "staff", "comment": "all of us"})
    await give(node, "/nodes", "Looker", groups="staff", users="")
    assert await rights(node, login) == {}
    await node.ask("PUT", USER, {"groups": "staff"})
    assert (await rights(node, login))["/nodes"] == {"VM.Audit": 1, "Sys.Audit": 1}
    assert await node.get("/access/groups/staff") == {"members": ["ann@pve"], "comment": "all of us"}
    await node.ask("DELETE", "/access/groups/staff")
    assert await rights(node, login) == {}


async def test_user_can_log_in_with_the_initial_password(node: NodeProcess) -> None:
    login = {"username": "ann@pve", "password": "annspassword"}
    assert (await node.ask("POST", "/access/ticket", login))["username"] == "ann@pve"
    wrong = await node.refusal("POST", "/access/ticket", {**login, "password": "other"})
    assert wrong == (401, "authentication failure")


async def test_accounts_survive_a_restart(node: NodeProcess) -> None:
    await give(node, "/vms", "Looker", propagate=0)
    await node.ask("POST", "/pools", {"poolid": "k8s", "comment": "pods"})
    login = await new_token(node, "one", privsep=0)
    kept = {
        path: await node.get(path)
        for path in ("/access/users?full=1", "/access/roles", "/access/acl", "/pools", f"{USER}/token")
    }
    held = await rights(node, login)
    await node.restart()
    assert {path: await node.get(path) for path in kept} == kept
    assert await rights(node, login) == held
    for path in ("user.json", "priv/access.json"):
        assert (node.state_dir / "pve" / path).stat().st_mode & 0o007 == 0


async def test_documented_commands_create_the_documented_account(node: NodeProcess) -> None:
    account = await documented_account(node)
    held = await rights(node, account)
    assert held["/"] == {"Sys.Modify": 0}
    assert "Sys.Modify" not in held["/nodes/pve"]
    assert set(held["/storage/local"]) == {
        "Datastore.AllocateSpace", "Datastore.AllocateTemplate", "Datastore.Audit",
    }  # fmt: skip
    assert "/vms" not in held
    assert "VM.PowerMgmt" in held["/pool/kubernetes"]
    # Made again it is the same account, with another secret.
    again = await documented_account(node)
    assert (again.tokenid, again.secret == account.secret) == (account.tokenid, False)
    assert await rights(node, again) == held


@pytest.mark.parametrize(
    ("method", "path", "parameters", "refusal"),
    [
        ("POST", "/access/users", {"userid": "ann@pve"}, "create user failed: user 'ann@pve' already exists"),
        ("POST", "/access/roles", {"roleid": "Looker"}, "create role failed: role 'Looker' already exists"),
        ("POST", "/access/roles", {"roleid": "A", "privs": "No"}, "create role failed: invalid privilege 'No'"),
        ("DELETE", "/access/roles/Administrator", {}, "auto-generated role 'Administrator' cannot be deleted"),
        ("GET", "/access/users/bob@pve", {}, "no such user ('bob@pve')"),
        ("GET", f"{USER}/token/no", {}, "no such token 'no' for user 'ann@pve'"),
        (
            "PUT", "/access/acl", {"path": "/", "roles": "No", "users": "ann@pve"},
            "ACL update failed: role 'No' does not exist",
        ),
        (
            "PUT", "/access/acl", {"path": "/", "roles": "Looker", "users": "bob@pve"},
            "ACL update failed: user 'bob@pve' does not exist",
        ),
    ],
)  # fmt: skip
async def test_error_messages_are_proxmoxs(
    node: NodeProcess, method: str, path: str, parameters: dict[str, Any], refusal: str
) -> None:
    given = parameters if method in {"POST", "PUT"} else None
    assert await node.refusal(method, path, given) == (500, refusal)


async def test_user_without_permissions_modify_cannot_grant_rights(node: NodeProcess) -> None:
    login = await new_token(node, "one", privsep=0)
    with node.asked_as(login):
        for path, why in (
            ("/", "(/, Permissions.Modify)"),
            ("/vms/100", "(/vms/100, Permissions.Modify|VM.Allocate)"),
            ("/pool/k8s", "(/pool/k8s, Permissions.Modify|Pool.Allocate)"),
        ):
            parameters = {"path": path, "roles": "Administrator", "users": "ann@pve"}
            refused = await node.refusal("PUT", "/access/acl", parameters)
            assert refused == (403, f"Permission check failed {why}")
        assert (await node.refusal("POST", "/access/roles", {"roleid": "A"}))[0] == 403
        assert (await node.refusal("POST", "/access/users", {"userid": "bob@pve"}))[0] == 403
        assert (await node.refusal("GET", "/access/permissions?userid=root@pam"))[0] == 403
        assert await node.get("/access/acl") == []
        assert [user["userid"] for user in await node.get("/access/users")] == []


async def test_concurrent_changes_are_all_stored(node: NodeProcess) -> None:
    names = [f"Role{n}" for n in range(20)]
    await asyncio.gather(*(node.ask("POST", "/access/roles", {"roleid": name}) for name in names))
    await node.restart()
    assert {role["roleid"] for role in await node.get("/access/roles")} >= set(names)
