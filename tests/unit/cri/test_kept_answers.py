# SPDX-License-Identifier: Apache-2.0
"""Whatever changes pods, containers and images: an answer that was kept equals one that is built anew."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace
from support.filled import filled

from pvecri.config.settings import Config
from pvecri.cri import answers
from pvecri.cri.answers import Answers
from pvecri.cri.image_service import ImageService
from pvecri.cri.proto import cri_pb2 as pb
from pvecri.cri.runtime_service import RuntimeService
from pvecri.errors import AlreadyExists, NotFound
from pvecri.images.catalog import Catalog
from pvecri.images.manager import ImageManager
from pvecri.images.store import ImageRecord
from pvecri.model import (
    Container,
    ContainerId,
    ContainerMetadata,
    ContainerState,
    Image,
    ImageId,
    Sandbox,
    SandboxId,
    SandboxMetadata,
    SandboxPhase,
    Vmid,
    WarmCt,
)
from pvecri.pods.health import Condition
from pvecri.pods.manager import PodManager
from pvecri.pods.registry import ContainerEntry, PodEntry, Registry
from pvecri.pods.store import Store

SANDBOX, CONTAINER = replace(filled(Sandbox), removed=False), filled(Container)
NUMBERS = st.integers(0, 3)
PHASES, STATES = st.sampled_from(list(SandboxPhase)), st.sampled_from(list(ContainerState))

REQUESTS: list[tuple[str, type[Message], list[Message]]] = [
    (
        "list_pod_sandbox",
        pb.ListPodSandboxResponse,
        [
            pb.ListPodSandboxRequest(),
            pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(state={"state": pb.SANDBOX_READY})),
            pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(id=f"{1:064x}")),
        ],
    ),
    (
        "list_containers",
        pb.ListContainersResponse,
        [
            pb.ListContainersRequest(),
            pb.ListContainersRequest(filter=pb.ContainerFilter(state={"state": pb.CONTAINER_RUNNING})),
            pb.ListContainersRequest(filter=pb.ContainerFilter(pod_sandbox_id=f"{2:064x}")),
        ],
    ),
    (
        "pod_sandbox_status",
        pb.PodSandboxStatusResponse,
        [pb.PodSandboxStatusRequest(pod_sandbox_id=f"{number:064x}") for number in range(4)],
    ),
    (
        "container_status",
        pb.ContainerStatusResponse,
        [pb.ContainerStatusRequest(container_id=f"{number:064x}") for number in range(4)],
    ),
]


def now(answer: Awaitable[Any]) -> Any:
    """The result of a call that awaits nothing."""
    try:
        answer.__await__().send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the call waits")


def answered(service: object, call: str, kind: type[Message], request: Message) -> Message | str:
    try:
        response = now(getattr(service, call)(request))
    except NotFound as error:
        return str(error)
    return kind.FromString(response) if isinstance(response, bytes) else response


class Runtime(RuleBasedStateMachine):
    """Every method of the registry that changes something, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.store = Store(self.directory / "pods.db")
        self.registry = Registry(self.store, self.directory)
        self.kept = self.service()
        self.count = 0

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    def service(self) -> RuntimeService:
        """A new one, which has kept nothing."""
        pods = PodManager.__new__(PodManager)
        pods.registry = self.registry
        pods.statistics = pods.metrics = pods.events = pods.streams = None  # type: ignore[assignment]
        return RuntimeService(Config(), pods, None, None)  # type: ignore[arg-type]

    def pod(self, number: int) -> PodEntry | None:
        return next((pod for pod in self.registry.pods() if pod.id == f"{number:064x}"), None)

    def container(self, number: int) -> ContainerEntry | None:
        return next((each for each in self.registry.containers() if each.id == f"{number:064x}"), None)

    def sandbox(self, number: int, phase: SandboxPhase, warm: WarmCt | None = None) -> Sandbox:
        self.count += 1
        metadata = SandboxMetadata(name=f"pod-{number % 2}", namespace="shop", uid="1", attempt=number // 2)
        return replace(
            SANDBOX,
            id=SandboxId(f"{number:064x}"),
            config=replace(SANDBOX.config, metadata=metadata),
            phase=phase,
            created_at=self.count,
            vmid=Vmid(0),
            warm=warm,
            front=None,
        )

    @rule(number=NUMBERS, phase=PHASES)
    def add_pod(self, number: int, phase: SandboxPhase) -> None:
        if self.pod(number) is None and all(each.id != f"{number:064x}" for each in self.registry.warm()):
            self.registry.add_pod(self.sandbox(number, phase))

    @rule(number=NUMBERS, phase=PHASES, ending=st.booleans())
    def save_pod(self, number: int, phase: SandboxPhase, ending: bool) -> None:
        if pod := self.pod(number):
            self.registry.save_pod(
                pod, replace(pod.value, phase=phase, ips=(f"10.0.0.{self.count}",)), ending=ending
            )

    @rule(number=NUMBERS)
    def drop_pod(self, number: int) -> None:
        if pod := self.pod(number):
            self.registry.drop_pod(pod)

    @rule(number=NUMBERS)
    def retire_pod(self, number: int) -> None:
        if (pod := self.pod(number)) and not pod.containers:
            self.registry.retire_pod(pod)
            self.registry.drop_pod(pod)

    @rule(number=NUMBERS)
    def claim_warm(self, number: int) -> None:
        if self.pod(number) is None and not self.registry.warm():
            warm = WarmCt(fingerprint="f", digest="d")
            entry = self.registry.add_warm(self.sandbox(number, SandboxPhase.CREATING, warm))
            try:
                self.registry.claim_warm(entry, self.sandbox(number, SandboxPhase.CREATING))
            except AlreadyExists:
                self.registry.drop_pod(entry)

    @rule(number=NUMBERS, of_pod=NUMBERS, state=STATES)
    def add_container(self, number: int, of_pod: int, state: ContainerState) -> None:
        if self.pod(of_pod) and self.container(number) is None:
            self.count += 1
            value = replace(
                CONTAINER,
                id=ContainerId(f"{number:064x}"),
                sandbox_id=SandboxId(f"{of_pod:064x}"),
                config=replace(CONTAINER.config, metadata=ContainerMetadata(name=f"c{number}")),
                created_at=self.count,
                state=state,
                front=None,
            )
            self.registry.add_container(value)

    @rule(number=NUMBERS, state=STATES)
    def save_container(self, number: int, state: ContainerState) -> None:
        if container := self.container(number):
            self.count += 1
            self.registry.save_container(container, replace(container.value, state=state, exit_code=self.count))

    @rule(number=NUMBERS)
    def drop_container(self, number: int) -> None:
        if container := self.container(number):
            self.registry.drop_container(container)

    @precondition(lambda self: not self.registry.unsaved)
    @rule()
    def restart(self) -> None:
        self.registry = Registry(self.store, self.directory)
        self.registry.load()
        self.kept = self.service()

    @invariant()
    def kept_answers_equal_new_ones(self) -> None:
        anew = self.service()
        for call, kind, requests in REQUESTS:
            for request in requests:
                assert answered(self.kept, call, kind, request) == answered(anew, call, kind, request)


TestRuntime = Runtime.TestCase
TestRuntime.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


class Images(RuleBasedStateMachine):
    """Every method of the catalog that changes something, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.catalog = Catalog((), ())
        self.kept = self.service()

    def service(self) -> ImageService:
        images = ImageManager.__new__(ImageManager)
        images._library = SimpleNamespace(catalog=self.catalog)  # type: ignore[assignment]
        return ImageService(images)

    @rule(number=NUMBERS, tags=st.sets(NUMBERS), digests=st.sets(NUMBERS))
    def put(self, number: int, tags: set[int], digests: set[int]) -> None:
        image = Image(
            id=ImageId(f"sha256:{number:064x}"),
            tags=tuple(f"registry.test/image:{tag}" for tag in tags),
            digests=tuple(f"registry.test/image@sha256:{digest:064x}" for digest in digests),
        )
        self.catalog.put(ImageRecord(image=image, layers=(), manifests=(f"sha256:{number + 8:064x}",)))

    @rule(number=NUMBERS)
    def drop(self, number: int) -> None:
        self.catalog.drop(ImageId(f"sha256:{number:064x}"))

    @rule(pinned=st.sets(NUMBERS))
    def pin(self, pinned: set[int]) -> None:
        self.catalog.pin(f"registry.test/image:{tag}" for tag in pinned)

    @invariant()
    def kept_answers_equal_new_ones(self) -> None:
        anew = self.service()
        names = ["", *(f"registry.test/image:{tag}" for tag in range(3))]
        names += [f"registry.test/image@sha256:{digest:064x}" for digest in range(3)]
        assert len(names) < answers.MOST  # else none would be kept until the next step
        for name in names:
            spec = pb.ImageSpec(image=name)
            listed = pb.ListImagesRequest(filter=pb.ImageFilter(image=spec))
            call = "list_images", pb.ListImagesResponse, listed
            assert answered(self.kept, *call) == answered(anew, *call)
            if name:
                status = "image_status", pb.ImageStatusResponse, pb.ImageStatusRequest(image=spec)
                assert answered(self.kept, *status) == answered(anew, *status)

    @invariant()
    def names_are_found_as_by_a_look_at_every_image(self) -> None:
        records = self.catalog.records.values()
        for number in range(16):
            digest = f"sha256:{number:064x}"
            wanted = {
                each.image.id
                for each in records
                if digest in each.manifests or any(name.endswith(f"@{digest}") for name in each.image.digests)
            }
            found = self.catalog.with_manifest(digest)
            assert (found.image.id in wanted) if found else not wanted


TestImages = Images.TestCase
TestImages.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def test_status_changes_with_its_conditions() -> None:
    machine = Runtime()
    service = machine.kept
    shown: list[Condition] = []
    service._pods.conditions = lambda: _ready(list(shown))  # type: ignore[method-assign]
    service._pods._features = SimpleNamespace(  # type: ignore[assignment]
        oci_runtime=SimpleNamespace(recursive_readonly=True)
    )
    for met in (True, False, True):
        shown[:] = [Condition("RuntimeReady", met)]
        response = pb.StatusResponse.FromString(asyncio.run(service.status(pb.StatusRequest())))  # type: ignore[arg-type]
        assert [each.status for each in response.status.conditions] == [met]
    machine.teardown()


async def _ready(value: list[Condition]) -> list[Condition]:
    return value


def test_answers_are_built_once_for_a_generation_and_a_request() -> None:
    built: list[str] = []
    generation = 0
    kept = Answers(lambda: generation)

    def ask(name: str) -> bytes:
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=name))
        return kept.answer(request, lambda: built.append(name) or f"{name}{len(built)}".encode())  # type: ignore[func-returns-value]

    assert [ask("a"), ask("b"), ask("a")] == [b"a1", b"b2", b"a1"]
    generation += 1
    assert [ask("a"), ask("a")] == [b"a3", b"a3"]


@pytest.mark.parametrize(("size", "number"), [(1, answers.MOST + 1), (answers.LARGEST // 2, 3)])
def test_answers_keep_a_limited_number_of_bytes(size: int, number: int) -> None:
    kept = Answers(lambda: 0)
    for each in range(number):
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=str(each)))
        assert kept.answer(request, lambda: bytes(size)) == bytes(size)
    assert len(kept._known) <= answers.MOST
    assert sum(map(len, kept._known.values())) == kept._bytes <= answers.LARGEST
