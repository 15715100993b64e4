# SPDX-License-Identifier: Apache-2.0
"""Runs the checks and prints what they find."""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import AsyncIterator

import msgspec

from pvecri.checks import (
    cni,
    databases,
    executables,
    files,
    fronts,
    kernel,
    kubelet,
    limits,
    node,
    ports,
    space,
    units,
    versions,
)
from pvecri.checks.finding import Finding
from pvecri.config import files as config_files
from pvecri.config.settings import Config, ConfigError, require_account


def run(options: argparse.Namespace) -> int:
    """As command.run."""
    logging.getLogger("pvecri").addHandler(logging.NullHandler())  # what is found is printed, once
    try:
        config = config_files.load(options.config).config
        require_account(config)
    except ConfigError as error:
        if not options.json:
            raise
        findings = [Finding("problem", "configuration", str(error))]
    else:
        findings = [] if options.offline else asyncio.run(find(config, options))
    problems = [each for each in findings if each.level == "problem" or options.strict]
    if options.json:
        print(msgspec.json.encode({"ok": not problems, "findings": findings}).decode())
        return 1 if problems else 0
    for finding in findings:
        print(finding)
    if not problems:
        print(f"{options.config}: OK{_UNCHECKED if options.offline else ''}")
    return 1 if problems else 0


_UNCHECKED = "; Proxmox and this machine were not checked"


async def find(config: Config, options: argparse.Namespace) -> list[Finding]:
    """What the checks find, in their order."""
    return [finding async for finding in _find(config, options)]


async def _find(config: Config, options: argparse.Namespace) -> AsyncIterator[Finding]:
    for each in (*kernel.required(config), *files.required(config), *databases.required(config)):
        yield each
    async for each in executables.required(config):
        yield each
    if options.startup:
        return
    kubelets = options.kubelet_config or kubelet.CONFIG
    pods = kubelet.max_pods(kubelets) or limits.DEFAULT_PODS
    for each in (
        *kernel.used_later(config),
        *files.used_later(config),
        *executables.used_later(config),
        *limits.check(config, pods),
        *ports.check(config),
        *space.check(config),
        *kubelet.check(config, kubelets),
        *fronts.check(config),
        *units.check(),
    ):
        yield each
    async for each in versions.check(config):
        yield each
    async for each in cni.check(config):
        yield each
    async for each in node.check(config):
        yield each
