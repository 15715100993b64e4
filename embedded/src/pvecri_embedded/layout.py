# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where the embedded node keeps things: its own /etc/pve, /var/lib/vz, /run/pve and /var/lib/lxc."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pvecri_embedded.lxc import hooks

LEFT_BEHIND = frozenset({"passthrough", "rules.seccomp"})
"""What stays of a CT in LXC's directory when Proxmox has destroyed it."""


@dataclass(frozen=True)
class Layout:
    """The paths of one node. All lie below ``state_dir`` but LXC's own, which LXC's tools must find."""

    state_dir: Path
    node: str
    lxc_path: Path

    @property
    def descriptor(self) -> Path:
        """What a client needs to connect: written when the API answers."""
        return self.state_dir / "node.json"

    @property
    def secrets(self) -> Path:
        """The token and the root password, kept over restarts."""
        return self.state_dir / "pve" / "priv" / "secrets.json"

    @property
    def certificate_dir(self) -> Path:
        return self.state_dir / "pve" / "local"

    @property
    def pools(self) -> Path:
        return self.state_dir / "pve" / "pools.json"

    @property
    def datacenter(self) -> Path:
        """The cluster's options."""
        return self.state_dir / "pve" / "datacenter.json"

    @property
    def user_cfg(self) -> Path:
        """Users, groups, roles and the access control list."""
        return self.state_dir / "pve" / "user.json"

    @property
    def access_secrets(self) -> Path:
        """Passwords and tokens' secrets."""
        return self.state_dir / "pve" / "priv" / "access.json"

    @property
    def tasks(self) -> Path:
        """Ended tasks, one JSON object a line, oldest first (Proxmox's /var/log/pve/tasks)."""
        return self.state_dir / "log" / "tasks"

    @property
    def conf_dir(self) -> Path:
        """The CTs' configs (Proxmox's /etc/pve/lxc)."""
        return self.state_dir / "pve" / "nodes" / self.node / "lxc"

    def conf(self, vmid: int) -> Path:
        return self.conf_dir / f"{vmid}.conf"

    def storage(self, name: str) -> Path:
        return self.state_dir / "storage" / name

    def stderr(self, vmid: int) -> Path:
        """What lxc-start says (Proxmox's /run/pve/ct-VMID.stderr)."""
        return self.state_dir / "run" / f"ct-{vmid}.stderr"

    def lxc_dir(self, vmid: int) -> Path:
        return self.lxc_path / str(vmid)

    def lxc_config(self, vmid: int) -> Path:
        return self.lxc_dir(vmid) / "config"

    def hooks(self, vmid: int) -> Path:
        """The CT's scripts, and the files of its DHCP clients."""
        return self.lxc_dir(vmid) / hooks.DIRECTORY

    def rootfs(self, vmid: int) -> Path:
        """Where the CT's root filesystem is mounted, in its monitor's mount namespace only."""
        return self.lxc_dir(vmid) / "rootfs"

    def leave_behind(self, vmid: int) -> None:
        """Make what a start on Proxmox makes beside LXC's config and its destroy forgets: `LEFT_BEHIND`."""
        (self.lxc_dir(vmid) / "passthrough").mkdir(exist_ok=True)
        (self.lxc_dir(vmid) / "rules.seccomp").touch()

    def remove_lxc_dir(self, vmid: int) -> None:
        """Remove LXC's directory of a CT, with all in it that Proxmox removes. Idempotent."""
        directory = self.lxc_dir(vmid)
        if not directory.is_dir():
            return
        for path in directory.iterdir():
            if path.name in LEFT_BEHIND:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Have the state directory to oneself. Raises BlockingIOError when another process serves from it."""
        with (self.state_dir / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def make_directories(self) -> None:
        """Make every directory a node needs. Idempotent."""
        private = (self.secrets.parent, self.certificate_dir)
        for path in (*private, self.tasks.parent, self.conf_dir, self.state_dir / "run"):
            path.mkdir(parents=True, exist_ok=True)
        for path in private:
            path.chmod(0o700)
        self.lxc_path.mkdir(parents=True, exist_ok=True)


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace ``path`` with ``text``: a reader sees the old or the new file, never a part of one."""
    temporary = path.with_name(f".{path.name}.new")
    # The mode comes before the text, which may be a secret; chmod for what the umask has taken away.
    temporary.touch(mode=mode)
    temporary.chmod(mode)
    temporary.write_text(text)
    temporary.replace(path)
