# SPDX-License-Identifier: Apache-2.0
"""The pod's life in the demo, a step a method, and each thing looked at from all sides."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from urllib.error import URLError

from pvecri.cri.proto import cri_pb2 as pb
from trial.cri import CriClient
from trial.footprint import cgroups_of
from trial.image import PAGE
from trial.narrator import Narrator
from trial.plan import Plan
from trial.proxmox import ProxmoxView

T = TypeVar("T")

MIB = 1 << 20
FIRST_WORK_TIMEOUT = 15.0
"""Seconds in which a container that has started must have done something."""

REMOVAL_TIMEOUT = 60.0
"""Seconds in which Proxmox must have destroyed the CT of the removed pod."""

WEB = ("httpd", "-f", "-v", "-p", "80", "-h", "/www")
READER = ("sh", "-c", "while true; do wget -q -O - http://127.0.0.1/; sleep 1; done")


class Tour:
    """The steps, in the order in which they can be taken. Errors: grpc.RpcError, OSError, RuntimeError."""

    def __init__(
        self, narrator: Narrator, plan: Plan, client: CriClient, proxmox: ProxmoxView, image: str
    ) -> None:
        self.vmid = 0
        self._narrator = narrator
        self._plan = plan
        self._client = client
        self._proxmox = proxmox
        self._image = image
        self._sandbox = ""
        self._ip = ""
        self._web = ""
        self._reader = ""
        self._pod = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name="shop", namespace="demo", uid="7e57-da7a"),
            hostname="shop",
            log_directory=str(plan.state / "logs"),
            linux=pb.LinuxPodSandboxConfig(
                resources=pb.LinuxContainerResources(
                    memory_limit_in_bytes=64 * MIB, cpu_period=100_000, cpu_quota=100_000
                )
            ),
        )

    def pull_image(self) -> None:
        """PullImage."""
        with self._narrator.step("The image is pulled: its layers are kept once, whoever uses them."):
            self._narrator.call(f"PullImage {self._image}")
            self._client.pull(self._image)
            image = self._client.image(self._image)
            self._narrator.show(f"{image.id[:19]}…  {image.size / MIB:.1f} MiB")

    def run_pod(self) -> None:
        """RunPodSandbox."""
        with self._narrator.step("A pod is started: that creates and starts one Proxmox container (CT)."):
            self._narrator.call("RunPodSandbox demo/shop, 1 CPU, 64 MiB")
            self._sandbox = self._client.run_pod(self._pod)
            self._narrator.call(f"PodSandboxStatus {self._sandbox[:13]}…")
            status = self._client.pod(self._sandbox)
            self.vmid = json.loads(status.info["info"])["vmid"]
            self._ip = status.status.network.ip
            self._narrator.show(f"the pod is CT {self.vmid}, its address is {self._ip}")

    def look_at_proxmox(self) -> None:
        """What the Proxmox API says of the pod."""
        with self._narrator.step("Proxmox knows the pod as it knows any container: this is what its API says."):
            self._get("/nodes/pve/lxc", "vmid", "name", "status", "tags", "maxmem")
            config = f"/nodes/pve/lxc/{self.vmid}/config"
            self._get(config, "hostname", "memory", "cpulimit", "unprivileged", "tags", "description")
            self._get(f"/nodes/pve/lxc/{self.vmid}/interfaces", "name", "inet")

    def run_containers(self) -> None:
        """CreateContainer and StartContainer, twice."""
        with self._narrator.step("Two containers are started inside that CT. Proxmox is not asked for anything."):
            self._web = self._run_container("web", WEB)
            self._reader = self._run_container("reader", READER)

    def fetch(self) -> None:
        """The pod's network, from the host."""
        with self._narrator.step("The web server is reached from the host, at the pod's own address."):
            url = f"http://{self._ip}/"
            self._narrator.call(f"GET {url}")
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            page = _within(FIRST_WORK_TIMEOUT, lambda: opener.open(url, timeout=5).read())
            self._narrator.show(page.decode())
            _expect(page == PAGE, f"{url} did not bring the page")

    def read_logs(self) -> None:
        """The containers' log files."""
        with self._narrator.step("Each container's output is in the log file that the kubelet reads."):
            for name in ("web", "reader"):
                path = Path(self._pod.log_directory, f"{name}.log")
                self._narrator.call(f"tail -n 2 {path}")
                text = _within(FIRST_WORK_TIMEOUT, path.read_text)
                self._narrator.show("\n".join(text.splitlines()[-2:]))

    def execute(self) -> None:
        """ExecSync, and the same from the CT's side."""
        with self._narrator.step("A container sees its own processes; the CT sees those of the whole pod."):
            self._narrator.call("ExecSync web: ps")
            inside = self._client.exec_sync(self._web, "ps", "-o", "pid,args")
            self._narrator.show(inside)
            attach = ["lxc-attach", "-P", str(self._plan.lxc_path), "-n", str(self.vmid), "--"]
            self._narrator.call(f"lxc-attach -n {self.vmid} -- ps      (on Proxmox: pct exec {self.vmid} -- ps)")
            whole = _output(*attach, "/bin/busybox", "ps", "-o", "pid,args")
            self._narrator.show(_shortened(whole))
            _expect("httpd" in inside and "wget" not in inside, "web does not see just its own processes")
            _expect("httpd" in whole and "wget" in whole, "the CT does not see its containers' processes")

    def measure(self) -> None:
        """ContainerStats, and the CT as Proxmox counts it."""
        with self._narrator.step("What they use: each container by the CRI, the whole pod by Proxmox."):
            for name, container in (("web", self._web), ("reader", self._reader)):
                self._narrator.call(f"ContainerStats {name}")
                stats = self._client.stats(container)
                memory = stats.memory.working_set_bytes.value / MIB
                cpu = stats.cpu.usage_core_nano_seconds.value / 1e6
                self._narrator.show(f"memory {memory:.2f} MiB, CPU time {cpu:.0f} ms")
            self._get(f"/nodes/pve/lxc/{self.vmid}/status/current", "status", "mem", "maxmem", "cpu", "cpus")

    def look_at_host(self) -> None:
        """The CT as LXC and the kernel show it."""
        with self._narrator.step("On the host it is an ordinary LXC container, and one tree of cgroups."):
            path = str(self._plan.lxc_path)
            self._narrator.call(f"lxc-ls -P {path} --fancy")
            self._narrator.show(_output("lxc-ls", "-P", path, "--fancy", "-F", "NAME,STATE,IPV4,UNPRIVILEGED,PID"))
            names = {self._web: "web", self._reader: "reader"}
            for group in cgroups_of(self.vmid):
                indent = "  " * len(group.relative.parts)
                label = names.get(group.relative.name, "")
                name = f"{group.relative.name[:13]}…  ({label})" if label else group.relative.name
                self._narrator.show(f"{indent}{name or f'lxc/{self.vmid}'}  {_counted(group.processes)}")

    def remove(self) -> None:
        """StopPodSandbox, RemovePodSandbox, RemoveImage."""
        with self._narrator.step("The pod is stopped and removed; Proxmox destroys the CT in the background."):
            self._narrator.call("StopPodSandbox, RemovePodSandbox")
            self._client.stop_pod(self._sandbox)
            self._client.remove_pod(self._sandbox)
            self._narrator.call(f"RemoveImage {self._image}")
            self._client.remove_image(self._image)
            self._client.wait_for_removals(REMOVAL_TIMEOUT)
            self._narrator.call("GET /nodes/pve/lxc")
            left = self._proxmox.get("/nodes/pve/lxc")
            self._narrator.show(json.dumps(left))
            _expect(left == [], "Proxmox still lists a CT")

    def _run_container(self, name: str, command: tuple[str, ...]) -> str:
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=self._image),
            command=command,
            log_path=f"{name}.log",
            linux=pb.LinuxContainerConfig(
                resources=pb.LinuxContainerResources(memory_limit_in_bytes=32 * MIB),
                security_context=pb.LinuxContainerSecurityContext(
                    namespace_options=pb.NamespaceOption(pid=pb.CONTAINER)
                ),
            ),
        )
        self._narrator.call(f"CreateContainer, StartContainer {name}: {' '.join(command)}")
        return self._client.run_container(self._sandbox, config, self._pod)

    def _get(self, path: str, *keys: str) -> None:
        """GET from Proxmox, showing these keys of each object of the answer."""
        self._narrator.call(f"GET {path}")
        data = self._proxmox.get(path)
        rows: list[dict[str, object]] = data if isinstance(data, list) else [data]
        for row in rows:
            chosen = {key: row[key] for key in keys if key in row}
            self._narrator.show(", ".join(f"{key} {_plain(key, value)}" for key, value in chosen.items()))


def _counted(processes: int) -> str:
    return f"{processes} process{'' if processes == 1 else 'es'}"


def _plain(key: str, value: object) -> str:
    if key in {"mem", "maxmem"} and isinstance(value, int):
        return f"{value / MIB:.1f} MiB"
    if isinstance(value, float):
        return f"{value:.3f}"
    return re.sub(r"\n+", " | ", str(value).strip())


def _shortened(table: str) -> str:
    return "\n".join(f"{line[:100]}…" if len(line) > 100 else line for line in table.splitlines())


def _within(seconds: float, look: Callable[[], T]) -> T:
    """What `look` brings, tried again while that is nothing or it cannot connect; RuntimeError when time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(ConnectionError, FileNotFoundError, URLError):
            if found := look():
                return found
        time.sleep(0.05)
    raise RuntimeError(f"nothing came within {seconds:g} s")


def _expect(fact: bool, otherwise: str) -> None:
    if not fact:
        raise RuntimeError(otherwise)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
