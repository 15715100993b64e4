# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

import pytest
from fakepve import schema as pve_schema

from pvecri_embedded.api.wording import reword

SPEC = pve_schema.load().paths["/nodes/{node}/lxc"]["POST"]["parameters"]
MISSING = "net0.name: property is missing and it is not optional\n"
UNKNOWN = "net0.{}: property is not defined in schema and the schema does not allow additional properties\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("bogus=1", MISSING + UNKNOWN.format("bogus")),
        ("name=eth0,bogus=1", UNKNOWN.format("bogus")),
        ("one=1,name=eth0,two=2", UNKNOWN.format("one") + UNKNOWN.format("two")),
        ("bridge=vmbr0", MISSING),
    ],
)
def test_unknown_keys_are_last_in_the_error(value: str, text: str) -> None:
    error = pve_schema.validate(SPEC, {"net0": value})[1]["net0"]
    assert reword(SPEC, "net0", value, error) == f"invalid format - format error\n{text}"


def test_other_errors_are_unchanged() -> None:
    text = "type check ('integer') failed - got 'lots'"
    assert reword(SPEC, "memory", "lots", text) == text
