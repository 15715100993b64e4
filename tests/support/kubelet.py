# SPDX-License-Identifier: Apache-2.0
"""What a real kubelet sent for a pod (tests/recorded/kubelet, of a kubelet 1.36), sent again to a daemon under
test.

Only what cannot be the same is replaced: the uid, the image, the log directory and the kubelet's own directory.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from support.cri_client import CALL_TIMEOUT, CriClient

from pvecri.cri.proto import cri_pb2 as pb

RECORDED = Path(__file__).parents[1] / "recorded/kubelet"
PODS = sorted(path.stem for path in RECORDED.glob("*.json"))

KUBELET_DIR = "/var/lib/kubelet"
LOG_DIR = "/var/log/pods"


@dataclass
class SentPod:
    """A pod that was made from a record. `containers` are ids by name; `uid` is the pod's in Kubernetes."""

    uid: str
    pod: str = ""
    containers: dict[str, str] = field(default_factory=dict)


def send(cri: CriClient, name: str, directory: Path, **annotations: str) -> SentPod:
    """Send the calls of a record, and StartContainer after each CreateContainer; what they made.

    `directory` stands for the kubelet's own, and is on a mount that propagates. `annotations` are added to the
    pod's.
    """
    text = (RECORDED / f"{name}.json").read_text()
    uid = str(uuid.uuid4())
    calls = json.loads(text)["calls"]
    recorded_uid = calls[0]["request"]["config"]["metadata"]["uid"]
    replaced = json.dumps(calls).replace(recorded_uid, uid)
    replaced = replaced.replace(KUBELET_DIR, str(directory)).replace(LOG_DIR, str(cri.log_directory))
    sent = SentPod(uid)
    ids: dict[str, str] = {}
    for call in json.loads(replaced):
        _send(cri, call, sent, ids, annotations)
    return sent


def _send(
    cri: CriClient, call: dict[str, Any], sent: SentPod, ids: dict[str, str], annotations: dict[str, str]
) -> None:
    method, request = call["method"], call["request"]
    for key in ("pod_sandbox_id", "container_id"):
        if key in request:
            request[key] = ids[request[key]]
    if method == "RunPodSandbox":
        request["config"].setdefault("annotations", {}).update(annotations)
    if method == "CreateContainer":
        request["config"]["image"]["image"] = cri.image
        options = request["config"]["linux"]["security_context"]["namespace_options"]
        options["target_id"] = ids.get(options["target_id"], "")
        for mount in request["config"].get("mounts", ()):
            _make_source(Path(mount["host_path"]))
    message = json_format.ParseDict(request, getattr(pb, f"{method}Request")())
    response = getattr(cri.runtime, method)(message, timeout=CALL_TIMEOUT)
    if method == "RunPodSandbox":
        sent.pod = ids[call["response"]["pod_sandbox_id"]] = response.pod_sandbox_id
    if method == "CreateContainer":
        container = ids[call["response"]["container_id"]] = response.container_id
        sent.containers[message.config.metadata.name] = container
        cri.start(container)


def _make_source(path: Path) -> None:
    """Make the file or directory that a kubelet would have made."""
    is_file = path.name == "etc-hosts" or path.parent.parent.name == "containers"
    if path.exists():
        return
    if is_file:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        path.chmod(0o666)
    else:
        path.mkdir(parents=True)
        path.chmod(0o777)
