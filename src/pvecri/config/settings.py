# SPDX-License-Identifier: Apache-2.0
"""The daemon's configuration: TOML, each section the settings of one component. files.py reads them.

docs/configuration.md describes every setting. An unknown key, a value of a wrong type or contradictory settings
are an error with the setting's path (`proxmox.vmid_range`), before anything is started.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from pvecri.errors import PvecriError

DEFAULT_PATH = Path("/etc/pvecri/config.toml")

LOG_LEVELS = ("debug", "info", "warning", "error")

ID_RANGE = 65_536
"""IDs in a pod's user namespace, as Proxmox and the kubelet map them."""

DEFAULT_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
"""Any user of a pod may bind ports below 1024 and ping, as in containerd 2."""

Positive = Annotated[float, msgspec.Meta(gt=0)]


class ConfigError(PvecriError):
    """The configuration is invalid; the message names the file and the setting."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every section: an undeclared key is an error."""


class VmidRange(Section, frozen=True):
    """The VMIDs for pods, both ends included."""

    # The range of Proxmox (PVE::JSONSchema, pve-vmid).
    first: Annotated[int, msgspec.Meta(ge=100)] = 900_000
    last: Annotated[int, msgspec.Meta(le=999_999_999)] = 999_999

    @property
    def size(self) -> int:
        """The number of VMIDs."""
        return self.last - self.first + 1


class WarmPods(Section, frozen=True):
    """At most how many running CTs wait for a pod, by what cannot be changed while they run; docs/warm-pods.md."""

    unprivileged: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    privileged: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0


class ProxmoxConfig(Section, frozen=True):
    """How to reach the Proxmox VE API, and options of the pods' CTs.

    Either an API token (`token_id`, `token_secret_file`) or a user's password (`username`, `password_file`).
    `url` is an https URL: the credentials are in every request, and pveproxy serves nothing else.
    `storage` defaults to images.storage if that is set. With `namespace_tags` each CT has the tag
    `ns-NAMESPACE`, too. The server's certificate is verified by `fingerprint`
    (SHA-256 of the certificate, hex with or without colons) if set, else by `ca_file`, else by the system's CAs.
    """

    url: str = "https://127.0.0.1:8006"
    node: str = ""
    token_id: str = ""
    token_secret_file: Path | None = None
    username: str = ""
    password_file: Path | None = None
    fingerprint: str = ""
    ca_file: Path | None = None
    storage: str = "local"
    template_storage: str = "local"
    rootfs_size_gib: Annotated[int, msgspec.Meta(ge=0)] = 0
    vmid_range: VmidRange = VmidRange()
    pool: str = ""
    tags: tuple[str, ...] = ("pvecri",)
    namespace_tags: bool = False
    unprivileged: bool = True
    memory_overhead_mib: Annotated[int, msgspec.Meta(ge=0)] = 32
    warm_pods: WarmPods = WarmPods()
    # pveproxy waits as long for pvedaemon (PVE::APIServer::AnyEvent, proxy_request).
    request_timeout: Positive = 30.0
    task_timeout: Positive = 120.0

    @property
    def node_name(self) -> str:
        """The node's name in Proxmox; default: this host's short name, which Proxmox uses too."""
        return self.node or socket.gethostname().split(".")[0]


class HostIds(Section, frozen=True):
    """The host IDs for pods, both ends included; systemd's UID documentation leaves the default range unused."""

    first: Annotated[int, msgspec.Meta(ge=65_536)] = 0x7000_0000
    # 2^32 - 1 is "no ID" to the kernel.
    last: Annotated[int, msgspec.Meta(le=0xFFFF_FFFD)] = 0x7FFF_FFFF


class UserNamespacesConfig(Section, frozen=True):
    """Which user namespace pods get; docs/user-namespaces.md describes the policy.

    `mode` is `shared` (the ID range that Proxmox maps all unprivileged CTs to), `per-pod` (64 Ki host IDs of its
    own for each pod, from `host_ids`) or `cri` (`userns_options` of the CRI request literally). `allow_node` lets
    pods request the node's user namespace by annotation or runtime handler, and gives it to pods with volumes that
    cannot be idmapped.
    """

    mode: Literal["shared", "per-pod", "cri"] = "shared"
    allow_node: bool = True
    host_ids: HostIds = HostIds()


