# SPDX-License-Identifier: Apache-2.0
"""Who we are to Proxmox: an API token, or a user's ticket.

A token is stateless and needs no CSRF header, so it is what docs/proxmox-setup.md sets up. A ticket lives for two
hours and is asked for with the user's password; writes must carry its CSRF prevention token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import msgspec

from pvecri.config import ConfigError, ProxmoxConfig, read_secret
from pvecri.errors import PermissionDenied

TICKET_RENEWAL_AGE = 90 * 60.0
"""Seconds; Proxmox takes a ticket for two hours."""


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """POST /access/ticket. Of a user with a second factor `needs_tfa` is set, and the ticket opens nothing."""

    ticket: str
    csrf: str = msgspec.field(name="CSRFPreventionToken", default="")
    needs_tfa: bool = msgspec.field(name="NeedTFA", default=False)


Login = Callable[[str, str], Awaitable[Ticket]]
"""Ask for a ticket by user name and password; raises as any call to Proxmox."""


class Auth(Protocol):
    """What the transport needs to know of either."""

    @property
    def account(self) -> str:
        """The name for messages, never a secret."""

    async def headers(self) -> dict[str, str]:
        """The headers that say who we are, for a request to be sent now."""

    def refused(self) -> bool:
        """Take note of a 401; whether another try, with new headers, can do better."""


class TokenAuth:
    """An API token (`user@realm!name`); its secret is read again when it was refused, for it may be new."""

    def __init__(self, token_id: str, secret_file: Path) -> None:
        self.account = f"token {token_id}"
        self._token_id = token_id
        self._secret_file = secret_file
        self._secret = self._read()

    async def headers(self) -> dict[str, str]:
        return {"Authorization": f"PVEAPIToken={self._token_id}={self._secret}"}

    def refused(self) -> bool:
        before, self._secret = self._secret, self._read()
        return self._secret != before

    def _read(self) -> str:
        return read_secret(self._secret_file, "proxmox.token_secret_file")


class TicketAuth:
    """A user's ticket, asked for on first use, in time before it ends, and after a refusal."""

    def __init__(
        self,
        username: str,
        password_file: Path,
        login: Login,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.account = f"user {username}"
        self._username = username
        self._password_file = password_file
        self._login = login
        self._clock = clock
        self._lock = asyncio.Lock()
        self._headers: dict[str, str] = {}
        self._born = 0.0

    async def headers(self) -> dict[str, str]:
        async with self._lock:
            if not self._headers or self._clock() - self._born > TICKET_RENEWAL_AGE:
                await self._renew()
            return self._headers

    def refused(self) -> bool:
        self._headers = {}
        return True

    async def _renew(self) -> None:
        born = self._clock()
        password = read_secret(self._password_file, "proxmox.password_file")
        ticket = await self._login(self._username, password)
        if ticket.needs_tfa:
            raise PermissionDenied(
                f"Proxmox: {self.account} has a second factor, which a daemon cannot answer: set proxmox.token_id "
                f"and proxmox.token_secret_file"
            )
        cookie = f"PVEAuthCookie={quote(ticket.ticket, safe='')}"
        self._headers = {"Cookie": cookie, "CSRFPreventionToken": ticket.csrf}
        self._born = born


def auth_from(config: ProxmoxConfig, login: Login) -> Auth:
    """The one that the configuration asks for; ConfigError when it names none or a secret cannot be read."""
    if config.token_id and config.token_secret_file:
        return TokenAuth(config.token_id, config.token_secret_file)
    if config.username and config.password_file:
        return TicketAuth(config.username, config.password_file, login)
    raise ConfigError(
        "set proxmox.token_id and proxmox.token_secret_file, or proxmox.username and proxmox.password_file"
    )
