"""New certificate files of a running agent: used if valid, ignored otherwise; a warning before the end."""

import datetime
import json
import os
import time

import msgspec
import pytest
from flamest.agent import renewal
from flamest.agent.cli.main import app
from flamest.agent.client import Backoff, ConnectionSettings, CoordinatorClient
from flamest.agent.egress.guard import EgressGuard
from flamest.agent.egress.ledger import read_ledger
from flamest.agent.egress.pending_update import PendingUpdate
from flamest.agent.egress.policy import Policy
from flamest.agent.identity import make_request
from flamest.agent.renewal import Renewal
from flamest.agent.status import AgentStatus, write_status
from flamest.base.errors import IdentityError
from flamest.coordinator.admin import authority
from flamest.fedproto import tls
from flamest.fedproto.certificates import Identity, make_authority, make_silo_request, sign_silo
from flamest.fedproto.head import initial_params
from flamest.fedproto.records import Update
from flamest.fedproto.tls import certificate_info
from typer.testing import CliRunner

OFTEN = Backoff(give_up_after_s=2.0, first_s=0.02, longest_s=0.1, spread_s=0.2)


@pytest.fixture
def federation(make_federation):
    federation = make_federation("a", "b", rounds=3, min_silos=2)
    federation.start()
    return federation


class Silo:
    """Silo a with files of its own, its client and its certificate's renewal."""

    def __init__(self, federation, folder) -> None:
        self.federation, self.state = federation, folder / "state"
        self.state.mkdir(parents=True)
        given = federation.connection_settings("a")
        self.settings = ConnectionSettings(given.address, folder / "ca.pem", folder / "silo.pem", folder / "a.key")
        for source, target in zip(given.files.__dict__.values(), self.settings.files.__dict__.values(), strict=True):
            replace(target, source.read_bytes())
        self.guard = EgressGuard.open(self.state, Policy(), "a", self.settings)
        self.client = CoordinatorClient.open(self.settings, retry=OFTEN)
        self.renewal = Renewal(self.client, self.guard)

    def renewed(self) -> str:
        """A new certificate made on the coordinator and put in place here; its hash."""
        entry = authority.renew_enrolment(self.federation.folder, "a", None)
        replace(self.settings.certificate, (self.federation.folder / "silos" / "a" / "silo.pem").read_bytes())
        return entry.certificate_sha256

    def shown(self) -> list[str]:
        return [entry.sha256 for entry in read_ledger(self.state).of("enrolment")]


def replace(path, content: bytes) -> None:
    new = path.with_name("new")
    new.write_bytes(content)
    os.replace(new, path)


@pytest.fixture
def silo(federation, tmp_path):
    silo = Silo(federation, tmp_path / "a")
    yield silo
    silo.client.close()


@pytest.fixture
def seen(monkeypatch):
    """The certificate that the coordinator was shown, call by call."""
    hashes, check = [], authority.AllowList.check

    def watched(self, name, sha256):
        hashes.append(sha256)
        check(self, name, sha256)

    monkeypatch.setattr(authority.AllowList, "check", watched)
    return hashes


def test_a_renewed_certificate_is_shown_from_the_next_call_on(silo, seen):
    run = silo.client.join()
    task = silo.client.wait(run, 0, 5)
    model = silo.client.fetch(run, task)
    old = silo.client.certificate.sha256
    assert not silo.renewal.reload()
    new = silo.renewed()
    sent = silo.client.sent_bytes
    assert silo.renewal.reload()
    assert not silo.renewal.reload()
    assert silo.client.sent_bytes > sent  # asking over the new one is counted
    update_id = silo.guard.update_id(run, 1, model.sha256)
    update = Update(1, model.sha256, update_id, 300, initial_params(run.head, 1))
    pending = PendingUpdate(run.sha256, silo.guard.policy.sha256, 300, None, update)
    receipt = silo.guard.send(silo.client, run, pending)
    assert receipt.round == 1
    assert seen == [old] * 3 + [new] * 2
    assert len(silo.shown()) == 2


def test_a_request_reads_unchanged_files_again(silo, seen):
    silo.client.join()
    assert silo.renewal.reload(requested=True)
    assert len(set(seen)) == 1
    assert len(silo.shown()) == 1


def authority_of(federation) -> Identity:
    key, certificate = (federation.folder / name for name in ("ca-key.pem", "ca.pem"))
    return Identity(key=key.read_bytes(), certificate=certificate.read_bytes())


def bad_files(silo, case: str) -> str:
    """Put invalid files in place; returns the expected error code."""
    files, ours = silo.settings.files, authority_of(silo.federation)
    key, request = make_silo_request("a")
    if case == "half a file":
        replace(files.certificate, files.certificate.read_bytes()[:100])
        return "bad_certificate"
    if case == "gone":
        files.certificate.unlink()
        return "settings"
    if case == "of another key":
        replace(files.certificate, sign_silo(ours, "a", request))
        return "key_mismatch"
    if case == "ended":
        replace(files.key, key)
        replace(files.certificate, sign_silo(ours, "a", request, days=-0.01))
        return "expired"
    if case == "of another silo":
        key, request = make_silo_request("b")
        replace(files.key, key)
        replace(files.certificate, sign_silo(ours, "b", request))
        return "other_silo"
    if case == "not enrolled":
        replace(files.key, key)
        replace(files.certificate, sign_silo(ours, "a", request))
        return "old_certificate"
    theirs = make_authority()
    for path, content in zip(
        (files.ca, files.certificate, files.key),
        (theirs.certificate, sign_silo(theirs, "a", request), key),
        strict=True,
    ):
        replace(path, content)
    return "server_certificate"


