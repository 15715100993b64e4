# SPDX-License-Identifier: Apache-2.0
"""Build hook: generates the protobuf code of the CRI and of NRI, which is built and never committed."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CRI = "src/pvecri/cri/proto/cri.proto"
HEALTH = "src/pvecri/cri/proto/health.proto"
NRI = ("src/pvecri/nri/proto/nri.proto", "src/pvecri/nri/proto/ttrpc.proto")


def generate(root: Path) -> None:
    """Write the modules and their stubs beside the .proto files below ROOT; gRPC's stubs for the CRI alone."""
    source = root / "src"
    _protoc(root, f"--grpc_python_out={source}", CRI)
    _protoc(root, HEALTH, *NRI)


def _protoc(root: Path, *arguments: str) -> None:
    from grpc_tools import protoc

    source = root / "src"
    command = ["protoc", f"--proto_path={source}", f"--proto_path={files('grpc_tools') / '_proto'}"]
    command += [f"--python_out={source}", f"--pyi_out={source}"]
    command += [str(root / each) if each.endswith(".proto") else each for each in arguments]
    if protoc.main(command) != 0:
        raise RuntimeError(f"protoc failed on {' '.join(arguments)}")


class ProtoHook(BuildHookInterface[Any]):
    """Hatchling calls this for wheels and for editable installs alike."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate the code before hatchling collects the files."""
        generate(Path(self.root))


if __name__ == "__main__":
    generate(Path(__file__).resolve().parent)
    sys.exit(0)
