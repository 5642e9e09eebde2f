"""``python -m flamest.fedproto.generate``: writes the Python code of ``flamest_v1.proto`` next to it.

The compiler is an old one, in an environment of its own (``COMPILER``, made by ``make protos``): what it writes runs
with every protobuf from 4 to 7 and demands no version of grpcio. docs/decisions/031-dependency-bounds.md says why.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from ..base.errors import FlamestError, SettingsError
from ..base.files import write_atomic

FOLDER = Path(__file__).resolve().parent
COMPILER = FOLDER.parent / "build" / "protoc" / "bin" / "python"  # has the package of compiler.txt
PROTO = "flamest_v1.proto"
OUTPUTS = ("flamest_v1_pb2.py", "flamest_v1_pb2.pyi", "flamest_v1_pb2_grpc.py")

# protoc writes an absolute import, which would be found only with this folder on sys.path.
ABSOLUTE = "import flamest_v1_pb2 as flamest__v1__pb2"
RELATIVE = "from . import flamest_v1_pb2 as flamest__v1__pb2"


def generated_code(proto: Path = FOLDER / PROTO) -> dict[str, bytes]:
    """Run protoc and the gRPC plugin on ``proto``; return file name -> content.

    Raises SettingsError without the compiler's environment, FlamestError when the .proto does not compile (protoc's
    own message is on stderr).
    """
    if not COMPILER.exists():
        raise SettingsError(f"there is no protobuf compiler in {COMPILER.parents[1]}", fix="make protoc")
    with tempfile.TemporaryDirectory() as out:
        outputs = [f"--{kind}={out}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
        words = ["-I", "-m", "grpc_tools.protoc", f"-I{proto.parent}", *outputs, proto.name]
        if subprocess.run([str(COMPILER), *words], check=False).returncode != 0:
            raise FlamestError(f"{proto} does not compile", fix="read protoc's message above")
        made = {name: (Path(out) / name).read_text() for name in OUTPUTS}
    return {name: text.replace(ABSOLUTE, RELATIVE).encode() for name, text in made.items()}


def main() -> None:
    for name, content in generated_code().items():
        write_atomic(FOLDER / name, content)


if __name__ == "__main__":
    main()
