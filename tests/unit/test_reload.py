# SPDX-License-Identifier: Apache-2.0
"""A reload applies what can be applied, and says what needs a restart."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import pytest
from fakepve.certs import make_cert

from pvecri import tls
from pvecri.config import files
from pvecri.config.settings import Config, ConfigError
from pvecri.reload import Live, Reloader


class Daemon:
    """Applies `log.level`, and the certificates unless `refuse` is set."""

    def __init__(self, path: Path) -> None:
        self.levels: list[str] = []
        self.certificates: list[Path | None] = []
        self.refuse = False
        live = [
            Live(("log.level",), self.level),
            Live(("streaming.tls_cert", "streaming.tls_key"), self.certificate),
        ]
        self.reloader = Reloader(path, files.load(path).config, live)

    def level(self, config: Config) -> bool:
        self.levels.append(config.log.level)
        return True

    def certificate(self, config: Config) -> bool:
        if self.refuse:
            raise ConfigError("streaming.tls_cert, streaming.tls_key: no start line")
        self.certificates.append(config.streaming.tls_cert)
        return config.streaming.tls_cert is not None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text('log.level = "info"\n[streaming]\ntls_cert = "/c"\ntls_key = "/k"\n')
    return path


@pytest.fixture
def daemon(path: Path, caplog: pytest.LogCaptureFixture) -> Daemon:
    caplog.set_level(logging.INFO)
    return Daemon(path)


def test_changed_setting_is_applied_and_named(
    daemon: Daemon, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(path.read_text().replace("info", "debug"))
    daemon.reloader.reload()
    assert daemon.levels == ["debug"]
    assert caplog.messages == ["the configuration was reloaded: log.level changed"]


def test_unchanged_files_are_applied_again_as_their_content_may_have_changed(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.reloader.reload()
    assert daemon.certificates == [Path("/c")]
    assert caplog.messages == ["the configuration was reloaded: no change"]


def test_setting_that_needs_a_restart_is_named_at_every_reload_until_it_is_put_back(
    daemon: Daemon, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = path.read_text()
    path.write_text(before + '[runtime]\nsocket = "/s"\n[proxmox]\npool = "p"\n')
    for _ in range(2):
        daemon.reloader.reload()
    needs = "the change of proxmox.pool, runtime.socket needs a restart of pvecri; pods keep running"
    assert caplog.messages.count(needs) == 2
    path.write_text(before)
    daemon.reloader.reload()
    assert caplog.messages.count(needs) == 2


def test_setting_that_cannot_be_applied_needs_a_restart(
    daemon: Daemon, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text('log.level = "info"')
    daemon.reloader.reload()
    assert "the change of streaming.tls_cert, streaming.tls_key needs a restart" in caplog.text


def test_invalid_file_changes_nothing(daemon: Daemon, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text('log.level = "loud"')
    daemon.reloader.reload()
    assert daemon.levels == []
    (message,) = caplog.messages
    assert message.startswith(
        f"the configuration is not reloaded, the one before stays in effect: {path}:1: log.level"
    )


def test_refused_part_leaves_the_others(daemon: Daemon, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    daemon.refuse = True
    path.write_text(path.read_text().replace("info", "debug"))
    daemon.reloader.reload()
    assert daemon.levels == ["debug"]
    assert f"{path}: not reloaded: streaming.tls_cert, streaming.tls_key: no start line" in caplog.messages


def test_certificate_is_renewed_only_by_a_valid_one(tmp_path: Path) -> None:
    (cert, key), (other, _) = (make_cert(str(tmp_path), name)[:2] for name in ("a", "b"))
    context = tls.server_context(Path(cert), Path(key), "streaming")
    assert tls.renew(context, Path(cert), Path(key), "streaming")
    with pytest.raises(ConfigError, match=r"streaming\.tls_cert"):
        tls.renew(context, Path(other), Path(key), "streaming")
    assert not tls.renew(context, None, None, "streaming")
    assert not tls.renew(None, Path(cert), Path(key), "streaming")
    assert isinstance(context, ssl.SSLContext)
