# SPDX-License-Identifier: Apache-2.0
"""The benchmark's command line and the order of its calls."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from pvecri_bench import options
from pvecri_bench.client import Client, Timed
from pvecri_bench.images import Images
from pvecri_bench.session import Column, Session
from trial.image import write_layout
from trial.registry import running_registry


def session(directory: Path) -> Session:
    columns = tuple(Column(name, "1", Client(f"unix://{directory}/{name}"), 1) for name in "abc")
    return Session(columns, Images("base", "pause", (), "medium"), "label", directory, "/bench")


def test_all_sections_are_measured_by_default() -> None:
    assert options.parse([]) == options.Options()


def test_sections_can_be_chosen_and_left_out() -> None:
    assert options.parse(["--only", "life,lists,reads", "--skip", "lists"]).sections == ("life", "reads")


@pytest.mark.parametrize("wrong", [["--only", "lives"], ["--rounds", "0"], ["--pods", "5,x"], ["--peer", "x"]])
def test_a_wrong_command_line_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options.parse(wrong)
    assert ended.value.code == 2


def test_runtimes_take_turns_and_rotate_the_first(tmp_path: Path) -> None:
    called: list[str] = []

    def action(column: Column) -> Timed[None]:
        called.append(column.name)
        return Timed(None, 1.0)

    session(tmp_path).turn("Version", action, times=3)
    assert called == ["b", "c", "a", "c", "a", "b", "a", "b", "c"]


def test_the_same_layers_make_the_same_image(tmp_path: Path) -> None:
    manifests = []
    for name in ("one", "two"):
        write_layout(tmp_path / name, [b"lower", b"upper"], ["sh"])
        manifests.append(json.loads((tmp_path / name / "index.json").read_text())["manifests"][0]["digest"])
    assert manifests[0] == manifests[1]


def test_a_runtime_of_an_endpoint_can_know_the_registrys_port_beforehand(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    chosen = options.parse(["--registry-port", str(port), "--endpoint", "unix:///run/crio/crio.sock"])
    with running_registry(tmp_path / "registry", chosen.registry_port) as address:
        assert address == f"127.0.0.1:{port}"


def test_a_container_has_the_image_that_the_user_specified(tmp_path: Path) -> None:
    image = session(tmp_path).container_config("c", "sha256:0").image
    assert (image.image, image.user_specified_image) == ("sha256:0", "base")
