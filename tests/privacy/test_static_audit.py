"""The modules that the client can reach, and the modules that use the network."""

import ast
import subprocess
import sys
from pathlib import Path

from flamest.fedproto import flamest_v1_pb2 as pb
from google.protobuf.descriptor import FieldDescriptor

ROOT = Path(__file__).resolve().parents[2]
# The client may use these packages, but no part of the agent that reads video, features, captions or labels.
CLIENT_PACKAGES = {"agent", "base", "fedproto"}
CLIP_READERS = ("agent/extraction", "agent/training", "agent/tasks.py", "agent/predict.py", "agent/settings.py")
LABELLING = "agent/labelling"  # the page of `flamest-agent label`, which listens on loopback
NAMES = "agent/annotations/video_names.py"  # takes addresses of exported tasks apart
CHILDREN, CHANNEL = "base/child_process.py", "base/channel.py"
NETWORK = {
    "socket", "ssl", "grpc", "http", "urllib", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "telnetlib",
    "xmlrpc", "socketserver", "asyncio",
}  # fmt: skip


def imports(path: Path) -> tuple[set[Path], set[str]]:
    """Return the files of this package that a file imports, and the names of other packages."""
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
    """Return the attributes of ``module`` that a file uses, where it imports all of it."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module
    }


def names_of(module: str, path: Path) -> set[str]:
    """Return the names that a file imports from ``module``."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {name.name for node in nodes if node.module == module for name in node.names}


def reachable(start: Path) -> set[Path]:
    """Return the files that ``start`` imports, imports of imports included."""
    seen, pending = set(), [start]
    while pending:
        path = pending.pop()
        if path not in seen:
            seen.add(path)
            pending += imports(path)[0]
    return seen


def clip_readers_of(client: Path, root: Path) -> set[str]:
    """Return the modules that the client reaches and that could know a clip, type annotations included."""
    reached = {path.relative_to(root) for path in reachable(client)}
    return {
        path.as_posix()
        for path in reached
        if path.parts[0] not in CLIENT_PACKAGES or any(path.is_relative_to(reader) for reader in CLIP_READERS)
    }


def senders(folder: Path) -> set[str]:
    """Return the modules in ``folder`` that call a method with which a client sends an update or an evaluation."""
    methods = {"send_update", "send_evaluation", "submit", "report_evaluation"}
    return {
        path.name
        for path in folder.rglob("*.py")
        if "training" not in path.parts  # its ``submit`` is a thread pool's
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in methods
        if not (isinstance(node.func.value, ast.Attribute) and node.func.value.attr == "_guard")
    }


def test_no_message_of_a_silo_has_a_text_field():
    """Counts, digests, identifiers and parameters only."""
    kinds = (
        pb.JoinRequest, pb.WaitRequest, pb.FetchRequest, pb.UpdatePart, pb.UpdateHeader, pb.TensorShape, pb.Evaluation,
        pb.ClassCount, pb.EvaluationReport, pb.SubjectEvaluation,
    )  # fmt: skip
    fields = [(kind, field) for kind in kinds for field in kind.DESCRIPTOR.fields]
    assert [
        f"{kind.__name__}.{field.name}" for kind, field in fields if field.type == FieldDescriptor.TYPE_STRING
    ] == []
    assert {field.name for _, field in fields if field.type == FieldDescriptor.TYPE_BYTES} == {
        "settings_sha256", "held_sha256", "base_sha256", "update_id", "payload_sha256", "data", "instance",
    }  # fmt: skip


def test_the_client_reaches_no_module_that_reads_clips():
    assert clip_readers_of(ROOT / "agent" / "client.py", ROOT) == set()


def test_the_import_rule_finds_a_client_that_reaches_a_clip_reader(tmp_path):
    for name, text in {
        "agent/client.py": "def f():\n    from .extraction.store import x\n    from .. import runtime\n",
        "agent/extraction/store.py": "from ...runtime.video.decoder import y\n",
        "runtime/video/decoder.py": "z = 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = clip_readers_of(tmp_path / "agent" / "client.py", tmp_path)
    assert found == {"agent/extraction/store.py", "runtime/video/decoder.py"}


def test_only_the_egress_guard_sends_updates_and_evaluations():
    assert senders(ROOT / "agent") == {"client.py", "guard.py"}


def test_the_sending_rule_finds_another_sender(tmp_path):
    (tmp_path / "daemon.py").write_text("def f(client):\n    client.submit(1, 2)\n")
    (tmp_path / "right.py").write_text("def f(self, client):\n    self._guard.send_evaluation(client)\n")
    assert senders(tmp_path) == {"daemon.py"}


def test_only_the_connections_modules_import_network_modules():
    """gRPC in client, retries and error translation; a socket in the probe that explains a failed handshake.

    Child processes talk to their parent over a pair of connected sockets, which have no address. The labelling page has
    one socket, and an event loop; importers take addresses apart.
    """
    page = {path.relative_to(ROOT).as_posix(): imports(path)[1] & NETWORK for path in (ROOT / LABELLING).rglob("*.py")}
    assert [name for name, used in page.items() if used - {"asyncio"}] == [f"{LABELLING}/server.py"]
    assert used_of("socket", ROOT / LABELLING / "server.py") <= {
        "socket", "AF_INET", "SOCK_STREAM", "SOL_SOCKET", "SO_REUSEADDR"
    }  # fmt: skip
    assert names_of("urllib.parse", ROOT / NAMES) == {"parse_qs", "unquote", "urlsplit"}
    found = {
        path.relative_to(ROOT).as_posix(): sorted(imports(path)[1] & NETWORK)
        for package in ("agent", "runtime", "fedproto", "base")
        for path in (ROOT / package).rglob("*.py")
        if imports(path)[1] & NETWORK and "_pb2" not in path.name and ROOT / LABELLING not in path.parents
    }
    assert found == {
        NAMES: ["urllib"],
        "agent/client.py": ["grpc"],
        "agent/client_errors.py": ["grpc"],
        "agent/handshake.py": ["socket", "ssl"],
        "agent/retry.py": ["grpc"],
        "fedproto/tls.py": ["grpc"],
        CHILDREN: ["socket"],
        CHANNEL: ["socket"],
    }
    used = used_of("socket", ROOT / CHILDREN) | used_of("socket", ROOT / CHANNEL)
    assert used <= {"socket", "socketpair", "send_fds", "recv_fds", "MSG_DONTWAIT"}


def test_the_daemon_reaches_no_module_of_the_labelling_page():
    for start in ("daemon.py", "tasks.py", "worker.py", "cli/daemon.py"):
        assert not any(ROOT / LABELLING in path.parents for path in reachable(ROOT / "agent" / start))


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


def test_a_whole_run_opens_no_socket_from_python(canary_federation, home):
    """Watched by an audit hook; gRPC opens the client's connection in its own code."""
    canary_federation.start()
    home.settings(canary_federation)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(home.folder / "agent.toml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "calls: []"
