"""A silo as a small process for tests that stop or kill one: the agent's client, and untrained updates.

``python light_silo.py ADDRESS CA CERTIFICATE KEY THINK_S``: takes part until the run is over; prints ``got N`` when
it has round N's model, sleeps ``THINK_S`` seconds, and prints ``sent N``, or ``refused N CODE``.
"""

import sys
import time
from pathlib import Path

from flamest.agent.client import Backoff, ConnectionSettings, CoordinatorClient, StaleUpdate
from flamest.fedproto.head import initial_params
from flamest.fedproto.records import Phase, Update


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main(address: str, ca: str, certificate: str, key: str, think_s: float) -> None:
    settings = ConnectionSettings(address, Path(ca), Path(certificate), Path(key))
    with CoordinatorClient.open(settings, retry=Backoff(first_s=0.05, longest_s=0.5, spread_s=0.5)) as client:
        run, answered = client.join(), 0
        while (status := client.wait(run, answered, 20.0)).phase is not Phase.FINISHED:
            if status.phase is not Phase.OPEN:
                time.sleep(status.poll_after_s)
                continue
            model = client.fetch(run, status)
            say("got", status.round)
            time.sleep(think_s)
            params = initial_params(run.head, status.round)
            try:
                client.submit(run, Update(status.round, model.sha256, f"{status.round:032x}", 5, params))
                say("sent", status.round)
            except StaleUpdate as stale:
                say("refused", status.round, stale.code)
            answered = status.round


if __name__ == "__main__":
    main(*sys.argv[1:5], float(sys.argv[5]))
