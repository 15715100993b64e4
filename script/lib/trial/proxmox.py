# SPDX-License-Identifier: Apache-2.0
"""GET requests to the Proxmox API, for a look at what it says of a pod."""

from __future__ import annotations

import json
import ssl
import urllib.request
from typing import Any

from trial.plan import NodeDescriptor, Plan


class ProxmoxView:
    """The API of the plan's embedded node, read with the daemon's token."""

    def __init__(self, plan: Plan, node: NodeDescriptor) -> None:
        self._base = f"{node.url}/api2/json"
        self._authorization = f"PVEAPIToken={node.token_id}={node.token_secret}"
        self._tls = ssl.create_default_context(cafile=plan.node_state / "pve/local/pve-ssl.crt")

    def get(self, path: str) -> Any:
        """The `data` of an answer: an object or a list of them. Raises urllib.error.URLError."""
        request = urllib.request.Request(self._base + path, headers={"Authorization": self._authorization})
        # No proxy: the node is this machine.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._tls)
        )
        with opener.open(request, timeout=30) as response:
            answer: dict[str, object] = json.load(response)
        return answer["data"]
