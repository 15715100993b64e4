# SPDX-License-Identifier: Apache-2.0
"""Command lines of an OCI runtime, as the fronts issue them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvecri.errors import InvalidArgument
from pvecri.front.commands import signal_number
from pvecri.front.options import DEFAULT_ROOT, CommandLine, Option, parse

ID = "5c" * 32


def options(*pairs: str) -> tuple[Option, ...]:
    """`name` or `name=value` each."""
    found = (pair.partition("=") for pair in pairs)
    return tuple(Option(name, value if equals else None) for name, equals, value in found)


# What CRI-O 1.36 and conmon 2.2, containerd's shim 2.1 and podman 4.3 issue; ID and paths shortened.
COMMAND_LINES = [
    (
        f"--root=R create --bundle B --pid-file B/pidfile {ID}",
        "create",
        ["root=R"],
        ["bundle=B", "pid-file=B/pidfile"],
        [ID],
    ),
    (
        f"--systemd-cgroup --root=R create --bundle B --pid-file P --no-pivot --no-new-keyring "
        f"--console-socket C {ID}",
        "create",
        ["systemd-cgroup", "root=R"],
        ["bundle=B", "pid-file=P", "no-pivot", "no-new-keyring", "console-socket=C"],
        [ID],
    ),
    (f"--root R start {ID}", "start", ["root=R"], [], [ID]),
    (f"--root R --systemd-cgroup state {ID}", "state", ["root=R", "systemd-cgroup"], [], [ID]),
    (f"--root R kill {ID} 15", "kill", ["root=R"], [], [ID, "15"]),
    (f"--root R kill {ID} KILL", "kill", ["root=R"], [], [ID, "KILL"]),
    (f"--root R kill -a {ID} 9", "kill", ["root=R"], ["all"], [ID, "9"]),
    (f"--root R delete --force {ID}", "delete", ["root=R"], ["force"], [ID]),
    (
        f"--root=R exec --pid-file P --process J --detach {ID}",
        "exec",
        ["root=R"],
        ["pid-file=P", "process=J", "detach"],
        [ID],
    ),
    (
        f"--root=R exec --pid-file P --process J --detach --tty {ID}",
        "exec",
        ["root=R"],
        ["pid-file=P", "process=J", "detach", "tty"],
        [ID],
    ),
    (f"--root R exec --process J {ID}", "exec", ["root=R"], ["process=J"], [ID]),
    (f"--root R update --resources - {ID}", "update", ["root=R"], ["resources=-"], [ID]),
    (f"--root R pause {ID}", "pause", ["root=R"], [], [ID]),
    (f"--root R resume {ID}", "resume", ["root=R"], [], [ID]),
    ("checkpoint --help", "checkpoint", [], ["help"], []),
    (
        f"--root R checkpoint --file-locks --image-path I --work-path W --leave-running {ID}",
        "checkpoint",
        ["root=R"],
        ["file-locks", "image-path=I", "work-path=W", "leave-running"],
        [ID],
    ),
    (
        f"--root=R restore --bundle B --pid-file P --detach --image-path I --work-path B "
        f"--lsm-profile=selinux:L --lsm-mount-context=L {ID}",
        "restore",
        ["root=R"],
        [
            "bundle=B",
            "pid-file=P",
            "detach",
            "image-path=I",
            "work-path=B",
            "lsm-profile=selinux:L",
            "lsm-mount-context=L",
        ],
        [ID],
    ),
    (
        f"--root /run/containerd/runc/k8s.io --log L --log-format json create --bundle B --pid-file P {ID}",
        "create",
        ["root=/run/containerd/runc/k8s.io", "log=L", "log-format=json"],
        ["bundle=B", "pid-file=P"],
        [ID],
    ),
    (
        f"--root R --log L --log-format json exec --process J --console-socket C --detach --pid-file P {ID}",
        "exec",
        ["root=R", "log=L", "log-format=json"],
        ["process=J", "console-socket=C", "detach", "pid-file=P"],
        [ID],
    ),
    (
        f"--root R --log L --log-format json kill --all {ID} 9",
        "kill",
        ["root=R", "log=L", "log-format=json"],
        ["all"],
        [ID, "9"],
    ),
    (
        f"--root R --log L --log-format json ps --format json {ID}",
        "ps",
        ["root=R", "log=L", "log-format=json"],
        ["format=json"],
        [ID],
    ),
    ("features", "features", [], [], []),
    (f"events --stats {ID}", "events", [], ["stats"], [ID]),
    # People.
    ("create -b B web", "create", [], ["bundle=B"], ["web"]),
    ("delete -f web", "delete", [], ["force"], ["web"]),
    ("kill -s TERM web", "kill", [], ["signal=TERM"], ["web"]),
    ("ps -f json web", "ps", [], ["format=json"], ["web"]),
    ("ps web -o pid", "ps", [], [], ["web", "-o", "pid"]),
    ("update -r F web", "update", [], ["resources=F"], ["web"]),
    ("exec -d -t -p J web", "exec", [], ["detach", "tty", "process=J"], ["web"]),
    ("exec -e A=b --env C=d web ls -l", "exec", [], ["env=A=b", "env=C=d"], ["web", "ls", "-l"]),
    ("exec -- web ls", "exec", [], [], ["web", "ls"]),
    ("-root R -log=L state web", "state", ["root=R", "log=L"], [], ["web"]),
    ("delete --force=false web", "delete", [], [], ["web"]),
    ("delete --force=true web", "delete", [], ["force"], ["web"]),
    ("update --cpu-quota -1 web", "update", [], ["cpu-quota=-1"], ["web"]),
]


@pytest.mark.parametrize(("text", "command", "of_all", "own", "arguments"), COMMAND_LINES)
def test_command_lines_of_fronts_are_known(
    text: str, command: str, of_all: list[str], own: list[str], arguments: list[str]
) -> None:
    assert parse(text.split()) == CommandLine(command, options(*of_all), options(*own), tuple(arguments))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "pvecri-runtime: no command is given"),
        ("--root R", "pvecri-runtime: no command is given"),
        ("--root", "pvecri-runtime: the option --root needs a value"),
        ("--fast start web", "pvecri-runtime: the option --fast is not known"),
        ("frobnicate web", "pvecri-runtime: there is no command 'frobnicate'"),
        ("start --force web", "start: the option --force is not known"),
        ("start --force=x web", "start: the option --force is not known"),
        ("create --bundle", "create: the option --bundle needs a value"),
        ("create -b", "create: the option -b needs a value"),
        ("kill -x web", "kill: the option -x is not known"),
    ],
)
def test_error_names_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse(text.split())
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("text", ["start", "state", "exec --detach"])
def test_missing_id_is_an_error(text: str) -> None:
    with pytest.raises(InvalidArgument, match="the container's id is missing"):
        _ = parse(text.split()).id


def test_empty_id_is_an_error() -> None:
    with pytest.raises(InvalidArgument, match="the container's id is missing"):
        _ = parse(["start", ""]).id


def test_root_has_a_default_and_values_are_the_last() -> None:
    line = parse(["state", "web"])
    assert (line.root, line.value("bundle"), line.has("bundle")) == (DEFAULT_ROOT, "", False)
    assert parse(["--root", "R", "state", "web"]).root == "R"
    assert parse(["create", "-b", "one", "--bundle=two", "web"]).value("bundle") == "two"


def test_options_are_passed_on_as_single_words() -> None:
    line = parse(
        ["--log", "L", "--debug", "--root=R", "create", "-b", "B", "--no-pivot", "--preserve-fds", "3", "web"]
    )
    assert line.passed("bundle") == ["--no-pivot", "--preserve-fds=3"]
    assert line.log_options() == ["--log=L", "--debug"]


@given(st.lists(st.text(max_size=8) | st.sampled_from(["--root", "create", "exec", "-b", "--", "-", "--bundle="])))
def test_any_words_are_a_command_line_or_an_invalid_argument(words: list[str]) -> None:
    with suppress(InvalidArgument):
        parse(words)


@given(st.lists(st.sampled_from(COMMAND_LINES), min_size=1, max_size=1), st.data())
def test_cut_off_command_lines_raise_nothing_else(lines: list[tuple[str, ...]], data: st.DataObject) -> None:
    words = lines[0][0].split()
    with suppress(InvalidArgument):
        parse(words[: data.draw(st.integers(0, len(words)))])


# -- signals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("15", 15),
        ("TERM", 15),
        ("SIGTERM", 15),
        ("sigterm", 15),
        ("KILL", 9),
        ("0", 0),
        ("34", 34),
        ("64", 64),
        ("RTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMAX-2", 62),
        ("CHLD", 17),
        ("CLD", 17),
        ("poll", 29),
    ],
)
def test_signals_have_numbers_and_names(name: str, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize(
    "name", ["", "SIG", "65", "-1", "NOPE", "RTMIN+99", "RTMAX-99", "_DFL", "SIG_IGN", "٣", "²", "RTMIN+²"]
)
def test_other_names_are_no_signals(name: str) -> None:
    with pytest.raises(InvalidArgument, match="kill: there is no signal"):
        signal_number(name)


@given(st.text(max_size=12))
def test_any_text_is_a_signal_or_an_invalid_argument(name: str) -> None:
    with suppress(InvalidArgument):
        assert 0 <= signal_number(name) <= 64
