# SPDX-License-Identifier: Apache-2.0
"""CreateContainer: a root filesystem and an OCI spec, built from the request, the image and the pod."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from pvecri.concurrency import finish, in_own_thread
from pvecri.config.settings import Config
from pvecri.errors import FailedPrecondition, InvalidArgument, NotFound
from pvecri.images.manager import ImageManager
from pvecri.linux import mounts
from pvecri.model import (
    Container,
    ContainerConfig,
    ContainerId,
    ContainerState,
    ContainerUser,
    Image,
    ImageId,
    NamespaceMode,
    UserNamespaceReason,
)
from pvecri.oci import capabilities, cdi, devices, seccomp, spec, users
from pvecri.oci.devices import HostDevice
from pvecri.oci.features import HostFeatures
from pvecri.oci.plan import BindSource, Plan
from pvecri.pods import files, user_namespaces, validation
from pvecri.pods.container import adjustments, bundle, declared_volumes, kernel_directories, volumes
from pvecri.pods.container.pause import Pauses
from pvecri.pods.hooks import Hooks
from pvecri.pods.registry import ContainerEntry, PodEntry, Registry, refuse_front
from pvecri.pods.sandbox.stop import SandboxTeardown

log = logging.getLogger(__name__)


class IdsMissing(FailedPrecondition):
    """A container needs IDs that its pod's user namespace lacks. `movable` if the pod's next one can have them."""

    def __init__(self, ids: tuple[int, ...], *, movable: bool) -> None:
        what_next = (
            "the pod was stopped, and its next sandbox has them (at once if the pod's securityContext names them)"
            if movable
            else "the client chose its IDs (hostUsers: false)"
        )
        shown = ", ".join(map(str, ids[:10])) + (", …" if len(ids) > 10 else "")
        super().__init__(f"the container needs the IDs {shown}, which the pod's user namespace lacks: {what_next}")
        self.ids = ids
        self.movable = movable


@dataclasses.dataclass(frozen=True)
class Sources:
    """The files of the node that a request names. `owners` are the binds' if the pod has a user namespace."""

    binds: tuple[BindSource, ...]
    devices: tuple[HostDevice, ...]
    owners: set[int]


