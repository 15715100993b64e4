# SPDX-License-Identifier: AGPL-3.0-or-later
"""A simulated cluster: the API's answers for any number of nodes, whose CTs are entries in memory.

    python -m pvecri_embedded.cluster DIRECTORY NODES CREATE_SECONDS

The nodes are pve1, pve2 and so on; a create takes CREATE_SECONDS. Writes the API's URL and the SHA-256 fingerprint
of its certificate, a line each, and serves until its standard input ends. For `bench/cluster`: one process answers
for all nodes, which in a real cluster have an API each.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path

from fakepve.certs import make_cert
from fakepve.server import FakePve

TOKEN_ID = "root@pam!bench"
SECRET = "bench"
TEMPLATE = "bench.tar.gz"


async def serve(directory: Path, nodes: int, create_seconds: float) -> None:
    """Serve until standard input ends."""
    certificate, key, der = make_cert(str(directory), "cluster")
    cluster = FakePve(user="root@pam", password=SECRET, host="127.0.0.1", port=0)
    cluster.nodes.clear()
    for number in range(nodes):
        cluster.add_node(f"pve{number + 1}")
    cluster.apitokens[TOKEN_ID] = SECRET
    cluster.storages["local"]["files"].add(TEMPLATE)
    cluster.time_scale = 1.0
    cluster.ct_secs["create"] = create_seconds
    cluster.max_requests = 0
    await cluster.start(certificate, key)
    sys.stdout.write(f"https://127.0.0.1:{cluster.port}\n{hashlib.sha256(der).hexdigest()}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await cluster.stop()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
