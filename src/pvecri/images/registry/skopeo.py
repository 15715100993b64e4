# SPDX-License-Identifier: Apache-2.0
"""skopeo, the registry client: its command line, its credentials file, its error messages (decision 0010).

It implements containers-auth.json(5), registries.conf(5) with mirrors, signature policies and proxies. Credentials
are passed in a file of mode 0600, never on the command line, which every user of the node can read.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Final

import msgspec

from pvecri.config.settings import ConfigError, ImagesConfig
from pvecri.errors import (
    CommandError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PvecriError,
    Unavailable,
    Unimplemented,
)
from pvecri.images.manifest import BadImage, Manifest
from pvecri.images.reference import Reference
from pvecri.images.registry import proxy as proxies
from pvecri.images.registry.proxy import ImageProxy
from pvecri.linux import programs
from pvecri.linux.programs import Ended
from pvecri.model import RegistryAuth, Value

SYSTEM_POLICY: Final = Path("/etc/containers/policy.json")


class RateLimited(Unavailable):
    """The registry limits the number of requests; skopeo has waited and repeated its own already."""


# Error messages of registries and of skopeo's libraries; the first match counts. The kubelet recognizes messages
# that begin with SignatureValidationFailed or RegistryUnavailable (evalCRIPullErr in pkg/kubelet/images).
class WrongBlob(BadImage):
    """The registry, or a proxy before it, answered with another blob than asked for, or with a part of it."""


_MESSAGES: Final[Sequence[tuple[re.Pattern[str], type[PvecriError], str]]] = tuple(
    (re.compile(pattern, re.IGNORECASE), kind, prefix)
    for pattern, kind, prefix in (
        (r"source image rejected", PermissionDenied, "SignatureValidationFailed: "),
        (r"toomanyrequests|too many requests|\b429\b", RateLimited, "RegistryUnavailable: "),
        (
            r"unauthorized|denied|authentication required|invalid username|forbidden",
            PermissionDenied,
            "",
        ),
        (
            r"manifest unknown|name unknown|blob unknown|not found|no image found|repository name not known",
            NotFound,
            "",
        ),
        (
            r"connection re|no such host|server misbehaving|i/o timeout|tls handshake|http response to https|x509|"
            r"no route to host|pinging container registry|unexpected eof|network is unreachable|"
            r"connection timed out|timeout awaiting|deadline exceeded|closed network connection|"
            r"http2: |stream error|"
            r"status(?: code)?(?: from registry)?:? (?:408|5\d\d)",
            Unavailable,
            "RegistryUnavailable: ",
        ),
        (r"corrupted blob|does not match expected|expected \d+ bytes in blob", WrongBlob, ""),
    )
)


class _Requirement(Value, frozen=True):
    type: str


class _AuthFile(Value, frozen=True, rename="camel"):
    """containers-auth.json(5)."""

    auths: Mapping[str, object] = {}
    cred_helpers: Mapping[str, object] = {}
    creds_store: str = ""


class _Policy(Value, frozen=True):
    default: tuple[_Requirement, ...]
    transports: Mapping[str, Mapping[str, tuple[_Requirement, ...]]] = {}


# skopeo logs by logrus, which quotes the message.
_FATAL: Final = re.compile(r'level=fatal msg="((?:[^"\\]|\\.)*)"')
# Its message begins with this whatever has failed, also if the registry does not have the image.
_MISLEADING: Final = re.compile(r'^Error parsing image name "[^"]*": ')


class Skopeo:
    """Runs skopeo with the configured options. `scratch` is a directory for temporary files."""

    def __init__(self, config: ImagesConfig, scratch: Path) -> None:
        self._config = config
        self._scratch = scratch

    def reconfigure(self, config: ImagesConfig) -> None:
        """Use `insecure_registries` and `auth_file` of `config`; a process that runs keeps its options."""
        changes = {"insecure_registries": config.insecure_registries, "auth_file": config.auth_file}
        self._config = msgspec.structs.replace(self._config, **changes)

    async def manifest_of(self, name: str) -> bytes:
        """The manifest or index of an image that is in no registry, by its name with the transport."""
        command = [self._config.skopeo, *self._policy(), "inspect", "--raw", name]
        return (await self._execute(command)).checked().stdout

    async def manifest(self, reference: Reference, auth: RegistryAuth | None) -> bytes:
        """The manifest or index that the registry has for `reference`, byte by byte.

        Raises NotFound, PermissionDenied, Unavailable or CommandError with the registry's message.
        """
        return await self._run(reference, auth, ("inspect", "--raw"))

    async def require_policy(self, reference: Reference, auth: RegistryAuth | None, manifest: Manifest) -> None:
        """Apply the signature policy to the image, of which `manifest` is the one for this platform.

        For versions of skopeo whose proxy does not. Raises PermissionDenied if the policy refuses the image, and
        what `manifest` raises.
        """
        with TemporaryDirectory(dir=self._scratch, prefix="policy-") as directory:
            blobs = Path(directory, "blobs/sha256")
            blobs.mkdir(parents=True)
            # `skopeo copy` applies the policy, and fetches no blob that the destination has: here a sparse file.
            for layer in manifest.layers:
                with (blobs / layer.digest.removeprefix("sha256:")).open("wb") as hole:
                    hole.truncate(layer.size)
            keep_as_is = "--dest-oci-accept-uncompressed-layers"
            arguments = ("copy", "--quiet", keep_as_is, f"--dest-shared-blob-dir={blobs.parent}")
            await self._run(reference, auth, arguments, f"oci:{directory}/layout:image")

    @property
    def accepts_everything(self) -> bool:
        """Whether the policy accepts every image. ConfigError if it cannot be read."""
        path = self._config.policy or SYSTEM_POLICY
        if self._config.policy is None and not path.exists():
            return True
        try:
            return accepts_everything(path.read_bytes())
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"images.policy: {path}: {error}") from error

    def is_insecure(self, reference: Reference) -> bool:
        """Whether TLS is not required of the registry."""
        return reference.registry in self._config.insecure_registries

    @contextmanager
    def credentials(self, reference: Reference, auth: RegistryAuth | None) -> Iterator[Path | None]:
        """The file with credentials for a pull, which exists in the context; None for a pull without."""
        if auth is None or not applies(auth, reference):
            yield self._config.auth_file
            return
        with NamedTemporaryFile(dir=self._scratch, prefix="auth-", suffix=".json") as file:
            file.write(auth_document(auth, reference.registry))
            file.flush()  # the file stays open: it is deleted when it is closed
            yield Path(file.name)

    async def start_proxy(self, *, insecure: bool, authfile: Path | None) -> ImageProxy:
        """A running proxy. Raises Unavailable if skopeo is not installed."""
        command = [self._config.skopeo, *self._policy(), *self._registries(), "experimental-image-proxy"]
        if insecure:
            command.append("--tls-verify=false")
        if authfile is not None:
            command.append(f"--authfile={authfile}")
        return await proxies.start(command)

    async def _run(
        self, reference: Reference, auth: RegistryAuth | None, arguments: Sequence[str], *destination: str
    ) -> bytes:
        command = [self._config.skopeo, *self._policy(), *self._registries(), *arguments]
        prefix = "--src-" if destination else "--"  # inspect has --tls-verify, copy --src-tls-verify
        if self.is_insecure(reference):
            command.append(f"{prefix}tls-verify=false")
        with self.credentials(reference, auth) as file:
            if file is not None:
                command.append(f"{prefix}authfile={file}")
            command += (f"docker://{reference}", *destination)
            ended = await self._execute(command)
        with translated(reference):
            return ended.checked().stdout

    async def _execute(self, command: Sequence[str]) -> Ended:
        """Run skopeo; Unavailable if it is not installed."""
        try:
            return await programs.run(command, timeout=self._config.pull_timeout, name="skopeo")
        except FileNotFoundError as error:
            raise Unavailable(f"{command[0]} is not installed; images.skopeo names the program") from error

    def _policy(self) -> tuple[str, ...]:
        """The configured policy, else the system's; without one skopeo would refuse to run."""
        if self._config.policy is not None:
            return (f"--policy={self._config.policy}",)
        return () if SYSTEM_POLICY.exists() else ("--insecure-policy",)

    def _registries(self) -> tuple[str, ...]:
        path = self._config.registries_conf
        # A hidden option of skopeo's: older versions do not read CONTAINERS_REGISTRIES_CONF.
        return (f"--registries-conf={path}",) if path is not None else ()


