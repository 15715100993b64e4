# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for zfs(8), zpool(8) and mount.zfs(8), for machines whose kernel has no ZFS.

They do to directories what the manual pages say that the real ones do to datasets, refuse what those refuse, and
write down every command line. A dataset is a directory `fs/<name, with % for />`, its files are below `data`, each
snapshot is a copy, and mounting binds.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ZFS = r"""#!/bin/sh
# zfs SUBCOMMAND ...: as documented in zfs-list(8), -create, -clone, -snapshot, -rename, -destroy and zfs-get(8).
fs="$SIMULATED_ZFS/fs"
say() { echo "cannot $1 '$2': $3" >&2; exit 1; }
at() { printf '%s/%s' "$fs" "$(printf %s "$1" | tr / %)"; }
mounted() { grep -qF "/fs/${1##*/}/data " /proc/self/mountinfo; }
echo "zfs $*" >> "$SIMULATED_ZFS/log"
verb=$1; shift
case "$verb" in
list)
    for top in "$@"; do :; done
    [ -d "$(at "$top")" ] || say open "$top" "dataset does not exist"
    ls "$fs" | tr % / | awk -v top="$top" '$0 == top { print }
        index($0, top "/") == 1 && substr($0, length(top) + 2) !~ /\// { print }' ;;
create)
    for name in "$@"; do :; done
    [ -d "$(at "$name")" ] && say create "$name" "dataset already exists"
    case "$name" in */*) [ -d "$(at "${name%/*}")" ] || say create "$name" "parent does not exist" ;; esac
    mkdir -p "$(at "$name")/data" ;;
clone)
    for name in "$@"; do source=${last-}; last=$name; done
    [ -d "$(at "${source%@*}")/snap" ] || say open "$source" "dataset does not exist"
    [ -d "$(at "$name")" ] && say create "$name" "dataset already exists"
    mkdir "$(at "$name").part" && cp -a "$(at "${source%@*}")/snap" "$(at "$name").part/data"
    at "${source%@*}" > "$(at "$name").part/origin"
    mv "$(at "$name").part" "$(at "$name")" ;;
snapshot)
    cp -a "$(at "${1%@*}")/data" "$(at "${1%@*}")/snap" || say snapshot "$1" "it failed" ;;
rename)
    [ -d "$(at "$1")" ] || say open "$1" "dataset does not exist"
    [ -d "$(at "$2")" ] && say rename "$1" "dataset already exists"
    from=$(at "$1"); to=$(at "$2"); mv "$from" "$to"
    for origin in "$fs"/*/origin; do
        [ -f "$origin" ] && [ "$(cat "$origin")" = "$from" ] && printf %s "$to" > "$origin"
    done; : ;;
destroy)
    [ "$1" = -r ] && shift
    place=$(at "$1")
    [ -d "$place" ] || say open "$1" "dataset does not exist"
    mounted "$place" && say unmount "$1" "pool or dataset is busy"
    for origin in "$fs"/*/origin; do
        [ -f "$origin" ] && [ "$(cat "$origin")" = "$place" ] && say destroy "$1" "filesystem has dependent clones"
    done
    rm -rf "$place" ;;
get)
    for name in "$@"; do :; done
    place=$(at "$name")
    [ -d "$place" ] || say open "$name" "dataset does not exist"
    own=$(du -sB1 "$place/data" | cut -f1); shared=0
    [ -f "$place/origin" ] && shared=$(du -sB1 "$(cat "$place/origin")/snap" | cut -f1)
    echo $((own > shared ? own - shared : 0)) ;;
*) say do "$verb" "unknown subcommand" ;;
esac
"""
_ZPOOL = """#!/bin/sh
echo "zpool $*" >> "$SIMULATED_ZFS/log"
exec sync
"""
_MOUNT = """#!/bin/sh
if [ "$1 $2" = "-t zfs" ]; then
    echo "mount $*" >> "$SIMULATED_ZFS/log"
    exec /bin/mount --bind "$SIMULATED_ZFS/fs/$(printf %s "$3" | tr / %)/data" "$4"
fi
exec /bin/mount "$@"
"""


class SimulatedZfs:
    """A pool `tank`, simulated below `directory`, for the programs that this process starts."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._log = directory / "log"
        programs = directory / "bin"
        programs.mkdir(parents=True)
        (directory / "fs/tank/data").mkdir(parents=True)
        for name, script in (("zfs", _ZFS), ("zpool", _ZPOOL), ("mount", _MOUNT)):
            (programs / name).write_text(script)
            (programs / name).chmod(0o755)
        monkeypatch.setenv("SIMULATED_ZFS", str(directory))
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def commands(self) -> list[str]:
        """The command lines since the last time, in order."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        self._log.write_text("")
        return lines
