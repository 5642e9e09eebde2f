"""Identity, hostile messages and network faults over real gRPC, mutual TLS and loopback. `soak`: full size."""

import contextlib
import dataclasses
import datetime
import os
import random
import resource
import socket
import ssl
import threading
import time

import grpc
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flamest.agent.client import Backoff, ConnectionSettings, CoordinatorClient
from flamest.agent.client_errors import refusal_code
from flamest.base.errors import FlamestError, IdentityError
from flamest.base.files import sha256_bytes
from flamest.coordinator.admin import authority
from flamest.coordinator.serving import upload as upload_module
from flamest.experiments.faults import Fault, FaultProxy
from flamest.fedproto import calls, certificates, messages
from flamest.fedproto import flamest_v1_pb2 as pb
from flamest.fedproto.head import initial_params
from flamest.fedproto.records import Update
from flamest.fedproto.tensors import chunks, encode_params, payload_bytes, shapes
from flamest.fedproto.tls import channel_credentials

JOIN = messages.encode_join_request(1)


def open_channel(settings: ConnectionSettings, **changed: int) -> grpc.Channel:
    options = [(key, changed.get(key.removeprefix("grpc."), value)) for key, value in calls.client_options()]
    return grpc.secure_channel(settings.address, channel_credentials(settings.files), options=options)


def ask(channel: grpc.Channel, method: str, request: bytes, **options) -> bytes:
    return channel.unary_unary(calls.method_path(method), None, None)(request, timeout=60, **options)


def upload(channel: grpc.Channel, parts, **options) -> bytes:
    call = channel.stream_unary(calls.method_path(calls.SUBMIT_UPDATE), None, None)
    return call(iter(parts), timeout=60, **options)


def refused(call, *arguments, **options) -> tuple[str, str | None]:
    with pytest.raises(grpc.RpcError) as error:
        call(*arguments, **options)
    return error.value.code().name, refusal_code(error.value)


def update_parts(
    run, status, *, seed: int = 1, update_id: str = "ab" * 16, piece: int = calls.CHUNK_BYTES
) -> list[bytes]:
    payload = encode_params(run.head, initial_params(run.head, seed))
    header = messages.UpdateHeader(
        settings_sha256=run.sha256,
        round=status.round,
        base_sha256=status.model_sha256,
        update_id=update_id,
        examples=9,
        shapes=shapes(run.head),
        payload_bytes=len(payload),
        payload_sha256=sha256_bytes(payload),
        evaluation=None,
    )
    return [messages.encode_update_header(header), *map(messages.encode_update_data, chunks(payload, piece))]


def one_round(
    federation, name: str, answered: int, *, address: str | None = None, give_up_after_s: float = 60.0
) -> None:
    """A silo's round from joining to the receipt."""
    settings = federation.connection_settings(name, address=address)
    with CoordinatorClient.open(
        settings, retry=Backoff(give_up_after_s=give_up_after_s, first_s=0.02, longest_s=0.2, spread_s=0.2)
    ) as client:
        run = client.join()
        status = client.wait(run, answered, 20)
        model = client.fetch(run, status)
        params = initial_params(run.head, status.round)
        client.submit(run, Update(status.round, model.sha256, sha256_bytes(bytes([answered % 256]))[:32], 5, params))


@pytest.fixture
def federation(make_federation):
    federation = make_federation("a", "b", rounds=3, min_silos=2)
    federation.start()
    return federation


@pytest.fixture
def joined(federation):
    """A channel of silo a, its run and the open round."""
    with federation.client("a") as client:
        run = client.join()
        status = client.wait(run, 0, 5)
    channel = open_channel(federation.connection_settings("a"))
    yield channel, run, status
    channel.close()


@pytest.fixture
def handled(monkeypatch):
    """The names of the silos whose calls reached a handler."""
    names, check = [], authority.AllowList.check

    def watched(self, name, sha256):
        check(self, name, sha256)
        names.append(name)

    monkeypatch.setattr(authority.AllowList, "check", watched)
    return names


# --- identity ---


def authority_of(folder) -> certificates.Identity:
    return certificates.Identity(key=(folder / "ca-key.pem").read_bytes(), certificate=(folder / "ca.pem").read_bytes())


def outsider(federation, folder, certificate: bytes, key: bytes, ca: bytes | None = None) -> ConnectionSettings:
    folder.mkdir()
    for name, content in (
        ("ca.pem", ca or (federation.folder / "ca.pem").read_bytes()),
        ("c.pem", certificate),
        ("c.key", key),
    ):
        (folder / name).write_bytes(content)
    return ConnectionSettings(federation.address, folder / "ca.pem", folder / "c.pem", folder / "c.key")