class RuntimeConfig(Section, frozen=True):
    """The daemon's own paths, and the programs that run containers.

    `default_sysctls` are set in every pod with a network namespace of its own, unless the pod sets them itself.
    `oci_runtime` is `auto` (crun if it is installed on a pure cgroup v2 host, else runc) or a program's path.
    """

    socket: Path = Path("/run/pvecri/pvecri.sock")
    state_dir: Path = Path("/var/lib/pvecri")
    run_dir: Path = Path("/run/pvecri")
    oci_runtime: str = "auto"
    conmon: str = "conmon"
    seccomp_profile: Path = Path("/usr/share/containers/seccomp.json")
    start_timeout: Positive = 60.0
    create_timeout: Positive = 120.0
    log_size_max: int = -1
    pids_limit: int = 0
    enforce_node_allocatable: bool = False
    default_sysctls: dict[str, str] = msgspec.field(default_factory=DEFAULT_SYSCTLS.copy)
    ignore_selinux_options: bool = True
    cdi_spec_dirs: tuple[Path, ...] = (Path("/etc/cdi"), Path("/var/run/cdi"))  # the CDI specification's


class OciConfig(Section, frozen=True):
    """The OCI runtime for CRI-O, containerd and podman in front: where pvecri-runtime reaches the daemon."""

    enabled: bool = True
    socket: Path = Path("/run/pvecri/runtime.sock")


class ImagesConfig(Section, frozen=True):
    """The Image Manager: where images are stored and how they are pulled.

    `root` defaults to `images` below runtime.state_dir. `auth_file`, `registries_conf` and `policy` are the
    containers-auth.json(5), containers-registries.conf(5) and containers-policy.json(5) files for skopeo. With
    `storage`, a Proxmox storage, images are stored there, and the driver `auto` is chosen by its type. `dataset`
    is for the driver zfs; `writable_layer_size` is bytes, 0 for no limit. With `template_storage`, another Proxmox
    storage, Proxmox pulls images as CT templates to it, and pvecri reads the layers from those.
    """

    root: Path | None = None
    driver: str = "overlay"
    storage: str = ""
    dataset: str = ""
    template_storage: str = ""
    writable_layer_size: Annotated[int, msgspec.Meta(ge=0)] = 0
    skopeo: str = "skopeo"
    auth_file: Path | None = None
    registries_conf: Path | None = None
    policy: Path | None = None
    insecure_registries: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    pull_timeout: Positive = 1800.0
    pull_progress_timeout: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    max_layer_size: Annotated[int, msgspec.Meta(gt=0)] = 64 << 30
    max_layer_entries: Annotated[int, msgspec.Meta(gt=0)] = 5_000_000


class NetworkClass(Section, frozen=True):
    """A Proxmox interface that pods get by naming the class; docs/networking.md describes it.

    `tag` is the VLAN, 0 for none; `rate` is megabytes per second, 0 for no limit; `mtu` 0 is the bridge's. With
    `cni` the pod is attached to the CNI network too. The last two let pods choose addresses and firewall rules.
    """

    # 15: the kernel's maximum (IFNAMSIZ).
    bridge: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,15}$")]
    tag: Annotated[int, msgspec.Meta(ge=0, le=4094)] = 0
    rate: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    mtu: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    ip: Literal["", "dhcp"] = ""
    ip6: Literal["", "auto"] = ""
    cni: bool = False
    firewall: bool = False
    firewall_options: str = ""
    firewall_rules: tuple[str, ...] = ()
    pod_addresses: bool = False
    pod_firewall: bool = False


class NetworkConfig(Section, frozen=True):
    """The Network Manager: CNI's directories, and the Proxmox interfaces that pods may have."""

    conf_dir: Path = Path("/etc/cni/net.d")
    bin_dirs: tuple[Path, ...] = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
    cache_dir: Path = Path("/var/lib/pvecri/cni")
    plugin_timeout: Positive = 60.0
    classes: dict[str, NetworkClass] = {}
    pod_bridges: tuple[str, ...] = ()


class NriConfig(Section, frozen=True):
    """NRI, the Node Resource Interface: plugins that observe and adjust pods and containers.

    Plugins connect to `socket`, or are executables NN-name in `plugin_dir` that are started with the daemon and
    configured by NN-name.conf or name.conf in `plugin_config_dir`.
    """

    enabled: bool = True
    socket: Path = Path("/var/run/nri/nri.sock")
    plugin_dir: Path = Path("/opt/nri/plugins")
    plugin_config_dir: Path = Path("/etc/nri/conf.d")
    # The defaults of containerd and CRI-O.
    registration_timeout: Positive = 5.0
    request_timeout: Positive = 2.0


