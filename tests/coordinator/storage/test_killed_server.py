"""kill -9, again and again, with real processes: the run ends with the same bytes as an undisturbed one."""

import contextlib
import itertools
import random
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from flamest.agent.client import Backoff, CoordinatorClient, StaleUpdate
from flamest.fedproto.records import Evaluation, GlobalModel, Phase, Update

ROUNDS = 24
KILLS = 4
SILOS = ("a", "b", "c")
EXAMPLES = {"a": 31, "b": 7, "c": 190}


def trained(model: GlobalModel, silo: str) -> Update:
    """Stands for local training: the same update for the same round, whenever and however often it is made."""
    noise = np.random.Generator(np.random.PCG64([model.round, *silo.encode()]))
    params = {
        name: (tensor * np.float32(0.9) + noise.standard_normal(tensor.shape).astype(np.float32))
        for name, tensor in model.params.items()
    }
    update_id = f"{model.round:030x}{ord(silo):02x}"
    return Update(model.round, model.sha256, update_id, EXAMPLES[silo], params, Evaluation(1.0, 1, 2))


def take_part(federation, silo: str, address: str, failures: list) -> None:
    """A silo's loop: what agent/daemon.py does, without the training."""
    settings = federation.connection_settings(silo, address=address)
    retry = Backoff(give_up_after_s=20.0, first_s=0.02, longest_s=0.2, spread_s=0.2)
    try:
        with CoordinatorClient.open(settings, retry=retry) as client:
            run, answered = client.join(), 0
            while (status := client.wait(run, answered, 5)).phase is not Phase.FINISHED:
                if status.phase is Phase.OPEN:
                    with contextlib.suppress(StaleUpdate):
                        client.submit(run, trained(client.fetch(run, status), silo))
                    answered = status.round
    except BaseException as error:  # the test's own thread must see it
        failures.append((silo, error))


def start_process(federation) -> subprocess.Popen:
    """A coordinator that listens; its events can be read from ``stderr``."""
    arguments = [sys.executable, "-m", "flamest.coordinator", "run", "--config", str(federation.config), "--once"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert seen(process, "event=listening", times=1)
    return process


def seen(process: subprocess.Popen, event: str, *, times: int) -> bool:
    """Read events until one came so often; False when the process ended before."""
    return sum(1 for _ in itertools.islice((line for line in process.stderr if event in line), times)) == times


def end(process: subprocess.Popen) -> int:
    process.stderr.read()  # or it would block on a full pipe
    process.stderr.close()
    return process.wait(30)


def final_model(federation, rounds: int) -> bytes:
    return (federation.state / "runs" / "run-1" / "models" / f"round-{rounds:06d}.safetensors").read_bytes()


def run_all(federation, address: str, failures: list) -> list[threading.Thread]:
    threads = [threading.Thread(target=take_part, args=(federation, silo, address, failures)) for silo in SILOS]
    for thread in threads:
        thread.start()
    return threads


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(make_federation):
    """4 random instants in 24 rounds."""
    kill_again_and_again(make_federation, ROUNDS, KILLS, seed=7)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_run_killed_at_sixty_random_instants_ends_with_the_same_bytes(make_federation, seed):
    """60 instants in 150 rounds, three times, a head of 64,000 parameters."""
    kill_again_and_again(make_federation, 150, 60, seed=seed, inputs=400, hidden=[160])


def kill_again_and_again(make_federation, rounds: int, kills: int, seed: int, **run) -> None:
    calm = make_federation(*SILOS, rounds=rounds, min_silos=3, **run)
    failures: list = []
    calm.start(once=True)
    for thread in run_all(calm, calm.address, failures):
        thread.join(600)
    calm.join()
    assert failures == []

    harsh = make_federation(*SILOS, rounds=rounds, min_silos=3, **run)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    harsh.config.write_text(harsh.config.read_text().replace("127.0.0.1:0", address))
    chance = random.Random(seed)
    process = start_process(harsh)
    silos = run_all(harsh, address, failures)
    most = 3 * 3 * rounds // (2 * kills) - 3  # some more come in before each blow: so the run lasts for all of them
    for _ in range(kills):
        assert seen(process, "event=update_accepted", times=chance.randint(2, min(most, 12)))
        time.sleep(chance.uniform(0.0, 0.03))
        process.kill()
        end(process)
        process = start_process(harsh)
    assert end(process) == 0
    for thread in silos:
        thread.join(600)
    assert failures == []

    assert final_model(harsh, rounds) == final_model(calm, rounds)
    rows = harsh.rounds()
    assert [row["status"] for row in rows] == ["closed"] * rounds
    assert {row["accepted"] for row in rows} == {3}
    assert {row["examples"] for row in rows} == {sum(EXAMPLES.values())}
    left = [path.name for path in harsh.state.rglob("*") if path.name.endswith((".tmp", ".f32"))]
    assert left == []


def test_sigterm_shuts_down_in_order(make_federation):
    federation = make_federation("a", rounds=2)
    process = start_process(federation)
    process.terminate()
    assert end(process) == 0
    assert not (federation.state / "address").exists()
