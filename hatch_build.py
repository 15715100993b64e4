"""Build hook: generates the protobuf code of the CRI, which is built and never committed."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTO_DIR = "src/pvecri/cri/proto"


def generate(root: Path) -> None:
    """Write cri_pb2.py, cri_pb2.pyi and cri_pb2_grpc.py beside ROOT/src/pvecri/cri/proto/cri.proto."""
    from grpc_tools import protoc

    source = root / "src"
    arguments = [
        "protoc",
        f"--proto_path={source}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--python_out={source}",
        f"--pyi_out={source}",
        f"--grpc_python_out={source}",
        str(root / PROTO_DIR / "cri.proto"),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"protoc failed on {PROTO_DIR}/cri.proto")


class CriProtoHook(BuildHookInterface[Any]):
    """Hatchling calls this for wheels and for editable installs alike."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate the code before hatchling collects the files."""
        generate(Path(self.root))


if __name__ == "__main__":
    generate(Path(__file__).resolve().parent)
    sys.exit(0)
