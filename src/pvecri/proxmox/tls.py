# SPDX-License-Identifier: Apache-2.0
"""Verification of the server's certificate: by fingerprint, or by a CA."""

from __future__ import annotations

import hashlib
import logging
import ssl
from pathlib import Path

from pvecri.config.settings import ConfigError, ProxmoxConfig
from pvecri.errors import Unavailable

log = logging.getLogger(__name__)


class WrongFingerprint(OSError):
    """The server's certificate is not the pinned one; the message is its SHA-256 fingerprint."""


class Trust:
    """Which server certificates are accepted: by `proxmox.fingerprint`, `proxmox.ca_file` or the system's CAs.

    A pinned fingerprint replaces the verification of CA and host name, as in Proxmox's own clients.
    """

    def __init__(self, config: ProxmoxConfig) -> None:
        """ConfigError if the fingerprint or the CA file is invalid."""
        self._ca_file = None if config.fingerprint else config.ca_file
        self._ca = _read(self._ca_file)
        self._fingerprint = _fingerprint(config.fingerprint) if config.fingerprint else None
        self.context = _context(self._ca_file) if self._fingerprint is None else _unverified()
        """For the next connection; `verify` comes after its handshake."""

    def verify(self, certificate: bytes) -> None:
        """WrongFingerprint unless the server's certificate (DER) is the pinned one, if one is pinned."""
        digest = hashlib.sha256(certificate).digest()
        if self._fingerprint not in (None, digest):
            raise WrongFingerprint(digest.hex(":").upper())

    def refused(self) -> bool:
        """Called after a certificate was not accepted; returns whether another try may succeed.

        It may if `proxmox.ca_file` has changed, because the CA was renewed.
        """
        try:
            ca = _read(self._ca_file)
            if ca == self._ca:
                return False
            self.context = _context(self._ca_file)
        except ConfigError as error:  # pmxcfs does not run, or the file is being written
            log.warning("%s", error)
            return False
        self._ca = ca
        log.info("proxmox.ca_file: %s has changed: it was read again", self._ca_file)
        return True


def _read(ca_file: Path | None) -> bytes:
    try:
        return b"" if ca_file is None else ca_file.read_bytes()
    except OSError as error:
        raise ConfigError(f"proxmox.ca_file: {ca_file}: {error}") from error


def _context(ca_file: Path | None) -> ssl.SSLContext:
    """A context for the CAs of a PEM file, or the system's."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"proxmox.ca_file: {ca_file}: {error}") from error
    # A Proxmox cluster's CA certificate has no key usage extension, which Python 3.13 and later require by
    # default. Its signatures are verified all the same.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _unverified() -> ssl.SSLContext:
    """A context that takes any certificate, which `Trust.verify` then compares with the pinned one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without the system's CAs, which take a megabyte
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def untrusted(config: ProxmoxConfig, error: ssl.SSLError | WrongFingerprint) -> Unavailable:
    """The error for a server whose certificate is not accepted, with the setting that changes it."""
    if isinstance(error, WrongFingerprint):
        problem = f"its certificate is {error}, which is not proxmox.fingerprint"
    else:
        problem = (
            f"{error}: set proxmox.fingerprint (`pvenode cert info` shows it) or proxmox.ca_file "
            f"(/etc/pve/pve-root-ca.pem of the cluster)"
        )
    return Unavailable(f"Proxmox: {config.url} (proxmox.url) is not trusted: {problem}")


def _fingerprint(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise ConfigError(f"proxmox.fingerprint: {text!r} is not a SHA-256 fingerprint (64 hex digits)")
    return digest
