# SPDX-License-Identifier: AGPL-3.0-or-later
"""Permissions by Proxmox's rules."""

from __future__ import annotations

import json

import pytest

from pvecri_embedded.usercfg import (
    PRIVILEGES,
    SPECIAL_ROLES,
    Group,
    Pools,
    Token,
    User,
    UserConfig,
    is_acl_path,
    normalise_path,
)

ANN, TOKEN, SEPARATED = "ann@pve", "ann@pve!all", "ann@pve!some"


@pytest.fixture
def config() -> UserConfig:
    config = UserConfig()
    config.users[ANN] = User(tokens={"all": Token(privsep=0), "some": Token(privsep=1)})
    config.groups["staff"] = Group(users={ANN})
    config.own_roles |= {"Audit": {"VM.Audit"}, "Power": {"VM.PowerMgmt"}}
    return config


def held(config: UserConfig, who: str, path: str, pools: Pools | None = None) -> set[str]:
    return set(config.privileges(who, path, pools or Pools()))


def test_rights_propagate_downwards_unless_the_entry_says_otherwise(config: UserConfig) -> None:
    config.give("/vms", "user", ANN, "Audit")
    config.give("/", "user", ANN, "Power", propagate=False)
    assert held(config, ANN, "/vms/100") == {"VM.Audit"}
    assert held(config, ANN, "/") == {"VM.PowerMgmt"}


def test_entries_of_a_deeper_path_replace_those_from_above(config: UserConfig) -> None:
    config.give("/", "user", ANN, "Audit")
    config.give("/vms/100", "user", ANN, "Power")
    assert held(config, ANN, "/vms/100") == {"VM.PowerMgmt"}
    assert held(config, ANN, "/vms/101") == {"VM.Audit"}


def test_entry_that_does_not_propagate_replaces_nothing_below_it(config: UserConfig) -> None:
    config.give("/", "user", ANN, "Audit")
    config.give("/vms", "user", ANN, "Power", propagate=False)
    assert held(config, ANN, "/vms/100") == {"VM.Audit"}
    assert held(config, ANN, "/vms") == {"VM.PowerMgmt"}


def test_users_entry_takes_precedence_over_the_groups_on_the_same_path(config: UserConfig) -> None:
    config.give("/vms", "group", "staff", "Audit")
    assert held(config, ANN, "/vms/100") == {"VM.Audit"}
    config.give("/vms", "user", ANN, "Power")
    assert held(config, ANN, "/vms/100") == {"VM.PowerMgmt"}


def test_groups_entry_on_a_deeper_path_takes_precedence_over_the_users_above(config: UserConfig) -> None:
    config.give("/", "user", ANN, "Power")
    config.give("/vms", "group", "staff", "Audit")
    assert held(config, ANN, "/vms/100") == {"VM.Audit"}


def test_no_access_overrides_other_roles(config: UserConfig) -> None:
    config.give("/vms/100", "user", ANN, "Audit")
    config.give("/vms/100", "user", ANN, "NoAccess")
    assert held(config, ANN, "/vms/100") == set()


def test_roles_on_a_pool_apply_to_its_members(config: UserConfig) -> None:
    pools = Pools({"k8s": {100}, "k8s/a": {101}}, {"k8s": {"local"}})
    config.give("/pool/k8s", "user", ANN, "Audit")
    for path in ("/vms/100", "/vms/101", "/storage/local"):
        assert held(config, ANN, path, pools) == {"VM.Audit"}
    assert held(config, ANN, "/vms/102", pools) == set()
    config.give("/vms/100", "user", ANN, "Power")
    assert held(config, ANN, "/vms/100", pools) == {"VM.Audit", "VM.PowerMgmt"}


def test_no_access_on_a_pool_or_path_takes_precedence(config: UserConfig) -> None:
    pools = Pools({"k8s": {100}, "closed": {101}})
    config.give("/pool/k8s", "user", ANN, "Audit")
    config.give("/vms/100", "user", ANN, "NoAccess")
    config.give("/pool/closed", "user", ANN, "NoAccess")
    config.give("/vms/101", "user", ANN, "Audit")
    assert held(config, ANN, "/vms/100", pools) == set()
    assert held(config, ANN, "/vms/101", pools) == set()