class ContainerCreator:
    """Creates containers; any number at once."""

    def __init__(
        self,
        config: Config,
        features: HostFeatures,
        registry: Registry,
        images: ImageManager,
        pauses: Pauses,
        teardown: SandboxTeardown,
        hooks: Hooks,
    ) -> None:
        self._config = config
        self._features = features
        self._registry = registry
        self._images = images
        self._pauses = pauses
        self._teardown = teardown
        self._hooks = hooks

    async def create(self, pod: PodEntry, config: ContainerConfig) -> ContainerId:
        """Create a container in a READY sandbox (CRI CreateContainer): its root filesystem and its OCI spec.

        InvalidArgument names a bad field, NotFound the image, AlreadyExists a name that is taken;
        FailedPrecondition an image that would lead the OCI runtime to the node's files. IdsMissing for
        IDs that the pod's user namespace lacks; if that of its next sandbox can have them, the pod is stopped. If
        a step fails or the call is cancelled, the steps before it are undone.
        """
        refuse_front(pod.value.front, f"pod sandbox {pod.id}")
        validation.check_container(config, pod.value.config)
        image = self._images.find(config.image)
        if image is None:
            raise NotFound(f"config.image.image: image {config.image!r} is not in the store; pull it first")
        if image.artifact_type:
            name = config.user_specified_image or config.image
            problem = (
                f"is an OCI artifact ({image.artifact_type}); it can be a volume, but not a container's image"
            )
            raise InvalidArgument("config.image.image", f"{name!r} {problem}")
        container = self._registry.add_container(_new_container(pod, config, image))
        try:
            async with container.lock, AsyncExitStack() as undo:
                undo.callback(self._registry.drop_container, container)
                if shares_pids(pod, config):
                    await self._pauses.share_pids(pod)
                rootfs = await self._prepare_rootfs(pod, container.id, container.value.image_id, undo)
                image_volumes = await self._prepare_image_volumes(pod, container, undo)
                sources = await in_own_thread(partial(_resolve_sources, pod, container, image_volumes))
                undo.callback(bundle.remove_bundle, container.bundle)
                target = self._target_pid(pod, config.security.namespaces.target_id)
                plan = await finish(
                    asyncio.to_thread(self._make_bundle, pod, container, image, rootfs, sources, target)
                )
                container.value = replace(container.value, user=plan.user)
                self._check_ids(pod, container, plan.user, sources.owners)
                await finish(asyncio.to_thread(_write, container, plan))
                await self._adjust(pod, container, plan, undo)
                self._registry.save_container(container, container.value)
                undo.pop_all()
                # After the undos are dropped: the container exists, and no plugin can refuse it any more.
                await self._hooks.created_container(pod, container)
        except IdsMissing as error:
            if error.movable:
                log.warning("pod %s: %s", pod.value.name, error)
                # A mapping can be written only once: another sandbox has to have the IDs (decision 0066).
                await self._teardown.stop_for_missing_ids(pod, error.ids)
            raise
        return container.id

    async def _prepare_rootfs(self, pod: PodEntry, name: str, image: ImageId, undo: AsyncExitStack) -> Path:
        undo.push_async_callback(self._images.remove_rootfs, name)
        owner = pod.value.root_uid
        return await self._images.prepare_rootfs(
            name, image, userns=bundle.userns(pod), root_uid=owner, root_gid=owner
        )

    async def _prepare_image_volumes(
        self, pod: PodEntry, container: ContainerEntry, undo: AsyncExitStack
    ) -> dict[int, Path]:
        """Mount the image of each image volume like a root filesystem; returns the paths by the mount's index."""
        prepared: dict[int, Path] = {}
        config = container.value.config
        resolved = list(config.mounts)
        for index, mount in enumerate(config.mounts):
            if not mount.image:
                continue
            image = self._images.find(mount.image)
            if image is None:
                problem = f"{volumes.IMAGE_VOLUME_FAILED}: image {mount.image!r} is not in the store"
                raise NotFound(f"config.mounts[{index}].image.image: {problem}")
            name = bundle.image_volume_name(container.id, index)
            prepared[index] = await self._prepare_rootfs(pod, name, image.id, undo)
            # The reference may mean another image later.
            resolved[index] = replace(mount, image_ref=image.id)
        container.value = replace(container.value, config=replace(config, mounts=tuple(resolved)))
        return prepared

    def _make_bundle(
        self,
        pod: PodEntry,
        container: ContainerEntry,
        image: Image,
        rootfs: Path,
        sources: Sources,
        target_pid: int | None,
    ) -> Plan:
        """Create the bundle, and in the root filesystem the volumes that the image declares. Blocks."""
        kernel_directories.check(rootfs, container.value.image_reference, self._features.oci_runtime)
        files.make_private_directory(container.bundle.directory, pod.value.root_uid)
        container.bundle.spec.touch(mode=0o600)  # its environment may contain secrets
        declared = declared_volumes.make(container.value.config, image.config.volumes, rootfs, pod.value.root_uid)
        plan = self._plan(pod, container, image, rootfs, sources, target_pid)
        return dataclasses.replace(plan, binds=(*plan.binds, *declared))

    def _check_ids(
        self, pod: PodEntry, container: ContainerEntry, user: ContainerUser, source_owners: set[int]
    ) -> None:
        """IdsMissing if the pod's user namespace lacks an ID of the container's user or of one of its files.

        `source_owners` are those of the sources of its mounts.
        """
        mappings, decision = pod.value.mappings, pod.value.user_namespace
        if not mappings:  # the node's user namespace has all IDs
            return
        of_process = user_namespaces.missing(user, mappings)
        config = container.value.config
        images = [container.value.image_id, *(ImageId(each.image_ref) for each in config.mounts if each.image)]
        owners = source_owners.union(*(self._images.file_owners(each) for each in images))
        of_files = user_namespaces.unmapped(owners, mappings)
        movable = decision.reason is not UserNamespaceReason.KUBELET_MAPPING
        wanted = {*of_process, *of_files}
        # For files alone the container is refused only if another user namespace can have their IDs.
        if of_files and (not movable or len(decision.extra_ids) + len(wanted) > user_namespaces.EXTRA_IDS_MAX):
            log.info("container %s: files of IDs %s appear as nobody's in the pod", container.id, of_files[:10])
            wanted = {*of_process}
        if wanted:
            raise IdsMissing(tuple(sorted(wanted)), movable=movable)

    async def _adjust(self, pod: PodEntry, container: ContainerEntry, plan: Plan, undo: AsyncExitStack) -> None:
        """Apply the changes that NRI plugins make to the finished spec."""
        # Pushed before: some plugins may have been notified of the container before another one refuses it.
        undo.push_async_callback(self._hooks.remove_container, pod, container)
        adjustment = await self._hooks.create_container(pod, container)
        if adjustment is None:
            return
        staging = bundle.staging(container) if plan.mappings else None
        directories = self._config.runtime.cdi_spec_dirs
        changed = await in_own_thread(partial(adjustments.adjusted, plan, adjustment, staging, directories))
        container.value = replace(
            container.value,
            config=changed.config,
            added_sources=adjustments.sources(adjustment) if staging else (),
        )
        await finish(asyncio.to_thread(_write, container, changed))

    def _plan(
        self,
        pod: PodEntry,
        container: ContainerEntry,
        image: Image,
        rootfs: Path,
        sources: Sources,
        target_pid: int | None,
    ) -> Plan:
        config = container.value.config
        security = config.security
        granted = capabilities.granted(
            security.capabilities, privileged=security.privileged, available=self._features.capabilities
        )
        edits = cdi.find(config.cdi_devices, self._config.runtime.cdi_spec_dirs)
        return Plan(
            id=container.id,
            sandbox_id=pod.id,
            cgroup=pod.cgroups.container(container.id),
            config=config,
            sandbox=pod.value.config,
            image=image.config,
            image_reference=container.value.image_reference,
            rootfs=rootfs,
            user=users.resolve(security, image.config.user, rootfs),
            binds=sources.binds,
            devices=tuple(
                {each.container_path: each for each in (*sources.devices, *cdi.devices(edits))}.values()
            ),
            device_nodes=bundle.device_nodes(container.bundle),
            pod_files=pod.files,
            pod_files_restrictions=mounts.restrictions(pod.files),
            hostname=files.hostname(pod.value),
            mappings=pod.value.mappings,
            namespace_dir=str(pod.directory / "ns"),
            target_pid=target_pid,
            capabilities=granted,
            seccomp=seccomp.for_container(
                security.seccomp,
                default=self._config.runtime.seccomp_profile,
                capabilities=granted,
                privileged=security.privileged,
            ),
            features=self._features,
            pids_limit=self._config.runtime.pids_limit,
            edits=edits,
        )

    def _target_pid(self, pod: PodEntry, target_id: str) -> int | None:
        """The first process of the container whose PID namespace is shared, by its PID in the CT."""
        if not target_id:
            return None
        field = "config.linux.security_context.namespace_options.target_id"
        target = next((each for each in pod.containers.values() if each.id.startswith(target_id)), None)
        if target is None or target.value.state is not ContainerState.RUNNING:
            raise InvalidArgument(field, f"no container {target_id!r} runs in the pod")
        # conmon writes the pid file in the CT's PID namespace, where the OCI runtime reads /proc too.
        return int(target.bundle.pid_file.read_text())


