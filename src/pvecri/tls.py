# SPDX-License-Identifier: Apache-2.0
"""TLS contexts of the daemon's HTTPS servers."""

from __future__ import annotations

import ssl
from pathlib import Path

from pvecri.config.settings import ConfigError


def server_context(certificate: Path | None, key: Path | None, section: str) -> ssl.SSLContext | None:
    """The context of a server with this certificate and key (PEM files); None without them.

    ConfigError names the settings, in `section`, if the files are invalid.
    """
    if certificate is None or key is None:
        return None
    # CLIENT_AUTH is what the module ssl calls the server's side of a connection.
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{section}.tls_cert, {section}.tls_key: {error}") from error
    return context


def renew(context: ssl.SSLContext | None, certificate: Path | None, key: Path | None, section: str) -> bool:
    """Let a server's context have another certificate for connections from now on.

    False if the server is without TLS, or is to be. ConfigError as from `server_context`, the context unchanged.
    """
    if server_context(certificate, key, section) is None or context is None:
        return False
    assert certificate is not None
    context.load_cert_chain(certificate, key)
    return True
