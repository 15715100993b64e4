# SPDX-License-Identifier: Apache-2.0
"""`python -m pvecri_bench.floor SOCKET [ANSWERS]`: a grpc.aio server whose handlers do nothing.

What its calls cost, and its memory, is the floor of a CRI server in Python with gRPC. It answers every call of the
CRI with the bytes of the file CALL in the directory ANSWERS, which is an empty message if there is none.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, answers: Path | None) -> None:
        self._answers = answers
        self._known: dict[str, Any] = {}

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call, made at its first use."""
        name = handler_call_details.method.rpartition("/")[2]
        if name not in self._known:
            self._known[name] = _handler(self._read(name))
        return self._known[name]

    def _read(self, name: str) -> bytes:
        path = None if self._answers is None else self._answers / name
        return path.read_bytes() if path is not None and path.exists() else b""


def _handler(answer: bytes) -> Any:
    async def behaviour(_request: bytes, _context: object) -> bytes:
        return answer

    return grpc.unary_unary_rpc_method_handler(behaviour)


async def serve(socket: str, answers: Path | None) -> None:
    """Until the process ends."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Handlers(answers),))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None))
