# SPDX-License-Identifier: Apache-2.0
"""The daemon's Prometheus metrics.

All are defined here, for consistent names, labels and units, and updated by the components. Labels have few
values: no ids, VMIDs or images; of names that others choose, the last few used (`Recent`). `code` is how an
operation ended: the name of a gRPC status, or an HTTP status.
metrics_server.py serves them (metrics_registry.py); docs/monitoring.md describes them.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from pvecri.observability.instruments import Counter, Gauge, Histogram, Instrument

Kind = TypeVar("Kind", bound=Instrument)

OK: Final = "OK"

SECONDS_OF_CALLS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SECONDS_OF_TASKS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SECONDS_OF_PULLS: Final = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
SECONDS_OF_STEPS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SECONDS_OF_PLUGINS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2, 5)
BYTES_OF_LAYERS: Final = (1e3, 1e5, 1e6, 1e7, 5e7, 1e8, 2e8, 5e8, 1e9, 1e10)

INSTRUMENTS: Final[list[Instrument]] = []
"""All of them, in the order of their definition."""


def _counter(name: str, text: str, *labels: str) -> Counter:
    return _added(Counter(name, text, labels))


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return _added(Gauge(name, text, labels))


def _histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
    return _added(Histogram(name, text, labels, bounds=bounds))


def _seconds(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
    return _histogram(f"{name}_seconds", text, bounds, *labels)


def _added(instrument: Kind) -> Kind:
    INSTRUMENTS.append(instrument)
    return instrument


class Recent:
    """Bounds series with label values that others choose, such as names: keeps the last `maximum` used.

    `labels` are those whose values are bounded; the series of values that are dropped are removed from all of
    `instruments`. If they are used again, their counters begin at 0.
    """

    def __init__(self, maximum: int, labels: tuple[str, ...], *instruments: Counter | Histogram) -> None:
        self._maximum = maximum
        self._labels = labels
        self._instruments = instruments
        self._used: OrderedDict[tuple[str, ...], None] = OrderedDict()

    def use(self, *values: str) -> None:
        """Call before the series with these values of the bounded labels are changed."""
        self._used[values] = None
        self._used.move_to_end(values)
        if len(self._used) > self._maximum:
            dropped = self._used.popitem(last=False)[0]
            for instrument in self._instruments:
                instrument.remove(dict(zip(self._labels, dropped, strict=True)))


BUILD_INFO = _gauge("build_info", "Constant 1, labelled with the running version.", "version")
CONDITION = _gauge("condition", "1 if a condition of the runtime's status is met, else 0.", "type")

CRI_CALLS = _counter("cri_calls", "Completed CRI calls.", "method", "code")
CRI_SECONDS = _seconds("cri_call_duration", "Duration of CRI calls.", SECONDS_OF_CALLS, "method")
CRI_FAULTS = _counter(
    "cri_faults",
    "CRI calls that failed with an unexpected exception; the log has its traceback.",
    "method",
)
FRONT_CALLS = _counter("oci_commands", "Completed commands of pvecri-runtime.", "command", "code")
FRONT_SECONDS = _seconds(
    "oci_command_duration", "Duration of commands of pvecri-runtime.", SECONDS_OF_CALLS, "command"
)
CRI_RUNNING = _gauge("cri_calls_in_flight", "CRI calls in progress.", "method")

PODS = _gauge("pods", "Pod sandboxes by lifecycle phase.", "phase")
PODS_BY_USER_NAMESPACE = _gauge(
    "pods_by_user_namespace", "Pod sandboxes by kind of user namespace and reason.", "kind", "reason"
)
FOREIGN_CTS = _gauge(
    "foreign_cts", "CTs of this node with the notes of a pod that are no pod's of this daemon.", "reason"
)
CT_CHANGES = _counter(
    "ct_changes", "Changes of pods' CTs in Proxmox by others that were undone, by kind of change.", "kind"
)
CT_REMOVALS = _gauge("ct_removals_pending", "CTs of removed pods that Proxmox has not destroyed yet.")
WARM_CTS = _gauge("warm_cts", "Running CTs that wait for a pod, by kind.", "kind")
WARM_CLAIMS = _counter(
    "warm_claims", "Pods created while warm CTs of their kind were enabled, by outcome.", "kind", "outcome"
)
WARM_TARGET = _gauge("warm_cts_target", "Warm CTs that there should be now, by kind.", "kind")
VMIDS = _gauge("vmids", "VMIDs of proxmox.vmid_range, by whether a known guest of the cluster has them.", "state")
POD_STEP_SECONDS = _seconds(
    "pod_setup_step_duration", "Duration of the steps of RunPodSandbox.", SECONDS_OF_STEPS, "step"
)
CONTAINERS = _gauge("containers", "Containers by state.", "state")
OOM_KILLS = _counter("container_oom_kills", "Containers that exited after an OOM kill.")
OOM_KILLS_BY_NAME = _counter(
    "container_oom_kills_by_name",
    "As pvecri_container_oom_kills_total, for the last 100 names.",
    "namespace",
    "container",
)
OOM_KILLED_NAMES: Final = Recent(100, ("namespace", "container"), OOM_KILLS_BY_NAME)
MONITORS_LOST = _counter(
    "container_monitors_lost", "Containers whose conmon was killed before it recorded their exit code."
)
SUBSCRIBERS_DROPPED = _counter("event_listeners_dropped", "Slow subscribers to events that were dropped.")
BACKGROUND_FAILURES = _counter(
    "background_failures", "Failures of background work and of steps of clean-ups, by kind of work.", "work"
)
BACKGROUND_FAILING = _gauge(
    "background_failing", "Pieces of background work that have failed three times in a row or more.", "work"
)
CLEANUP_PENDING = _gauge("cleanup_pending", "Failed cleanup steps that will be retried.")
CLEANUP_FAILURES = _counter("cleanup_failures", "Failed attempts of cleanup steps.")

PULLS = _counter("image_pulls", "Completed image pulls.", "code")
PULL_SECONDS = _seconds("image_pull_duration", "Duration of image pulls.", SECONDS_OF_PULLS)
PULLS_RUNNING = _gauge("image_pulls_in_flight", "Image pulls in progress.")
LAYERS = _counter("image_layers", "Layers of pulled images, by source.", "source")
LAYER_BYTES = _histogram(
    "image_layer_size_bytes", "Compressed size of the layers that pulls fetched.", BYTES_OF_LAYERS
)
SKIPPED_BYTES = _counter(
    "image_skipped_bytes", "Compressed bytes of layers of new images that were in the store already."
)
FETCHED_BYTES = _counter("image_fetched_bytes", "Bytes of compressed layers fetched.")
UNPACKED_BYTES = _counter("image_unpacked_bytes", "Bytes of layers after decompression.")

PROXMOX_REQUESTS = _counter(
    "proxmox_requests", "Requests to the Proxmox API, including retries.", "method", "path", "code"
)
PROXMOX_SECONDS = _seconds(
    "proxmox_request_duration", "Duration of requests to the Proxmox API.", SECONDS_OF_CALLS, "method", "path"
)
PROXMOX_RETRIES = _counter("proxmox_retries", "Retries of requests to the Proxmox API.", "method")
TASKS_RUNNING = _gauge("proxmox_tasks_in_flight", "Proxmox tasks that are awaited.", "type")
TASKS = _counter("proxmox_tasks", "Completed Proxmox tasks.", "type", "code")
TASK_SECONDS = _seconds("proxmox_task_duration", "Duration of Proxmox tasks.", SECONDS_OF_TASKS, "type")

CNI_CALLS = _counter("cni_calls", "Executions of CNI plugins.", "plugin", "command", "code")
CNI_SECONDS = _seconds(
    "cni_call_duration", "Duration of CNI plugin executions.", SECONDS_OF_TASKS, "plugin", "command"
)

NRI_PLUGINS = _gauge("nri_plugins", "NRI plugins that get events.")
NRI_CALLS = _counter("nri_calls", "Completed calls to NRI plugins.", "plugin", "method", "code")
NRI_SECONDS = _seconds(
    "nri_call_duration", "Duration of calls to NRI plugins.", SECONDS_OF_PLUGINS, "plugin", "method"
)
NRI_PLUGIN_NAMES: Final = Recent(20, ("plugin",), NRI_CALLS, NRI_SECONDS)

STREAMING_SESSIONS = _counter(
    "streaming_sessions", "Streaming sessions (exec, attach, port-forward) begun.", "kind", "protocol"
)
STREAMING_RUNNING = _gauge("streaming_sessions_in_flight", "Open streaming sessions.", "kind")
STREAMING_REFUSALS = _counter("streaming_refusals", "Refused streaming requests, by HTTP status.", "code")


@dataclass(slots=True)
class Measure:
    """The outcome of a measured operation: the code that the body sets, else that of what it raises, else OK."""

    code: str = OK


@contextmanager
def measured(ended: Counter, seconds: Histogram, *labels: str) -> Iterator[Measure]:
    """Count and time the context's body. `labels` are those of both metrics; `ended` has the code after them.

    Costs some five microseconds.
    """
    measure = Measure()
    begin = time.perf_counter()
    try:
        yield measure
    except BaseException as error:
        if measure.code == OK:
            measure.code = code_of(error)
        raise
    finally:
        seconds.labels(*labels).observe(time.perf_counter() - begin)
        ended.labels(*labels, measure.code).inc()


def code_of(error: BaseException) -> str:
    """The name of the gRPC status for an exception: its own `status` if it is one of errors.py."""
    status = getattr(error, "status", None)
    if isinstance(status, str):
        return status
    # GeneratorExit: a stream of the CRI whose client has gone.
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    return "DEADLINE_EXCEEDED" if isinstance(error, TimeoutError) else "INTERNAL"
