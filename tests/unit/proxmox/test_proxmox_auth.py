# SPDX-License-Identifier: Apache-2.0
"""A ticket is renewed before Proxmox stops taking it."""

from __future__ import annotations

from pathlib import Path

from pvecri.proxmox.auth import TICKET_RENEWAL_AGE, Ticket, TicketAuth


async def test_a_ticket_is_renewed_before_its_two_hours_are_over(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret")
    now = [0.0]
    given: list[str] = []

    async def login(username: str, secret: str) -> Ticket:
        given.append(f"{username}:{secret}")
        return Ticket(ticket=f"ticket {len(given)}", csrf="csrf")

    auth = TicketAuth("root@pam", password, login, clock=lambda: now[0])
    first = await auth.headers()
    now[0] = TICKET_RENEWAL_AGE
    again = await auth.headers()
    now[0] = TICKET_RENEWAL_AGE + 1
    renewed = await auth.headers()

    assert first == again
    assert renewed["Cookie"] == "PVEAuthCookie=ticket%202"
    assert given == ["root@pam:secret"] * 2
    assert TICKET_RENEWAL_AGE < 2 * 3600