def issued(ours, names: list[str], *, begins_h: float = -1.0, ends_h: float = 24.0) -> tuple[bytes, bytes]:
    """A client certificate of the authority with any names and dates, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    signer = x509.load_pem_x509_certificate(ours.certificate)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(signer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(hours=begins_h))
        .not_valid_after(now + datetime.timedelta(hours=ends_h))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name) for name in names]), critical=True
        )
        .sign(certificates.load_key(ours.key, "ca"), hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.public_bytes(Encoding.PEM), pem


NAME_A = "spiffe://flamest/silo/a"


@pytest.mark.parametrize(
    ("case", "status"),
    [
        ("none", "UNAVAILABLE"),
        ("other authority", "UNAVAILABLE"),
        ("expired", "UNAVAILABLE"),
        ("not yet valid", "UNAVAILABLE"),
        ("no silo's name", "UNAUTHENTICATED"),
        ("two names", "UNAUTHENTICATED"),
        ("the server's", "UNAVAILABLE or UNAUTHENTICATED"),
        ("revoked", "PERMISSION_DENIED"),
        ("of an earlier enrolment", "PERMISSION_DENIED"),
    ],
)
def test_certificate_of_no_enrolled_silo_reaches_no_handler(federation, handled, tmp_path, case, status):
    ours, fed = authority_of(federation.folder), federation.folder
    made = {
        "other authority": lambda: issued(certificates.make_authority(), [NAME_A]),
        "expired": lambda: issued(ours, [NAME_A], begins_h=-3, ends_h=-1),
        "not yet valid": lambda: issued(ours, [NAME_A], begins_h=1),
        "no silo's name": lambda: issued(ours, ["https://a"]),
        "two names": lambda: issued(ours, [NAME_A, "spiffe://flamest/silo/b"]),
        "the server's": lambda: ((fed / "server.pem").read_bytes(), (fed / "server-key.pem").read_bytes()),
        "of an earlier enrolment": lambda: issued(ours, [NAME_A]),
    }
    if case == "none":
        credentials = grpc.ssl_channel_credentials((fed / "ca.pem").read_bytes())
    elif case == "revoked":
        credentials = channel_credentials(federation.connection_settings("a").files)
        authority.revoke_silo(fed, "a")
    else:
        credentials = channel_credentials(outsider(federation, tmp_path / "x", *made[case]()).files)
    with grpc.secure_channel(federation.address, credentials, options=calls.client_options()) as channel:
        assert refused(ask, channel, calls.JOIN, JOIN)[0] in status
    assert handled == []


def test_silo_that_trusts_another_authority_exits_with_77(federation, handled, tmp_path):
    known = federation.connection_settings("a")
    other = certificates.make_authority()
    key, request = certificates.make_silo_request("a")
    settings = outsider(federation, tmp_path / "x", certificates.sign_silo(other, "a", request), key, other.certificate)
    with CoordinatorClient.open(
        settings, retry=Backoff(give_up_after_s=10.0, first_s=0.02, longest_s=0.1, spread_s=0.2)
    ) as client:
        with pytest.raises(IdentityError, match="is not trusted") as error:
            client.join()
    assert error.value.exit_code == 77
    assert handled == []
    assert known.ca.read_bytes() != settings.ca.read_bytes()


def test_certificate_that_expires_on_an_open_connection_is_refused_next_call(federation, tmp_path):
    ours = authority_of(federation.folder)
    certificate, key = issued(ours, [NAME_A], ends_h=4 / 3600)
    silos = authority.read_silos(federation.folder / "silos.json").silos
    facts = sha256_bytes(x509.load_pem_x509_certificate(certificate).public_bytes(Encoding.DER))
    silos["a"] = authority.Enrolment(facts, silos["a"].added, silos["a"].expires)
    authority.write_silos(federation.folder / "silos.json", authority.Silos(silos))
    ends = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    with open_channel(outsider(federation, tmp_path / "x", certificate, key)) as channel:
        ask(channel, calls.JOIN, JOIN)
        time.sleep(max((ends - datetime.datetime.now(datetime.UTC)).total_seconds(), 0) + 1.1)
        assert refused(ask, channel, calls.JOIN, JOIN) == ("UNAUTHENTICATED", "expired")


def served_serial(address: str) -> int:
    pem = ssl.get_server_certificate(tuple(address.rsplit(":", 1)))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def test_renewed_server_certificate_needs_no_restart_and_loses_no_call(federation, joined):
    """A reload under load: new handshakes get the new certificate, open connections continue."""
    channel, *_ = joined
    answers, failures, over = [], [], threading.Event()

    def load() -> None:
        while not over.wait(0.01):  # below the rate of a silo's calls
            try:
                answers.append(ask(channel, calls.JOIN, JOIN))
            except grpc.RpcError as error:
                failures.append(error)

    loading = threading.Thread(target=load)
    loading.start()
    before = served_serial(federation.address)
    authority.renew_server(federation.folder, [])
    federation._shutdown.request_reload()  # what SIGHUP does
    until = time.monotonic() + 20
    while served_serial(federation.address) == before and time.monotonic() < until:
        time.sleep(0.1)
    after = served_serial(federation.address)
    (federation.folder / "server.pem").write_bytes(b"no certificate")
    federation._shutdown.request_reload()
    time.sleep(1.0)
    assert served_serial(federation.address) == after != before  # files that cannot be used change nothing
    over.set()
    loading.join()
    assert failures == []
    assert answers


def test_renewed_silo_may_use_both_certificates_until_revoked(federation, joined, tmp_path):
    """Open connections survive the renewal; `silo revoke` refuses calls of both certificates."""
    status, *_ = joined
    settings = federation.connection_settings("a")
    kept = outsider(federation, tmp_path / "old", settings.certificate.read_bytes(), settings.key.read_bytes())
    authority.renew_enrolment(federation.folder, "a", None)
    assert kept.certificate.read_bytes() != settings.certificate.read_bytes()
    with open_channel(kept) as old, open_channel(settings) as new:
        for channel in (status, old, new):
            ask(channel, calls.JOIN, JOIN)
        authority.revoke_silo(federation.folder, "a")
        for channel in (status, old, new):
            assert refused(ask, channel, calls.JOIN, JOIN) == ("PERMISSION_DENIED", "revoked")


def test_silo_name_comes_from_its_certificate_whatever_headers_claim(federation, joined):
    """Headers and user agent of silo b with the certificate of silo a."""
    channel, run, status = joined
    claims = [("silo", "b"), ("x-silo-id", "b"), ("spiffe", "spiffe://flamest/silo/b"), ("authorization", "Bearer b")]
    upload(channel, update_parts(run, status), metadata=claims)
    stored = {path.stem for path in (federation.state / "runs" / "run-1" / "updates").rglob("*.f32")}
    assert stored == {"a"}


def test_two_agents_of_one_identity_have_one_update_a_round(federation, joined):
    channel, run, status = joined
    with open_channel(federation.connection_settings("a")) as twin:
        upload(channel, update_parts(run, status, seed=1, update_id="0a" * 16))
        answer = refused(upload, twin, update_parts(run, status, seed=2, update_id="0b" * 16))
    assert answer == ("ALREADY_EXISTS", "already_answered")
    assert federation.rounds()[0]["accepted"] == 1


# --- hostile messages and slow connections ---


def mutated(good: bytes, rng: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        kind, place = rng.randrange(4), rng.randrange(len(data) or 1)
        if kind == 0 and data:
            data[place] = rng.randrange(256)
        elif kind == 1:
            data[place:place] = rng.randbytes(rng.randint(1, 6))
        elif kind == 2:
            del data[place : place + rng.randint(1, 6)]
        else:
            data += data[place : place + 20]
    return bytes(data)


def mutate_headers(joined, federation, times: int) -> set[str]:
    channel, run, status = joined
    header, *data = update_parts(run, status)
    rng, answer = random.Random(5), set()
    for _ in range(times):
        try:
            upload(channel, [mutated(header, rng), *data])
            answer.add("accepted")
        except grpc.RpcError as error:
            answer.add(error.code().name)
    return answer


KNOWN = {"accepted", "INVALID_ARGUMENT", "DATA_LOSS", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ALREADY_EXISTS"}


def test_mutated_messages_are_refused_with_a_named_status(federation, joined):
    """Never INTERNAL or UNKNOWN, and the server continues; the soak test sends 10,000."""
    assert mutate_headers(joined, federation, 60) <= KNOWN
    assert federation.rounds()[0]["accepted"] <= 1
    one_round(federation, "b", 0)


@pytest.mark.soak
def test_ten_thousand_mutated_messages_are_refused_in_bounded_memory(federation, joined):
    """The memory is that of this process, client and server."""
    mutate_headers(joined, federation, 200)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert mutate_headers(joined, federation, 10_000) <= KNOWN
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10  # KiB


def test_oversized_messages_are_refused_and_an_honest_silo_is_served(federation, joined):
    """A message of 16 MiB, plain and compressed, a million fields, metadata, a thousand streams."""
    channel, run, status = joined
    header = update_parts(run, status)[0]
    with open_channel(federation.connection_settings("a"), max_send_message_length=-1) as big:
        zeros = messages.encode_update_data(bytes(16 << 20))
        assert refused(upload, big, [header, zeros])[0] == "RESOURCE_EXHAUSTED"
        answer = refused(upload, big, [header, zeros], compression=grpc.Compression.Gzip)
        assert answer[0] == "RESOURCE_EXHAUSTED"
    many = pb.UpdatePart(header=pb.UpdateHeader(tensors=[pb.TensorShape()] * 1_000_000)).SerializeToString()
    assert refused(upload, channel, [many]) == ("INVALID_ARGUMENT", "malformed")
    with open_channel(federation.connection_settings("b")) as other:
        answer = refused(ask, other, calls.JOIN, JOIN, metadata=[("x", "y" * (64 << 10))])
        assert answer[0] in ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL")  # gRPC's own, before any handler
    with open_channel(federation.connection_settings("b")) as busy:
        request = messages.encode_wait_request(messages.WaitRequest(run.sha256, 9, 30.0))
        waiting = busy.unary_unary(calls.method_path(calls.WAIT_FOR_ROUND), None, None)
        waits = [waiting.future(request, timeout=60) for _ in range(1000)]
        before = time.monotonic()
        one_round(federation, "a", 0)
        assert time.monotonic() - before < 30  # with a thousand streams, of which 8 are let in
        for call in waits:
            call.cancel()


def test_idle_and_slow_connections_are_cut_during_an_honest_round(make_federation, monkeypatch):
    """60 idle sockets, 10 of them in a handshake with a limit of 1 s, and 2 slow bodies."""
    monkeypatch.setattr(calls, "HANDSHAKE_MS", 1000)
    monkeypatch.setattr(upload_module, "PART_S", 0.5)
    monkeypatch.setattr(calls, "transfer_s", lambda _: 2.0)
    federation = make_federation("a", "b", rounds=3, min_silos=1)
    federation.start()
    host, port = federation.address.split(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(60)]
    for each in idle[:10]:
        each.sendall(b"\x16\x03\x01\x02")  # the beginning of a handshake
    with federation.client("a") as client:
        run = client.join()
        status = client.wait(run, 0, 5)
    header = update_parts(run, status)[0]

    def slow():
        yield header
        for _ in range(600):
            time.sleep(0.1)
            yield messages.encode_update_data(b"x")

    with open_channel(federation.connection_settings("b")) as channel:
        call = channel.stream_unary(calls.method_path(calls.SUBMIT_UPDATE), None, None)
        bodies = [call.future(slow(), timeout=60) for _ in range(2)]
        one_round(federation, "a", 0)
        assert federation.rounds()[0]["accepted"] == 1
        for body in bodies:
            assert body.exception(timeout=60).code().name == "DEADLINE_EXCEEDED"
    for each in idle:
        each.settimeout(11.0)
        with contextlib.suppress(ConnectionResetError):
            while each.recv(4096):
                pass
        each.close()


@pytest.mark.parametrize("number", [2, 2**63 - 1, 2**63, 2**64 - 1])
def test_an_update_of_a_round_beyond_every_number_is_stale(joined, number):
    """SQLite has no integers beyond 2^63."""
    channel, run, status = joined
    header = messages.decode_update_part(update_parts(run, status)[0])
    parts = [messages.encode_update_header(dataclasses.replace(header, round=number))]
    assert refused(upload, channel, parts) == ("FAILED_PRECONDITION", "stale_round")


# --- network faults ---


def rounds_through_faults(make_federation, buckets: int, kinds: tuple[str, ...]) -> int:
    """A round per fault: cut, reset, delay and duplicate at places spread over the upload and the download."""
    faults = [
        (kind, direction, bucket)
        for bucket in range(buckets)
        for direction in ("up", "down")
        for kind in (kinds if buckets > 8 else (kinds[bucket % len(kinds)],))
    ]
    federation = make_federation("a", rounds=len(faults) + 1, min_silos=1, hidden=[900, 8], deadline_s=600.0)
    federation.start()
    size = 4 * (6 * 900 + 900 + 900 * 8 + 8 + 8 * 3 + 3)
    struck = 0
    for number, (kind, direction, bucket) in enumerate(faults):
        with FaultProxy(federation.address) as proxy:
            proxy.arm(Fault(kind, direction, 3000 + bucket * size // buckets, seconds=0.05))
            one_round(federation, "a", number, address=proxy.address)
            struck += proxy.struck
    with federation.client("a") as client:
        assert client.wait(client.join(), len(faults), 20).round == len(faults) + 1
    rows = federation.rounds()
    assert [row["status"] for row in rows[:-1]] == ["closed"] * len(faults)
    assert {row["accepted"] for row in rows[:-1]} == {1}
    return struck


KINDS = ("cut", "reset", "delay", "duplicate")


def read_to_the_end(end: socket.socket) -> None:
    while end.recv(100):
        pass


def test_a_reset_reaches_an_end_that_only_waits():
    """Closing a socket that a thread reads sends nothing until the other end does."""
    with socket.create_server(("127.0.0.1", 0)) as target:
        with FaultProxy(f"127.0.0.1:{target.getsockname()[1]}") as proxy:
            proxy.arm(Fault("reset", "down", 10))
            host, port = proxy.address.split(":")
            with socket.create_connection((host, int(port)), 5.0) as near, target.accept()[0] as far:
                far.settimeout(5.0)
                far.sendall(bytes(20))
                for end in (near, far):
                    with pytest.raises(ConnectionResetError):
                        read_to_the_end(end)


def test_rounds_close_through_network_faults_and_updates_count_once(make_federation):
    """8 places of upload and download, each with one of the four faults."""
    assert rounds_through_faults(make_federation, 8, KINDS) >= 14


@pytest.mark.soak
def test_every_network_fault_at_every_place(make_federation):
    """64 places, both directions, four faults."""
    assert rounds_through_faults(make_federation, 64, KINDS) >= 480


# --- services that are visible from outside ---


def health(channel: grpc.Channel, request: bytes = b"") -> bytes:
    return channel.unary_unary("/grpc.health.v1.Health/Check", None, None)(request, timeout=10)


def test_server_offers_two_services_and_nothing_else(federation, joined):
    """The coordinator's calls and the health check; no reflection, no channelz."""
    channel, *_ = joined
    assert health(channel) == b"\x08\x01"
    assert (
        health(channel, b"\x0a\x16flamest.v1.Coordinator"[:1] + bytes([22]) + b"flamest.v1.Coordinator") == b"\x08\x01"
    )
    assert refused(health, channel, b"\x0a\x01x")[0] == "NOT_FOUND"
    for path in (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.channelz.v1.Channelz/GetServers",
        "/grpc.health.v1.Health/Watch",
        "/flamest.v1.Coordinator/Shutdown",
    ):
        assert refused(channel.unary_unary(path, None, None), b"")[0] == "UNIMPLEMENTED"
    root = (federation.folder / "ca.pem").read_bytes()
    with grpc.secure_channel(federation.address, grpc.ssl_channel_credentials(root)) as stranger:
        assert refused(health, stranger)[0] == "UNAVAILABLE"