def translate(reference: Reference, failure: CommandError) -> PvecriError:
    """The error that skopeo's message stands for; the failure itself if the message is unknown."""
    found = _FATAL.search(failure.output)
    message = found[1].replace('\\"', '"').replace("\\\\", "\\") if found else failure.output.strip()
    message = _MISLEADING.sub("", message)
    # A repository may be called "denied"; one that is called "a" leaves the other words as they are.
    matched = re.sub(rf"(?<![\w.-]){re.escape(reference.path)}(?![\w.-])", "", message.replace(reference.name, ""))
    for pattern, kind, prefix in _MESSAGES:
        if pattern.search(matched):
            return kind(f"{prefix}pulling {reference}: {message}")
    return failure


def applies(auth: RegistryAuth, reference: Reference) -> bool:
    """Whether the credentials are not empty, and are for the reference's registry."""
    if not any((auth.username, auth.password, auth.auth, auth.identity_token, auth.registry_token)):
        return False
    if not auth.server_address:
        return True
    server = re.sub(r"^https?://", "", auth.server_address).split("/")[0]
    return server in {reference.registry, *(("index.docker.io",) if reference.registry == "docker.io" else ())}


def has_credentials(auth_file: Path | None, reference: Reference) -> bool:
    """Whether images.auth_file has credentials for the repository. False for a broken file: skopeo reports it."""
    if auth_file is None:
        return False
    try:
        known = msgspec.json.decode(auth_file.read_bytes(), type=_AuthFile)
    except (OSError, msgspec.DecodeError):
        return False
    scopes = {re.sub(r"^https?://", "", scope) for scope in (*known.auths, *known.cred_helpers)}
    if reference.registry == "docker.io" and any(scope.startswith("index.docker.io") for scope in scopes):
        return True
    return bool(known.creds_store) or any(f"{reference.name}/".startswith(f"{scope}/") for scope in scopes)


def auth_document(auth: RegistryAuth, registry: str) -> bytes:
    """containers-auth.json(5) with one registry's credentials.

    Raises InvalidArgument for an `auth` that is not base64 of user:password, Unimplemented for a registry token.
    """
    if auth.registry_token:
        raise Unimplemented(
            "auth.registry_token: skopeo takes bearer tokens on its command line only, which every user can read"
        )
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


def accepts_everything(policy: bytes) -> bool:
    """Whether all requirements of a policy, containers-policy.json(5), are `insecureAcceptAnything`."""
    document = msgspec.json.decode(policy, type=_Policy)
    scopes = (scope for transport in document.transports.values() for scope in transport.values())
    return all(
        requirement.type == "insecureAcceptAnything"
        for requirements in (document.default, *scopes)
        for requirement in requirements
    )


@contextmanager
def translated(reference: Reference) -> Iterator[None]:
    """Translate failures of skopeo in the context."""
    try:
        yield
    except CommandError as failure:
        raise translate(reference, failure) from failure
