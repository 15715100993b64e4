# SPDX-License-Identifier: Apache-2.0
"""Programs that the daemon runs."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec

from pvecri.checks.finding import Finding
from pvecri.config.settings import Config, ConfigError
from pvecri.linux import cgroups
from pvecri.oci import features

SUBJECT = "programs"

RECURSIVE_READONLY = "is too old for recursive read-only mounts, which the kubelet then refuses"
HAVE_FEATURES = "install runc 1.1 or crun 1.8.6, or later"
"""The first versions with the command `features`, which shows what they support."""


async def required(config: Config) -> AsyncIterator[Finding]:
    """Those without which the daemon does not start."""
    try:
        runtime = await features.find_oci_runtime(config, cgroups.detect())
    except ConfigError as error:
        yield Finding("problem", SUBJECT, str(error), "install runc or crun")
    else:
        if not runtime.recursive_readonly:
            version = ".".join(map(str, runtime.version))
            yield Finding("warning", SUBJECT, f"{runtime.path} {version} {RECURSIVE_READONLY}", HAVE_FEATURES)
    if config.tracing.endpoint and find_spec("opentelemetry") is None:
        missing = "tracing.endpoint: the Python packages for traces are not installed"
        yield Finding("problem", SUBJECT, missing, "pip install '.[tracing]'")
    if shutil.which(config.runtime.conmon) is None:
        missing = f"runtime.conmon: the program {config.runtime.conmon!r} is not installed"
        yield Finding("problem", SUBJECT, missing, "install conmon")


def used_later(config: Config) -> Iterator[Finding]:
    """Those that pulls need."""
    if shutil.which(config.images.skopeo) is None:
        missing = f"images.skopeo: the program {config.images.skopeo!r} is not installed"
        yield Finding("problem", SUBJECT, missing, "install skopeo")
