# SPDX-License-Identifier: Apache-2.0
"""skopeo, which speaks to registries for us: its command line, its credentials file, its words for errors.

skopeo brings containers-auth.json(5), registries.conf(5) with mirrors, signature policies and proxies. Credentials
go to it in a file of mode 0600, never on its command line, which every user of the node can read.
"""

from __future__ import annotations

import asyncio
import base64
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

import msgspec

from pvecri.cancellation import finish
from pvecri.config import ImagesConfig
from pvecri.errors import (
    CommandError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PvecriError,
    Unavailable,
    Unimplemented,
)
from pvecri.images.reference import Reference
from pvecri.model import RegistryAuth

SYSTEM_POLICY: Final = Path("/etc/containers/policy.json")

# What registries and skopeo's libraries say, most telling first. The kubelet knows the two long words and tells
# the user more when a message begins with one of them.
_MEANINGS: Final[Sequence[tuple[re.Pattern[str], type[PvecriError], str]]] = tuple(
    (re.compile(pattern, re.IGNORECASE), kind, prefix)
    for pattern, kind, prefix in (
        (r"source image rejected", PermissionDenied, "SignatureValidationFailed: "),
        (r"toomanyrequests|too many requests|\b429\b", Unavailable, "RegistryUnavailable: "),
        (
            r"unauthorized|denied|authentication required|invalid username|forbidden",
            PermissionDenied,
            "",
        ),
        (r"manifest unknown|name unknown|not found|no image found|repository name not known", NotFound, ""),
        (
            r"connection re|no such host|server misbehaving|i/o timeout|tls handshake|http response to https|x509|"
            r"no route to host|pinging container registry|unexpected eof|network is unreachable|"
            r"status(?: code)?:? 5\d\d",
            Unavailable,
            "RegistryUnavailable: ",
        ),
    )
)
_FATAL: Final = re.compile(r'level=fatal msg="((?:[^"\\]|\\.)*)"')
_MISLEADING: Final = re.compile(r'^Error parsing image name "[^"]*": ')


class Skopeo:
    """Runs skopeo as the configuration says. `scratch` is a directory for credential files."""

    def __init__(self, config: ImagesConfig, scratch: Path) -> None:
        self._config = config
        self._scratch = scratch

    async def manifest(self, reference: Reference, auth: RegistryAuth | None) -> bytes:
        """The manifest or index that the registry has for `reference`, byte by byte.

        Raises NotFound, PermissionDenied, Unavailable or CommandError with the registry's own words.
        """
        return await self._run(reference, auth, ("inspect", "--raw"))

    async def config(self, reference: Reference, auth: RegistryAuth | None) -> bytes:
        """The image's config for this machine's platform, byte by byte; raises what `manifest` raises."""
        return await self._run(reference, auth, ("inspect", "--config", "--raw"))

    async def copy(self, reference: Reference, auth: RegistryAuth | None, layout: Path, blobs: Path) -> None:
        """Fetch the image for this machine's platform into a new OCI layout, its blobs into `blobs`/sha256.

        Blobs that `blobs` has already are not fetched. skopeo checks the digest of everything it fetches. What is
        not OCI it converts: layers stay as they are, manifest and config do not. Raises what `manifest` raises.
        """
        keep_as_is = "--dest-oci-accept-uncompressed-layers"
        words = ("copy", "--quiet", keep_as_is, f"--dest-shared-blob-dir={blobs}")
        await self._run(reference, auth, words, f"oci:{layout}:image")

    async def _run(
        self, reference: Reference, auth: RegistryAuth | None, words: Sequence[str], *destination: str
    ) -> bytes:
        """Standard output. Options about the source have a prefix when there is a destination, too."""
        command = [self._config.skopeo, *self._policy(), *self._registries(), *words]
        prefix = "--src-" if destination else "--"
        if reference.registry in self._config.insecure_registries:
            command.append(f"{prefix}tls-verify=false")
        with ExitStack() as stack:
            file = self._config.auth_file
            if auth is not None and applies(auth, reference):
                file = stack.enter_context(_credentials(auth, reference, self._scratch))
            if file is not None:
                command.append(f"{prefix}authfile={file}")
            command += (f"docker://{reference}", *destination)
            returncode, output, problem = await run(command)
        if returncode != 0:
            raise translate(reference, CommandError("skopeo", returncode, problem))
        return output

    def _policy(self) -> tuple[str, ...]:
        """As configured, else the system's, else everything is accepted, as an engine without signatures does."""
        if self._config.policy is not None:
            return (f"--policy={self._config.policy}",)
        return () if SYSTEM_POLICY.exists() else ("--insecure-policy",)

    def _registries(self) -> tuple[str, ...]:
        """An option that skopeo does not list in its help; the environment variable is not read by older ones."""
        path = self._config.registries_conf
        return (f"--registries-conf={path}",) if path is not None else ()


async def run(command: Sequence[str]) -> tuple[int, bytes, str]:
    """Run a program to its end: status, standard output, standard error.

    It is killed when the caller is cancelled. Raises Unavailable when it is not installed.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise Unavailable(f"{command[0]} is not installed; images.skopeo names the program") from error
    try:
        output, problem = await process.communicate()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await finish(process.wait())
    assert process.returncode is not None
    return process.returncode, output, problem.decode(errors="replace")


def translate(reference: Reference, failure: CommandError) -> PvecriError:
    """The error that skopeo's words mean; the failure itself when they mean nothing known."""
    found = _FATAL.search(failure.output)
    words = found[1].replace('\\"', '"').replace("\\\\", "\\") if found else failure.output.strip()
    words = _MISLEADING.sub("", words)
    telling = words.replace(reference.name, "").replace(reference.path, "")  # a repository may be called "denied"
    for pattern, kind, prefix in _MEANINGS:
        if pattern.search(telling):
            return kind(f"{prefix}pulling {reference}: {words}")
    return failure


def applies(auth: RegistryAuth, reference: Reference) -> bool:
    """Whether the credentials hold anything, and are meant for the reference's registry."""
    if not any((auth.username, auth.password, auth.auth, auth.identity_token, auth.registry_token)):
        return False
    if not auth.server_address:
        return True
    server = re.sub(r"^https?://", "", auth.server_address).split("/")[0]
    return server in {reference.registry, *(("index.docker.io",) if reference.registry == "docker.io" else ())}


def auth_document(auth: RegistryAuth, registry: str) -> bytes:
    """containers-auth.json(5) with one registry's credentials.

    Raises InvalidArgument for an `auth` that is not base64 of user:password, Unimplemented for a registry token.
    """
    if auth.registry_token:
        raise Unimplemented("auth.registry_token: skopeo takes bearer tokens on its command line only, in public")
    entry = {"auth": auth.auth or base64.b64encode(f"{auth.username}:{auth.password}".encode()).decode()}
    try:
        valid = b":" in base64.b64decode(entry["auth"], validate=True)
    except ValueError:
        valid = False
    if not valid:
        raise InvalidArgument("auth.auth", "is not the base64 of user:password")
    if auth.identity_token:
        entry["identitytoken"] = auth.identity_token
    return msgspec.json.encode({"auths": {registry: entry}})


@contextmanager
def _credentials(auth: RegistryAuth, reference: Reference, scratch: Path) -> Iterator[Path]:
    """A file that only root can read, for the time of one command."""
    with NamedTemporaryFile(dir=scratch, prefix="auth-", suffix=".json") as file:
        file.write(auth_document(auth, reference.registry))
        file.flush()
        yield Path(file.name)