def _new_container(pod: PodEntry, config: ContainerConfig, image: Image) -> Container:
    log_path = str(Path(pod.value.config.log_directory, config.log_path)) if config.log_path else ""
    return Container(
        id=ContainerId(secrets.token_hex(32)),
        sandbox_id=pod.id,
        config=config,
        image_id=image.id,
        # A kubelet shows it as the container's imageID.
        image_reference=next(iter((*image.digests, *image.tags)), image.id),
        image_name=next(iter(image.tags), config.user_specified_image or config.image),
        created_at=time.time_ns(),
        log_path=log_path,
        stop_signal=config.stop_signal or image.config.stop_signal or "SIGTERM",
    )


def _resolve_sources(pod: PodEntry, container: ContainerEntry, image_volumes: dict[int, Path]) -> Sources:
    """Blocks, for ever if a path of the request is on a filesystem whose server is gone."""
    config, mapped = container.value.config, bool(pod.value.mappings)
    return Sources(
        binds=volumes.resolve_binds(config, bundle.staging(container), image_volumes, mapped=mapped),
        devices=volumes.resolve_devices(config),
        owners=volumes.source_owners(config) if mapped else set(),
    )


def shares_pids(pod: PodEntry, config: ContainerConfig) -> bool:
    """Whether a container joins the PID namespace that the pod's containers share."""
    modes = config.security.namespaces.pid, pod.value.config.security.namespaces.pid
    return modes[0] is NamespaceMode.POD and modes[1] is not NamespaceMode.NODE


def _write(container: ContainerEntry, plan: Plan) -> None:
    """Write a container's OCI spec and create its device nodes, replacing those of an earlier plan."""
    bundle.remove_device_nodes(container.bundle)
    # mknod(2) of a device is refused in a user namespace, so the nodes are made here (decision 0052).
    if plan.mappings and plan.devices:
        devices.make_nodes(plan.device_nodes, plan.devices, plan.mappings)
    container.bundle.spec.write_bytes(spec.build(plan))
