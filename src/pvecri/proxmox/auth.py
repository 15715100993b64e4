# SPDX-License-Identifier: Apache-2.0
"""Authentication: an API token, or a ticket of a user.

A token is stateless and needs no CSRF header; docs/proxmox-setup.md sets one up. A ticket is valid for two hours
and is requested with the user's password; writes need its CSRF prevention token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import msgspec

from pvecri.config.settings import ConfigError, ProxmoxConfig, read_secret
from pvecri.errors import PermissionDenied

TICKET_RENEWAL_AGE = 90 * 60.0
"""Seconds; a ticket is valid for two hours."""


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """POST /access/ticket. If `needs_tfa` is set, the ticket is valid only for the second factor's request."""

    ticket: str
    csrf: str = msgspec.field(name="CSRFPreventionToken", default="")
    needs_tfa: bool = msgspec.field(name="NeedTFA", default=False)


Login = Callable[[str, str], Awaitable[Ticket]]
"""Requests a ticket by user name and password; raises the errors of Transport.call."""


class Auth(Protocol):
    """What the transport uses of either kind."""

    @property
    def account(self) -> str:
        """The account's name, for messages; not a secret."""

    async def headers(self) -> dict[str, str]:
        """The authentication headers for a request that is sent now."""

    def refused(self) -> bool:
        """Called after a 401; returns whether a retry with new headers may succeed."""


class TokenAuth:
    """An API token (`user@realm!name`). Its secret is read again after a 401: it may have been replaced."""

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
    """A user's ticket, requested on first use, before it expires, and after a 401."""

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
        async with self._lock:  # one login for all calls that find the ticket expired
            if not self._headers or self._clock() - self._born > TICKET_RENEWAL_AGE:
                await self._renew()
            return self._headers

    def refused(self) -> bool:
        self._headers = {}
        return True

    async def _renew(self) -> None:
        # Before the login: the ticket's two hours begin when Proxmox issues it, not when it arrives.
        born = self._clock()
        password = read_secret(self._password_file, "proxmox.password_file")
        ticket = await self._login(self._username, password)
        if ticket.needs_tfa:
            raise PermissionDenied(
                f"Proxmox: {self.account} has a second factor, which a daemon cannot enter: set proxmox.token_id "
                f"and proxmox.token_secret_file"
            )
        # A ticket ends in a base64 signature, and pveproxy unescapes the cookie.
        cookie = f"PVEAuthCookie={quote(ticket.ticket, safe='')}"
        self._headers = {"Cookie": cookie, "CSRFPreventionToken": ticket.csrf}
        self._born = born


def auth_from(config: ProxmoxConfig, login: Login) -> Auth:
    """The configured kind; ConfigError if none is configured or a secret cannot be read."""
    if config.token_id and config.token_secret_file:
        return TokenAuth(config.token_id, config.token_secret_file)
    if config.username and config.password_file:
        return TicketAuth(config.username, config.password_file, login)
    raise ConfigError(
        "set proxmox.token_id and proxmox.token_secret_file, or proxmox.username and proxmox.password_file"
    )
