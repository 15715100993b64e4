# SPDX-License-Identifier: AGPL-3.0-or-later
"""The node's certificate, root's API token and password: made once, kept in the state directory."""

from __future__ import annotations

import hashlib
import json
import secrets
import ssl
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from fakepve.certs import make_cert

from pvecri_embedded.layout import Layout, write_atomically
from pvecri_embedded.usercfg import ROOT

TOKEN_NAME = "embedded"
TOKEN_ID = f"{ROOT}!{TOKEN_NAME}"
"""For whoever administers the node: it has all of root's rights, but for what Proxmox keeps to root's password."""


@dataclass(frozen=True)
class Identity:
    """What lets an administrator in."""

    token_secret: str
    root_password: str

    @classmethod
    def load_or_make(cls, layout: Layout) -> Identity:
        """The identity of this state directory, made on its first use."""
        if layout.secrets.exists():
            kept = json.loads(layout.secrets.read_text())
            return cls(kept["token_secret"], kept["root_password"])
        made = cls(str(uuid.uuid4()), secrets.token_urlsafe(16))
        write_atomically(layout.secrets, json.dumps(asdict(made)), 0o600)
        return made


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate and its key, as PEM files."""

    certificate: Path
    key: Path

    @classmethod
    def load_or_make(cls, layout: Layout, host: str) -> Certificate:
        """The certificate of this state directory, made on its first use."""
        files = cls(layout.certificate_dir / "pve-ssl.crt", layout.certificate_dir / "pve-ssl.key")
        # Kept over restarts: clients pin its fingerprint.
        if not files.key.exists():
            make_cert(str(layout.certificate_dir), "pve-ssl", (host, layout.node))
        return files

    def fingerprint(self) -> str:
        """SHA-256 of the certificate, as ``AA:BB:…``."""
        der = ssl.PEM_cert_to_DER_cert(self.certificate.read_text())
        return hashlib.sha256(der).digest().hex(":").upper()
