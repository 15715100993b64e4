# SPDX-License-Identifier: Apache-2.0
"""Verification of the server's certificate: by fingerprint, or by a CA."""

from __future__ import annotations

import ssl

import aiohttp

from pvecri.config import ConfigError, ProxmoxConfig
from pvecri.errors import Unavailable


def tls_setting(config: ProxmoxConfig) -> aiohttp.Fingerprint | ssl.SSLContext | bool:
    """aiohttp's `ssl` argument; ConfigError if the fingerprint or the CA file is invalid.

    A pinned fingerprint replaces the verification of CA and host name, as in Proxmox's own clients.
    """
    if config.fingerprint:
        return aiohttp.Fingerprint(_fingerprint(config.fingerprint))
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except OSError as error:
        raise ConfigError(f"proxmox.ca_file: {config.ca_file}: {error}") from error
    # A Proxmox cluster's CA certificate has no key usage extension, which Python 3.13 and later require by
    # default. Its signatures are verified all the same.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def untrusted(
    config: ProxmoxConfig, error: aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch
) -> Unavailable:
    """The error for a server whose certificate is not accepted, with the setting that changes it."""
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        problem = f"its certificate is {error.got.hex(':').upper()}, which is not proxmox.fingerprint"
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