def test_token_without_separation_has_its_users_rights(config: UserConfig) -> None:
    config.give("/vms", "user", ANN, "Audit")
    config.give("/vms", "token", TOKEN, "Power")
    assert held(config, TOKEN, "/vms/100") == {"VM.Audit"}


def test_separated_token_has_the_intersection_with_its_users_rights(config: UserConfig) -> None:
    config.give("/vms", "user", ANN, "Audit")
    assert held(config, SEPARATED, "/vms/100") == set()
    config.give("/", "token", SEPARATED, "Administrator")
    assert held(config, SEPARATED, "/vms/100") == {"VM.Audit"}
    config.give("/vms", "token", SEPARATED, "Power")
    assert held(config, SEPARATED, "/vms/100") == set()


def test_root_has_every_right_and_so_has_its_token_unless_it_is_separated(config: UserConfig) -> None:
    config.users["root@pam"].tokens |= {"all": Token(privsep=0), "some": Token()}
    config.give("/vms", "token", "root@pam!some", "Audit")
    assert held(config, "root@pam", "/vms") == held(config, "root@pam!all", "/vms") == PRIVILEGES
    assert held(config, "root@pam!some", "/vms/100") == {"VM.Audit"}


def test_unknown_users_tokens_and_roles_give_nothing(config: UserConfig) -> None:
    config.give("/", "user", ANN, "Audit")
    assert held(config, "ann@pve!gone", "/") == held(config, "bob@pve", "/") == set()
    del config.own_roles["Audit"]
    assert held(config, ANN, "/") == set()


def test_privilege_propagates_if_any_role_that_has_it_does(config: UserConfig) -> None:
    config.give("/vms", "user", ANN, "Audit", propagate=False)
    assert config.privileges(ANN, "/vms", Pools()) == {"VM.Audit": 0}
    config.give("/vms", "user", ANN, "PVETemplateUser")
    assert config.privileges(ANN, "/vms", Pools()) == {"VM.Audit": 1, "VM.Clone": 1}


def test_config_reads_back_as_it_was_written(config: UserConfig) -> None:
    config.give("/vms", "user", ANN, "Audit", propagate=False)
    config.give("/vms", "group", "staff", "NoAccess")
    assert UserConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_removed_user_loses_all_acl_entries(config: UserConfig) -> None:
    config.give("/vms", "user", ANN, "Audit")
    config.give("/", "user", ANN, "Power")
    config.give("/", "token", TOKEN, "Power")
    config.forget("user", ANN)
    assert config.acl == {"/": {("token", TOKEN): {"Power": 1}}}


@pytest.mark.parametrize(
    ("path", "normal"),
    [("/", "/"), ("vms/100/", "/vms/100"), ("//vms//100", "/vms/100"), ("", None), ("/a b", None)],
)
def test_paths_are_normalised(path: str, normal: str | None) -> None:
    assert normalise_path(path) == normal


def test_acls_need_a_known_path() -> None:
    for path in (
        "/",
        "/vms/100",
        "/pool/a/b/c",
        "/nodes/pve",
        "/sdn/zones/localnetwork/vmbr0/12",
        "/storage/local",
    ):
        assert is_acl_path(path), path
    for path in ("/vms/99", "/pool/a/b/c/d", "/nosuch", "/sdn/zones/z/b/12345", "/storage/a/b"):
        assert not is_acl_path(path), path


def test_proxmoxs_own_roles_are_made_of_its_privileges() -> None:
    assert set().union(*SPECIAL_ROLES.values()) == PRIVILEGES
    assert "Sys.Modify" not in SPECIAL_ROLES["PVEAdmin"]
    assert "Mapping.Modify" not in SPECIAL_ROLES["PVEAdmin"]
    assert SPECIAL_ROLES["PVEDatastoreUser"] == {"Datastore.AllocateSpace", "Datastore.Audit"}