@pytest.mark.parametrize(
    "case",
    ["half a file", "gone", "of another key", "ended", "of another silo", "not enrolled", "of another authority"],
)
def test_invalid_files_change_nothing_and_are_not_tried_again(silo, case, monkeypatch):
    run = silo.client.join()
    good = {path: path.read_bytes() for path in silo.settings.files.__dict__.values()}
    logged = []
    monkeypatch.setattr(renewal.log, "error", lambda event, **fields: logged.append((event, fields["code"])))
    code = bad_files(silo, case)
    assert not silo.renewal.reload()
    assert not silo.renewal.reload()
    assert logged == [("certificate_reload_failed", code)]
    assert silo.renewal.problem.startswith(f"{code}: ")
    assert silo.client.wait(run, 0, 5).round == 1
    assert not silo.renewal.reload(requested=True)  # a person requests it: they are
    assert len(logged) == 2
    for path, content in good.items():
        replace(path, content)
    assert silo.renewal.reload()
    assert silo.renewal.problem == ""
    assert silo.client.wait(run, 0, 5).round == 1


def test_invalid_files_do_not_keep_a_client_from_a_coordinator_that_returns(silo):
    """The client keeps the files that it read."""
    federation = silo.federation
    federation.config.write_text(federation.config.read_text().replace("127.0.0.1:0", federation.address))
    silo.client.join()
    bad_files(silo, "of another authority")
    federation.stop()
    federation.start()
    silo.client.reconnect()
    assert silo.client.join().run == "run-1"


def with_days(federation, folder, days: float) -> ConnectionSettings:
    """Silo a with a certificate that ends that soon."""
    made = make_request("a", folder)
    certificate = sign_silo(authority_of(federation), "a", made.csr_path.read_bytes(), days=days)
    (folder / "silo.pem").write_bytes(certificate)
    silos = authority.read_silos(federation.folder / "silos.json").silos
    silos["a"] = msgspec.structs.replace(silos["a"], certificate_sha256=certificate_info(certificate, whose="a").sha256)
    (federation.folder / "silos.json").write_bytes(msgspec.json.encode(authority.Silos(silos)))
    return ConnectionSettings(federation.address, federation.folder / "ca.pem", folder / "silo.pem", made.key_path)


@pytest.mark.parametrize(("days", "warned"), [(31, 0), (29, 1)])
def test_a_warning_before_the_end_at_start_and_once_a_day(federation, tmp_path, monkeypatch, days, warned):
    settings = with_days(federation, tmp_path / "x", days)
    logged, now = [], [1000.0]
    monkeypatch.setattr(renewal.log, "warning", lambda event, **fields: logged.append((event, fields)))
    monkeypatch.setattr(renewal.time, "monotonic", lambda: now[0])
    with CoordinatorClient.open(settings, retry=OFTEN) as client:
        state = tmp_path / "state"
        state.mkdir()
        watched = Renewal(client, EgressGuard.open(state, Policy(), "a", settings))
        assert len(logged) == warned
        for _ in range(3):
            now[0] += 28_000.0
            watched.warn_daily()
        assert len(logged) == warned
        now[0] += 28_000.0
        watched.warn_daily()
    assert len(logged) == 2 * warned
    for event, fields in logged:
        assert (event, fields["days"]) == ("certificate_expires", days)
        assert "flamest-coordinator silo renew a" in fields["fix"]


def test_an_expired_certificate_is_named_whatever_replaced_its_file(silo, monkeypatch):
    """A failed handshake gives no reason; the client knows when the certificate in use has ended."""
    client = silo.client
    client.join()
    bad_files(silo, "half a file")
    silo.federation.stop()
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=366)
    monkeypatch.setattr(tls, "utc_now", lambda: later)
    with pytest.raises(IdentityError, match="expired on") as error:
        client.join()
    assert error.value.code == "expired"
    assert "silo renew" in error.value.fix


@pytest.mark.parametrize(("days", "asks"), [(200, False), (12, True)])
def test_status_shows_when_the_certificate_ends(tmp_path, days, asks):
    (tmp_path / "state").mkdir()
    (tmp_path / "agent.toml").write_text(
        'state = "state"\nstore = "s"\n[coordinator]\naddress = "h:1"\nca = "c"\ncertificate = "c"\nkey = "k"\n'
    )
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + days * 86400 + 600))
    write_status(tmp_path / "state", AgentStatus(silo="a", certificate_expires=ends, certificate_problem="expired: x"))
    words = ["status", "--config", str(tmp_path / "agent.toml")]
    output = CliRunner().invoke(app, words).output
    assert f"certificate: until {ends[:10]}, {days} days left" in output
    assert ("flamest-coordinator silo renew a" in output) is asks
    assert "not in use: expired: x" in output
    logged = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout.splitlines()[-1])
    assert (logged["certificate_expires"], round(logged["certificate_days"])) == (ends, days)
    write_status(tmp_path / "state", AgentStatus(silo="a"))
    assert "certificate" not in CliRunner().invoke(app, words).output
