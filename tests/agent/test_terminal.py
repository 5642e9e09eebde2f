"""Names from elsewhere are escaped on an administrator's terminal."""

from pathlib import Path

import grpc
import pytest
from flamest.agent import predict as prediction
from flamest.agent.answers import LabelProbability
from flamest.agent.cli.main import app
from flamest.agent.client_errors import permanent_error
from flamest.agent.predict import Prediction
from flamest.agent.status import LOCK_FILE, AgentStatus, write_status
from flamest.base.files import FileLock
from typer.testing import CliRunner

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\nerror: forged\u202e"
ESCAPED = r"\x1b]0;owned\x07\x1b[2J\r\nerror: forged\u202e"


def printed(*words) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert all(line.isprintable() for line in done.output.split("\n"))
    assert not any(line.startswith("error:") for line in done.output.split("\n"))
    return done.output


def test_status_escapes_the_runs_name_and_every_detail(tmp_path):
    (tmp_path / "agent.toml").write_text("""
state = "."
store = "features.sqlite"
[coordinator]
address = "host:7443"
ca = "ca.pem"
certificate = "silo.pem"
key = "silo.key"
""")
    reported = {"detail": HOSTILE, "code": HOSTILE, "extraction": HOSTILE, "run": HOSTILE, "adopted_why": HOSTILE}
    write_status(tmp_path, AgentStatus(**reported, adopted="own", backends={HOSTILE: HOSTILE}))
    with FileLock.take(tmp_path / LOCK_FILE, owner="flamest-agent"):  # otherwise status ends with 69
        assert printed("status", "--config", tmp_path / "agent.toml").count(ESCAPED) == 7
        assert "\x1b" not in printed("status", "--config", tmp_path / "agent.toml", "--json")


def test_predict_escapes_labels_captions_and_file_names(tmp_path, monkeypatch):
    clip = Path(f"{HOSTILE.replace('/', '')}\udcff.mp4")
    reported = [
        Prediction(clip, (LabelProbability(HOSTILE, 0.9),), HOSTILE),
        Prediction(clip, reason=HOSTILE),
    ]
    monkeypatch.setattr(prediction, "predict_videos", lambda *_, **__: iter(reported))
    words = ["predict", "x.mp4", "--bundle", tmp_path, "--model", tmp_path / "m.safetensors"]
    output = printed(*words)
    assert output.count(ESCAPED) == 5
    assert "\\udcff.mp4" in output
    printed(*words, "--json")


@pytest.mark.parametrize("status", [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT])
def test_the_coordinators_message_becomes_one_printable_line(status):
    """Escaped where it comes in: it goes on into status.json and the log."""

    class Failed(grpc.RpcError):
        def code(self):
            return status

        def details(self):
            return HOSTILE

        def trailing_metadata(self):
            return ()

    problem = permanent_error(Failed(), "host:7443")
    assert ESCAPED in problem.message
    assert problem.message.isprintable()
