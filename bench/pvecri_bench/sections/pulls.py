# SPDX-License-Identifier: Apache-2.0
"""Pulling and removing images. The registry is on this machine: what counts is what is made of the bytes."""

from __future__ import annotations

from pvecri_bench.session import Session, say


def measure(session: Session, rounds: int) -> None:
    """A small image, the same again, and one of 40 MB."""
    say("pulls")
    for number in range(rounds):
        tags = session.images.small
        _measure(session, tags[number % len(tags)], "1 MB, 2 layers", again=True)
    for _ in range(max(1, rounds // 4)):
        _measure(session, session.images.medium, "40 MB, 6 layers")


def _measure(session: Session, image: str, kind: str, *, again: bool = False) -> None:
    session.turn(f"PullImage {kind}", lambda column: column.client.pull(image))
    if again:
        session.turn("PullImage, already there", lambda column: column.client.pull(image))
    session.turn(f"RemoveImage {kind}", lambda column: column.client.remove_image(image))
