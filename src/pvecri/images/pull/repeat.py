# SPDX-License-Identifier: Apache-2.0
"""The fetch of a blob is repeated if the network or the registry interrupted it.

Each time from the blob's start: skopeo's proxy offers no other; newer versions of it resume by themselves, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from pvecri.backoff import Backoff
from pvecri.errors import CommandError, Unavailable
from pvecri.images.reference import Reference
from pvecri.images.registry.proxy import ProxyGone
from pvecri.images.registry.skopeo import WrongBlob, translate

log = logging.getLogger(__name__)

ATTEMPTS: Final = 5
"""As many as Docker's max-download-attempts has by default."""

_PAUSES: Final = Backoff(first=0.25, maximum=2.0)

T = TypeVar("T")


def is_transient(reference: Reference, failure: CommandError) -> bool:
    """Whether what skopeo reports may pass. Not a limit on requests: skopeo has waited and repeated already.

    A wrong blob may: a proxy that has cached a part of it serves it as a whole, with a matching Content-Length.
    """
    return not isinstance(failure, ProxyGone) and type(translate(reference, failure)) in (Unavailable, WrongBlob)


async def repeated(reference: Reference, blob: str, fetch: Callable[[], Awaitable[T]]) -> T:
    """The result of `fetch`, called again after transient failures, ATTEMPTS times in all.

    `blob` names what is fetched. Raises Unavailable or WrongBlob after the last attempt, all else that `fetch`
    raises at once.
    """
    pauses = _PAUSES.delays()
    for attempt in range(1, ATTEMPTS):
        try:
            return await fetch()
        except CommandError as failure:
            if not is_transient(reference, failure):
                raise
            log.info("%s, attempt %d of %d to fetch %s", translate(reference, failure), attempt, ATTEMPTS, blob)
        await asyncio.sleep(next(pauses))
    try:
        return await fetch()
    except CommandError as failure:
        if not is_transient(reference, failure):
            raise
        error = translate(reference, failure)
        kind = WrongBlob if isinstance(error, WrongBlob) else Unavailable
        raise kind(f"{error} ({blob}, {ATTEMPTS} attempts)") from failure
