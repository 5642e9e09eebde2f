"""``python -m flamest.fedproto.generate``: writes the Python code of ``flamest_v1.proto`` next to it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..base.errors import FlamestError, MissingExtra
from ..base.files import write_atomic

FOLDER = Path(__file__).resolve().parent
PROTO = "flamest_v1.proto"
OUTPUTS = ("flamest_v1_pb2.py", "flamest_v1_pb2.pyi", "flamest_v1_pb2_grpc.py")

# protoc writes an absolute import, which would be found only with this folder on sys.path.
ABSOLUTE = "import flamest_v1_pb2 as flamest__v1__pb2"
RELATIVE = "from . import flamest_v1_pb2 as flamest__v1__pb2"


def generated_code(proto: Path = FOLDER / PROTO) -> dict[str, bytes]:
    """Run protoc and the gRPC plugin on ``proto``; return file name -> content.

    Raises MissingExtra without grpcio-tools, FlamestError when the .proto does not compile (protoc's
    own message is on stderr).
    """
    try:
        import grpc_tools
        from grpc_tools import protoc
    except ImportError as error:
        raise MissingExtra("grpcio-tools", extra="dev") from error
    bundled = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as out:
        outputs = [f"--{kind}={out}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
        arguments = ["protoc", f"-I{proto.parent}", f"-I{bundled}", *outputs, proto.name]
        if protoc.main(arguments) != 0:
            raise FlamestError(f"{proto} does not compile", fix="read protoc's message above")
        made = {name: (Path(out) / name).read_text() for name in OUTPUTS}
    return {name: text.replace(ABSOLUTE, RELATIVE).encode() for name, text in made.items()}


def main() -> None:
    for name, content in generated_code().items():
        write_atomic(FOLDER / name, content)


if __name__ == "__main__":
    main()
