# SPDX-License-Identifier: Apache-2.0
"""Taking a setup back: what its record names, as far as it is unchanged and nobody else uses it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from pvecri.setup.node import Node, run
from pvecri.setup.record import Made, Record, sha256, under


@dataclass(frozen=True)
class Undo:
    """One object of the record, and what of it is removed: the command is run, and the file deleted."""

    made: Made
    command: tuple[str, ...] = ()
    path: Path | None = None

    def __str__(self) -> str:
        parts = [shlex.join(self.command)] if self.command else []
        parts += [f"rm {self.path}"] if self.path else []
        return "; ".join(parts) or f"forget {self.made.name}, which is gone"


def planned(node: Node, record: Record) -> tuple[list[Undo], list[str]]:
    """What to undo, the newest first, and what is kept, each with the reason.

    Objects that a cluster's nodes share are kept as long as the user has a token that this record does not name.
    """
    own = {each.name.removeprefix("token ") for each in record.made if each.name.startswith("token ")}
    users = {token.partition("!")[0] for token in own}
    others = sorted(token for token in node.tokens - own if token.partition("!")[0] in users)
    plan: list[Undo] = []
    kept: list[str] = []
    for made in reversed(record.made):
        if made.shared and others:
            kept.append(f"{made.name}: {', '.join(others)} may use it")
        elif made.path and sha256(under(node.root, Path(made.path))) not in ("", made.sha256):
            kept.append(f"{made.path} was changed since")
        else:
            plan.append(_undo(node, made))
    return plan, kept


def _undo(node: Node, made: Made) -> Undo:
    command = made.undo if node.has(made.name) else ()
    path = Path(made.path) if made.path and node.exists(Path(made.path)) else None
    return Undo(made, command, path)


def perform(node: Node, record: Record, undo: Undo) -> None:
    """Undo one. CommandError; OSError."""
    if undo.command:
        run(*undo.command)
    if undo.path:
        under(node.root, undo.path).unlink()
    record.remove(undo.made)
