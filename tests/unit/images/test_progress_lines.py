# SPDX-License-Identifier: Apache-2.0
"""The progress of a pull, and its lines on a terminal."""

from __future__ import annotations

from support import figures

from pvecri.cli.image_progress import bar, summary
from pvecri.images.manifest import Layer
from pvecri.images.pull.progress import Progress, Transfer

MIB = 1 << 20
NAME = "example.org/app:1"


def layer(size: int) -> Layer:
    return Layer(digest="sha256:" + "a" * 64, diff_id="sha256:" + "b" * 64, size=size)


def test_bar_shows_bytes_and_layers() -> None:
    half = Progress(fetched=5 * MIB, total=10 * MIB, done=1, layers=3)
    assert bar(NAME, half, 2.6) == f"[{'#' * 12}{' ' * 12}] 5.0 MiB of 10.0 MiB, 1 of 3 layers, 3 s  {NAME}"


def test_bar_of_empty_layers_is_full() -> None:
    assert bar(NAME, Progress(fetched=0, total=0, layers=1), 0).startswith(
        f"[{'#' * 24}] 0 B of 0 B, 0 of 1 layers"
    )


def test_bar_without_known_layers_shows_the_elapsed_time_only() -> None:
    assert bar(NAME, Progress(), 12.2) == f"12 s  {NAME}"


def test_summary_shows_fetched_and_present_layers() -> None:
    assert summary(NAME, Progress(total=3 * MIB, layers=2, present=4), 1.25) == (
        f"{NAME}: 2 layers with 3.0 MiB, 4 already present, 1.2 s"
    )
    assert summary(NAME, Progress(), 0.4) == f"{NAME}: 0.4 s"


def test_progress_of_a_layer_is_capped_at_its_size() -> None:
    moves: list[int] = []
    transfer = Transfer(lambda: moves.append(1))
    first, second = transfer.plan((layer(10), layer(20)), [layer(10), layer(20), layer(1), layer(1), layer(1)])
    first.reached(4, 40)
    first.reached(12, 100)
    second.reached(5, 5)
    first.done()
    assert transfer.progress == Progress(fetched=15, total=30, unpacked=105, done=1, layers=2, present=3)
    assert len(moves) == 4


def test_fetched_and_skipped_layers_are_measured() -> None:
    def measured() -> tuple[float, ...]:
        names = ("image_skipped_bytes_total", "image_layer_size_bytes_sum", "image_layer_size_bytes_count")
        return tuple(figures.value(name) for name in names)

    before = measured()
    # An image may have a layer twice; it is fetched once.
    (fetched,) = Transfer().plan((layer(10),), (layer(10), layer(10), layer(7)))
    fetched.done()
    assert [now - then for now, then in zip(measured(), before, strict=True)] == [17, 10, 1]


def test_two_layers_of_the_same_blob_count_twice() -> None:
    transfer = Transfer()
    for each in transfer.plan((layer(10), layer(10)), (layer(10), layer(10))):
        each.done()
    assert (transfer.progress.fetched, transfer.progress.done) == (20, 2)


def test_progress_of_several_pulls_adds_up() -> None:
    one, other = Progress(fetched=1, total=2, done=1, layers=1), Progress(total=3, layers=2, present=1)
    assert one + other == Progress(fetched=1, total=5, done=1, layers=3, present=1)
