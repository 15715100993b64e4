# SPDX-License-Identifier: Apache-2.0
"""Files that settings name: secrets, certificates, and those of skopeo."""

from __future__ import annotations

import json
import ssl
import tomllib
from collections.abc import Iterator
from pathlib import Path

from pvecri import tls
from pvecri.checks.finding import Finding
from pvecri.config.settings import Config, ConfigError, read_secret
from pvecri.errors import InvalidArgument
from pvecri.model import ProfileKind, SecurityProfile
from pvecri.observability import logs
from pvecri.oci import seccomp

SUBJECT = "files"


def required(config: Config) -> Iterator[Finding]:
    """Those without which the daemon does not start."""
    yield from _secrets(config)
    for section in ("streaming", "metrics"):
        settings = getattr(config, section)
        try:
            tls.server_context(settings.tls_cert, settings.tls_key, section)
        except ConfigError as error:
            yield Finding("problem", SUBJECT, str(error), "give a PEM certificate and its key")
    if config.log.format == "journal" and not logs.JOURNAL.is_socket():
        problem = f"log.format: the journal cannot be reached: {logs.JOURNAL} is not a socket"
        yield Finding("problem", SUBJECT, problem, "set it to auto, text or json")
    ca_file = config.proxmox.ca_file
    try:
        if ca_file is not None and not config.proxmox.fingerprint:
            ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        yield Finding("problem", SUBJECT, f"proxmox.ca_file: {ca_file}: {error.strerror or error}")


def used_later(config: Config) -> Iterator[Finding]:
    """Those that pulls and containers need."""
    images = config.images
    for setting, path, syntax in (
        ("images.auth_file", images.auth_file, json.loads),
        ("images.policy", images.policy, json.loads),
        ("images.registries_conf", images.registries_conf, tomllib.loads),
    ):
        try:
            if path is not None:
                syntax(path.read_text())
        except (OSError, ValueError) as error:  # a syntax error is a ValueError, in JSON and TOML
            reason = error.strerror if isinstance(error, OSError) else error
            yield Finding("problem", SUBJECT, f"{setting}: {path}: {reason}", "pulls fail until it is valid")
    try:
        seccomp.for_container(
            SecurityProfile(ProfileKind.RUNTIME_DEFAULT),
            default=config.runtime.seccomp_profile,
            capabilities=frozenset(),
            privileged=False,
        )
    except InvalidArgument as error:
        yield Finding("problem", SUBJECT, str(error), "install the package golang-github-containers-common")


def _secrets(config: Config) -> Iterator[Finding]:
    for name in ("token_secret_file", "password_file"):
        path: Path | None = getattr(config.proxmox, name)
        if path is None:
            continue
        try:
            read_secret(path, f"proxmox.{name}")
        except ConfigError as error:
            yield Finding("problem", SUBJECT, str(error), "docs/proxmox-setup.md has how to make it")
            continue
        if path.stat().st_mode & 0o077:
            others = f"proxmox.{name}: {path} can be read by other users"
            yield Finding("warning", SUBJECT, others, f"chmod 600 {path}")
