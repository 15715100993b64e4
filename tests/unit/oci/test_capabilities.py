# SPDX-License-Identifier: Apache-2.0
"""The capabilities that a container gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvecri.errors import InvalidArgument
from pvecri.model import Capabilities
from pvecri.oci.capabilities import DEFAULT, NAMES, canonical, effective, granted

EVERY = frozenset(NAMES)


def of(*names: str) -> frozenset[str]:
    return frozenset(f"CAP_{name}" for name in names)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Capabilities(), DEFAULT),
        (Capabilities(add=("SYS_ADMIN",)), DEFAULT | of("SYS_ADMIN")),
        (Capabilities(add=("cap_sys_admin",)), DEFAULT | of("SYS_ADMIN")),
        (Capabilities(drop=("CHOWN",)), DEFAULT - of("CHOWN")),
        (Capabilities(drop=("ALL",)), frozenset()),
        (Capabilities(drop=("all",)), frozenset()),
        (Capabilities(drop=("ALL",), add=("CHOWN",)), of("CHOWN")),
        (Capabilities(add=("ALL",)), EVERY),
        (Capabilities(add=("ALL",), drop=("SYS_ADMIN",)), EVERY - of("SYS_ADMIN")),
        # As CRI-O and containerd: named ones are added, then dropped, from all, none or the default set.
        (Capabilities(add=("CHOWN",), drop=("CHOWN",)), DEFAULT - of("CHOWN")),
        (Capabilities(add=("KILL", "CHOWN"), drop=("ALL", "CHOWN")), of("KILL")),
        (Capabilities(add=("ALL", "CHOWN"), drop=("ALL",)), of("CHOWN")),
    ],
)
def test_add_and_drop_apply_to_the_default_set(wanted: Capabilities, expected: frozenset[str]) -> None:
    assert granted(wanted, privileged=False, available=EVERY) == expected


def test_capabilities_that_the_daemon_lacks_are_left_out() -> None:
    available = EVERY - of("SYS_RESOURCE")
    wanted = Capabilities(add=("SYS_RESOURCE", "SYS_ADMIN"))
    assert granted(wanted, privileged=False, available=available) == DEFAULT | of("SYS_ADMIN")
    assert granted(Capabilities(add=("ALL",)), privileged=False, available=available) == available


def test_privileged_container_gets_every_capability_of_the_daemon() -> None:
    available = EVERY - of("SYS_RESOURCE")
    assert granted(Capabilities(drop=("ALL",)), privileged=True, available=available) == available


@pytest.mark.parametrize(("key", "field"), [("add", "add_capabilities"), ("drop", "drop_capabilities")])
def test_unknown_capability_is_an_invalid_argument(key: str, field: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"capabilities\.{field}: unknown capability 'FLY'"):
        granted(Capabilities(**{key: ("FLY",)}), privileged=False, available=EVERY)


def test_cap_prefix_is_optional() -> None:
    assert canonical(["CAP_CHOWN", "chown", "Kill"], "field") == of("CHOWN", "KILL")


def test_names_are_in_the_order_of_the_kernels_numbers() -> None:
    assert (NAMES.index("CAP_CHOWN"), NAMES.index("CAP_SYS_ADMIN"), NAMES.index("CAP_CHECKPOINT_RESTORE")) == (
        0,
        21,
        40,
    )


def test_effective_set_is_read_from_proc() -> None:
    status = Path("/proc/self/status").read_text()
    mask = int(status.partition("CapEff:")[2].split()[0], 16) & ((1 << len(NAMES)) - 1)
    assert sum(1 << NAMES.index(name) for name in effective()) == mask