class StreamingConfig(Section, frozen=True):
    """The server for the connections of exec, attach and port-forward.

    `port` 0 chooses a free one. With `tls_cert` and `tls_key` (PEM files) it serves HTTPS. Seconds: a URL, which
    can be used once, expires after `url_lifetime`; an idle connection is closed after `idle_timeout`.
    """

    address: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    url_lifetime: Positive = 60.0
    idle_timeout: Positive = 4 * 3600.0  # a kubelet's streamingConnectionIdleTimeout
    max_sessions: Annotated[int, msgspec.Meta(gt=0)] = 256


class MetricsConfig(Section, frozen=True):
    """The daemon's metrics for Prometheus, at `/metrics` of `listen`, an IP address and a port; off by default.

    With `tls_cert` and `tls_key` (PEM files) it serves HTTPS.
    """

    listen: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `listen`; ValueError."""
        host, colon, port = self.listen.rpartition(":")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not colon or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"{self.listen!r} is not an address and a port, such as 127.0.0.1:9537")
        return str(ipaddress.ip_address(host)), int(port)


class TracingConfig(Section, frozen=True):
    """OpenTelemetry traces, by OTLP over gRPC to `endpoint`: HOST:PORT, or with TLS https://HOST:PORT.

    As in a KubeletConfiguration, a call is recorded if its caller's span is, and one without a span of a caller's
    `sampling_rate_per_million` times in a million.
    """

    endpoint: str = ""
    sampling_rate_per_million: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0


class LogConfig(Section, frozen=True):
    """The daemon's own log, to standard error or the journal; `level` is one of LOG_LEVELS.

    The format `auto` is `journal` if systemd connected standard error to it, else `text`.
    """

    level: str = "info"
    format: Literal["auto", "text", "json", "journal"] = "auto"


class Config(Section, frozen=True):
    """The configuration file."""

    proxmox: ProxmoxConfig = ProxmoxConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    oci: OciConfig = OciConfig()
    user_namespaces: UserNamespacesConfig = UserNamespacesConfig()
    images: ImagesConfig = ImagesConfig()
    network: NetworkConfig = NetworkConfig()
    nri: NriConfig = NriConfig()
    streaming: StreamingConfig = StreamingConfig()
    metrics: MetricsConfig = MetricsConfig()
    tracing: TracingConfig = TracingConfig()
    log: LogConfig = LogConfig()

    @property
    def images_root(self) -> Path:
        """The directory of the image store."""
        return self.images.root or self.runtime.state_dir / "images"


def parse(text: str, origin: str = "configuration") -> Config:
    """Parse TOML text; `origin` names it in errors. ConfigError names the setting."""
    given = _validated(text, origin)
    try:
        return from_toml(given)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file, each setting of the right type and range; ConfigError names file and setting."""
    return _validated(_text(path, str(path)), str(path))


def place(text: str, origin: str, setting: tuple[str | int, ...]) -> str:
    """Where a setting is in the TOML text of `origin`: `FILE:LINE`, or without a line if it cannot be found."""
    from pvecri.config import errors  # only here: a daemon whose configuration is valid has no use for it

    line = errors.line_of(text, setting)
    return f"{origin}:{line}" if line else origin


def _validated(text: str, origin: str) -> dict[str, Any]:
    """Decoded TOML, its settings not compared with each other; ConfigError."""
    given = _decode(text, origin)
    try:
        _convert(given)
    except msgspec.ValidationError as error:
        from pvecri.config import errors

        explained = errors.explain(error, given, Config, _convert)
        raise ConfigError(f"{place(text, origin, explained.path)}: {explained}") from error
    return given


def _convert(given: dict[str, Any]) -> Config:
    return msgspec.convert(given, Config, strict=True, dec_hook=_path)


def from_toml(given: dict[str, Any]) -> Config:
    """The configuration of TOML that `read_toml` accepts; ConfigError for contradictory settings."""
    config = _convert(given)
    _check(config)
    # Only the file tells an unset proxmox.storage from one that is set to the default.
    if config.images.storage and "storage" not in given.get("proxmox", {}):
        proxmox = msgspec.structs.replace(config.proxmox, storage=config.images.storage)
        config = msgspec.structs.replace(config, proxmox=proxmox)
    return config


def require_account(config: Config) -> None:
    """ConfigError unless there are settings of an account in Proxmox."""
    if not config.proxmox.token_id and not config.proxmox.username:
        raise ConfigError(
            "no account in Proxmox is configured: set proxmox.token_id and proxmox.token_secret_file "
            "(docs/proxmox-setup.md)"
        )


