# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from pve_replay.oci_archive import APP, SHELL, write_image

from pvecri_embedded.storage.oci import quote
from pvecri_embedded.storage.template import TemplateError, TemplateStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users: needs root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def layer(path: Path, *names: str, links: dict[str, str] | None = None) -> Path:
    """A layer of directories (names that end in ``/``), files that hold their layer's name, and symlinks."""
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name.rstrip("/"))
            info.mode = 0o755
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            data = b"" if name.endswith("/") else path.stem.encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return path


def test_upper_layer_replaces_and_whites_out_what_is_below(tmp_path: Path, root: Path) -> None:
    lower = layer(tmp_path / "lower.tar", "etc/", "etc/kept", "etc/changed", "etc/gone", "opt/", "opt/a", "opt/b")
    upper = layer(tmp_path / "upper.tar", "etc/changed", "etc/.wh.gone", "opt/.wh..wh..opq", "opt/c")
    TemplateStore().unpack(write_image(tmp_path / "image.tar", SHELL, lower, upper), root, 0)
    files = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}
    assert files == {"etc/kept": "lower", "etc/changed": "upper", "opt/c": "upper"}


@pytest.mark.parametrize("name", ["way/new", "way/.wh.outside", "way/.wh..wh..opq"])
def test_layer_that_leads_out_of_the_root_by_a_symlink_below_it_is_refused(
    tmp_path: Path, root: Path, name: str
) -> None:
    (tmp_path / "outside").touch()
    lower = layer(tmp_path / "lower.tar", links={"way": ".."})
    image = write_image(tmp_path / "image.tar", SHELL, lower, layer(tmp_path / "upper.tar", name))
    with pytest.raises(TemplateError):
        TemplateStore().unpack(image, root, 0)
    assert (tmp_path / "outside").exists()
    assert not (tmp_path / "new").exists()


def test_ct_options_of_an_image_are_proxmoxs(tmp_path: Path, root: Path) -> None:
    image = write_image(tmp_path / "image.tar", APP, layer(tmp_path / "layer.tar", "bin/"))
    unpacked = TemplateStore().unpack(image, root, 0)
    assert unpacked.options == {
        "arch": "amd64",
        "cmode": "console",
        "entrypoint": "/bin/app --flag 'a b' 'it'\\''s' 'x\"y'",
        "env": "PATH=/usr/bin:/bin\0GREETING=hello world\0QUOTE=it's",
        "lxc": [
            ["lxc.init.uid", "1000"],
            ["lxc.init.gid", "1000"],
            ["lxc.init.cwd", "/tmp/wd"],
            ["lxc.signal.halt", "SIGQUIT"],
        ],
    }
    assert (root / "data").is_dir()


def test_plain_template_sets_no_options(tmp_path: Path, root: Path) -> None:
    unpacked = TemplateStore().unpack(layer(tmp_path / "plain.tar", "etc/", "etc/file"), root, 0)
    assert (unpacked.size, unpacked.options) == (5, None)


@pytest.mark.parametrize(
    ("argument", "quoted"), [("/bin/sh", "/bin/sh"), ("a b", "'a b'"), ("it's", "'it'\\''s'"), ("", "''")]
)
def test_arguments_are_quoted_like_proxmoxs(argument: str, quoted: str) -> None:
    assert quote(argument) == quoted