def test_silo_client_listens_on_nothing(federation):
    def listening() -> set[tuple]:
        found = psutil.Process(os.getpid()).net_connections("inet")
        return {each.laddr for each in found if each.status == psutil.CONN_LISTEN}

    before = listening()
    with federation.client("a") as client:
        client.wait(client.join(), 0, 5)
        assert listening() == before
    assert len(before) == 1  # the coordinator's port, in this process


def test_round_closes_over_a_slow_connection(make_federation):
    """80 ms and 8 Mbit/s; bench/slow_line.py measures the time."""
    federation = make_federation("a", rounds=2, min_silos=1, hidden=[900, 8])
    federation.start()
    with FaultProxy(federation.address, bytes_per_s=1e6, delay_s=0.04) as proxy:
        one_round(federation, "a", 0, address=proxy.address)
        with federation.client("a") as client:
            size = payload_bytes(client.join().head)
        assert min(proxy.passed.values()) > size
    assert federation.rounds()[0]["accepted"] == 1


def test_network_errors_are_flamest_errors(federation):
    with FaultProxy(federation.address) as proxy:
        proxy.arm(Fault("cut", "up", 1))
        settings = federation.connection_settings("a", address=proxy.address)
    with CoordinatorClient.open(
        settings, retry=Backoff(give_up_after_s=0.3, first_s=0.05, longest_s=0.1, spread_s=0.1)
    ) as client:
        with pytest.raises(FlamestError):
            client.join()
