# SPDX-License-Identifier: AGPL-3.0-or-later
"""Parameter errors in the words of Proxmox VE 9.2, where fakepve has those of a release before."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from fakepve import PveError
from fakepve import schema as pve_schema

from pvecri_embedded.api.base import Base

_FORMAT_ERROR = "invalid format - format error\n"
_UNKNOWN_KEY = re.compile(r"invalid format - invalid key in comma-separated list property: (\S+)\n")
_NO_RESOLVER = "Temporary failure in name resolution"
_NOT_IN_SCHEMA = "property is not defined in schema and the schema does not allow additional properties"


class WordingApi(Base):
    """Rewords the errors of a request's check against the schema."""

    async def answer(
        self, request: web.Request, match: Any, params: Mapping[str, Any], user: str | None, call: Any = None
    ) -> Any:
        try:
            return await super().answer(request, match, params, user, call)
        except PveError as error:
            if error.message.startswith("hostname lookup"):
                # What a node without a name server says: this one asks none.
                error.message = error.message.replace("Name or service not known", _NO_RESOLVER)
            if error.errors:
                spec = match.methods[request.method].get("parameters")
                error.errors = {
                    name: reword(spec, name, str(params.get(name)), text) for name, text in error.errors.items()
                }
            raise


def reword(spec: Mapping[str, Any], name: str, value: str, text: str) -> str:
    """The error of a property string with unknown keys: they are named after what else is wrong with it."""
    unknown: list[str] = []
    while found := _UNKNOWN_KEY.fullmatch(text):
        unknown.append(found.group(1))
        value = ",".join(part for part in value.split(",") if part.partition("=")[0] != found.group(1))
        text = pve_schema.validate(spec, {name: value})[1].get(name, "")
    if not unknown or (text and not text.startswith(_FORMAT_ERROR)):
        return text
    rest = "".join(f"{name}.{key}: {_NOT_IN_SCHEMA}\n" for key in unknown)
    return _FORMAT_ERROR + text.removeprefix(_FORMAT_ERROR) + rest