def _decode(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: {error}") from error


def read_secret(path: Path, setting: str) -> str:
    """The content of a secret file, stripped; `setting` names it in the ConfigError."""
    secret = _text(path, f"{setting}: {path}").strip()
    if not secret:
        raise ConfigError(f"{setting}: {path} is empty")
    return secret


def _text(path: Path, origin: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{origin}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{origin}: is not UTF-8 text: {error}") from error


def _path(kind: type, value: object) -> object:
    """msgspec's `dec_hook` for Path, which TOML lacks. msgspec adds the setting's path to a TypeError."""
    if kind is not Path or not isinstance(value, str):
        raise TypeError(f"Expected `{kind.__name__}`, got `{type(value).__name__}`")
    return Path(value)


def _check(config: Config) -> None:
    """Checks beyond the types of single settings."""
    proxmox = config.proxmox
    _check_proxmox_url(proxmox.url)
    if proxmox.vmid_range.first > proxmox.vmid_range.last:
        raise ConfigError("proxmox.vmid_range: first is larger than last")
    if bool(proxmox.token_id) != bool(proxmox.token_secret_file):
        raise ConfigError("proxmox.token_id and proxmox.token_secret_file go together")
    if bool(proxmox.username) != bool(proxmox.password_file):
        raise ConfigError("proxmox.username and proxmox.password_file go together")
    if proxmox.token_id and proxmox.username:
        raise ConfigError("set proxmox.token_id or proxmox.username, not both")
    ids = config.user_namespaces.host_ids
    if ids.last - ids.first + 1 < ID_RANGE:
        raise ConfigError(f"user_namespaces.host_ids: fewer than {ID_RANGE} IDs, the range of one pod")
    _check_default_sysctls(config.runtime.default_sysctls)
    _check_streaming(config.streaming)
    _check_metrics(config.metrics)
    if config.images.storage and config.images.root:
        raise ConfigError("set images.root or images.storage, not both")
    for name in ("socket", "state_dir", "run_dir"):
        if not getattr(config.runtime, name).is_absolute():
            raise ConfigError(f"runtime.{name}: must be an absolute path")
    if not config.oci.socket.is_absolute():
        raise ConfigError("oci.socket: must be an absolute path")
    _check_tracing(config.tracing)
    if config.log.level.lower() not in LOG_LEVELS:
        raise ConfigError(f"log.level: {config.log.level!r} is none of {', '.join(LOG_LEVELS)}")


def _check_proxmox_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme == "https" and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:  # a port or an IPv6 address that is none
        valid = False
    if not valid:
        problem = f"{url!r} is not an https URL (https://HOST:8006): credentials are never sent without TLS"
        raise ConfigError(f"proxmox.url: {problem}")


def _check_default_sysctls(sysctls: dict[str, str]) -> None:
    for name, value in sysctls.items():
        if not name.startswith("net."):
            problem = f"{name!r} is not one of a network namespace (net.…)"
            raise ConfigError(f"runtime.default_sysctls: {problem}")
        # It is translated into host IDs (pods/files.py); the kernel checks all others.
        if name == "net.ipv4.ping_group_range" and not re.fullmatch(r"\d+\s+\d+", value.strip()):
            raise ConfigError(f"runtime.default_sysctls: {name}: {value!r} is not two group IDs")


def _check_streaming(streaming: StreamingConfig) -> None:
    if bool(streaming.tls_cert) != bool(streaming.tls_key):
        raise ConfigError("streaming.tls_cert and streaming.tls_key go together")
    try:
        ipaddress.ip_address(streaming.address)
    except ValueError as error:
        raise ConfigError(f"streaming.address: {error}") from None


def _check_metrics(metrics: MetricsConfig) -> None:
    if bool(metrics.tls_cert) != bool(metrics.tls_key):
        raise ConfigError("metrics.tls_cert and metrics.tls_key go together")
    try:
        _ = metrics.address if metrics.listen else None
    except ValueError as error:
        raise ConfigError(f"metrics.listen: {error}") from None


def _check_tracing(tracing: TracingConfig) -> None:
    endpoint = tracing.endpoint.removeprefix("https://")
    try:
        parts = urlsplit(f"//{endpoint}")
        valid = bool(parts.hostname and parts.port) and parts.netloc == endpoint and "@" not in endpoint
    except ValueError:  # a port or an IPv6 address that is none
        valid = False
    if tracing.endpoint and not valid:
        raise ConfigError(f"tracing.endpoint: {tracing.endpoint!r} is not HOST:PORT or https://HOST:PORT")
