# SPDX-License-Identifier: Apache-2.0
"""The answers of /healthz and /readyz, in the form of Kubernetes' components. Pure.

A reason is one word, such as ProxmoxStorageInactive: clients are not authenticated, and a message may have
addresses and names of storages, which `pvecri status` shows to root.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """The outcome of one check: passed if `failure`, its reason in CamelCase, is empty.

    One that is not `required` is shown and does not count.
    """

    name: str
    failure: str = ""
    required: bool = True

    def line(self, *, excluded: bool = False) -> str:
        """The line of a verbose answer."""
        if excluded:
            return f"[+]{self.name} excluded: ok"
        if not self.failure:
            return f"[+]{self.name} ok"
        return f"[-]{self.name} failed{'' if self.required else ' (not required)'}: {self.failure}"


def answer(
    endpoint: str, checks: Sequence[Check], *, verbose: bool, excluded: Collection[str] = ()
) -> tuple[bool, str]:
    """Whether all checks that count have passed, and the body; `endpoint` is `healthz` or `readyz`.

    A failure has a line for each check, a success only if it is `verbose`. Names in `excluded` do not count.
    """
    passed = not any(each.failure and each.required and each.name not in excluded for each in checks)
    if passed and not verbose:
        return True, "ok"
    lines = [each.line(excluded=each.name in excluded) for each in checks]
    if unknown := sorted(set(excluded) - {each.name for each in checks}):
        lines.append(
            f"warn: some health checks cannot be excluded: no matches for {', '.join(map(repr, unknown))}"
        )
    lines.append(f"{endpoint} check {'passed' if passed else 'failed'}")
    return passed, "\n".join(lines) + "\n"
