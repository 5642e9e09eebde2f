"""T33: what the code that talks to the coordinator could know, and who opens sockets at all."""

import ast
import subprocess
import sys
from pathlib import Path

from flamest.fedproto import flamest_v1_pb2 as pb
from google.protobuf.descriptor import FieldDescriptor

ROOT = Path(__file__).resolve().parents[2]
SENDER = ROOT / "agent" / "client.py"
# What the sender is made of, imports of imports included: nothing that reads video, features, captions or labels.
SENDERS_PARTS = {
    "agent/client.py", "agent/client_errors.py", "agent/retry.py", "base/errors.py", "base/process.py",
    "fedproto/certificates.py", "fedproto/channel.py", "fedproto/tensors.py", "fedproto/codecs.py",
    "fedproto/flamest_v1_pb2.py", "fedproto/head.py", "fedproto/messages/__init__.py", "fedproto/messages/asking.py",
    "fedproto/messages/evaluations.py", "fedproto/messages/models.py", "fedproto/messages/parsing.py",
    "fedproto/messages/updates.py", "fedproto/records.py", "fedproto/tls.py",
}  # fmt: skip
CHILDREN = "base/child_process.py"
NETWORK = {
    "socket", "ssl", "grpc", "http", "urllib", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "telnetlib",
    "xmlrpc", "socketserver", "asyncio",
}  # fmt: skip


def imports(path: Path) -> tuple[set[Path], set[str]]:
    """The files of this package that a file imports, and the names of other packages."""
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            outside.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            folder = path.parents[node.level - 1]
            named = folder.joinpath(*(node.module or "").split("."))
            for target in (named, *(named / name.name for name in node.names)):
                inside |= {file for file in (target.with_suffix(".py"), target / "__init__.py") if file.exists()}
    return {file for file in inside if _holds_code(file)}, outside


def _holds_code(path: Path) -> bool:
    return any(not isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


def used_of(module: str, path: Path) -> set[str]:
    """The attributes of ``module`` that a file uses, where it imports all of it."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module
    }


def reachable(start: Path) -> set[Path]:
    seen, pending = set(), [start]
    while pending:
        path = pending.pop()
        if path not in seen:
            seen.add(path)
            pending += imports(path)[0]
    return seen


def test_t33_no_message_of_a_silo_has_a_text_field():
    """T33: numbers, digests, identifiers and values only."""
    kinds = (
        pb.JoinRequest, pb.WaitRequest, pb.FetchRequest, pb.UpdatePart, pb.UpdateHeader, pb.TensorShape, pb.Evaluation,
        pb.ClassCount, pb.EvaluationReport, pb.SubjectEvaluation,
    )  # fmt: skip
    text = [
        f"{kind.DESCRIPTOR.name}.{field.name}"
        for kind in kinds
        for field in kind.DESCRIPTOR.fields
        if field.type == FieldDescriptor.TYPE_STRING
    ]
    assert text == []
    held = {
        field.name for kind in kinds for field in kind.DESCRIPTOR.fields if field.type == FieldDescriptor.TYPE_BYTES
    }
    assert held == {"settings_sha256", "held_sha256", "base_sha256", "update_id", "payload_sha256", "data", "instance"}


def test_t33_the_sender_is_made_of_nothing_that_knows_a_clip():
    """T33: import graph of the module that talks to the coordinator, type annotations included."""
    assert {str(path.relative_to(ROOT)) for path in reachable(SENDER)} == SENDERS_PARTS


def test_t33_the_import_graph_can_see_a_wrong_import(tmp_path):
    (tmp_path / "agent" / "extraction").mkdir(parents=True)
    (tmp_path / "agent" / "client.py").write_text(
        "def f():\n    from .extraction.store import x\n    from .. import runtime\n"
    )
    (tmp_path / "agent" / "extraction" / "store.py").write_text("from ...runtime.video.decoder import y\n")
    (tmp_path / "runtime" / "video").mkdir(parents=True)
    (tmp_path / "runtime" / "video" / "decoder.py").write_text("z = 1\n")
    found = {path.relative_to(tmp_path).as_posix() for path in reachable(tmp_path / "agent" / "client.py")}
    assert found == {"agent/client.py", "agent/extraction/store.py", "runtime/video/decoder.py"}


def test_t33_two_modules_of_an_agent_know_the_network():
    """T33: the link, and the probe beside it that finds out why a handshake fails.

    patience.py and fedproto's have gRPC's names; child processes talk to their parent over a pair of sockets that no
    address leads to.
    """
    knowing = {
        str(path.relative_to(ROOT)): sorted(imports(path)[1] & NETWORK)
        for room in ("agent", "runtime", "fedproto", "base")
        for path in (ROOT / room).rglob("*.py")
        if imports(path)[1] & NETWORK and "_pb2" not in path.name
    }
    assert knowing == {
        "agent/client.py": ["grpc"],
        "agent/client_errors.py": ["grpc", "socket", "ssl"],
        "agent/retry.py": ["grpc"],
        "fedproto/tls.py": ["grpc"],
        CHILDREN: ["socket"],
    }
    assert used_of("socket", ROOT / CHILDREN) <= {
        "socket",
        "socketpair",
        "send_fds",
        "recv_fds",
    }


WATCHED = """
import sys, traceback
calls = []
def hook(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "subprocess.Popen"):
        frames = [frame.filename for frame in traceback.extract_stack() if "flamest" in frame.filename]
        calls.append((event, frames[-1].split("/")[-1] if frames else "?"))
sys.addaudithook(hook)
from pathlib import Path
from flamest.agent.daemon import run_agent
from flamest.agent.settings import load_agent_settings
from flamest.base.process import Shutdown
run_agent(load_agent_settings(Path(sys.argv[1])), "a", Shutdown(), once=True)
print("calls:", sorted(set(calls)))
"""


def test_t33_a_whole_run_opens_no_socket_but_the_links(canary_federation, home):
    """T33, audit hook: Python opens none at all; gRPC's are its own, opened in the link."""
    canary_federation.start()
    home.settings(canary_federation)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(home.folder / "agent.toml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "calls: []"
