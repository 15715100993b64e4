# SPDX-License-Identifier: Apache-2.0
"""Certificates for the servers that speak TLS when they are given one."""

from __future__ import annotations

import ssl
from pathlib import Path

from pvecri.config import ConfigError


def server_context(certificate: Path | None, key: Path | None, section: str) -> ssl.SSLContext | None:
    """For a server with this certificate and key (PEM files); None without them.

    ConfigError, with `section` of the configuration, when they cannot be used.
    """
    if certificate is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{section}.tls_cert, {section}.tls_key: {error}") from error
    return context
