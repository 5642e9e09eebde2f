"""The program of a worker process with a simulated GPU: ``python -m bench.simulated_worker FD RATE READERS``."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any
from unittest import mock

from flamest.runtime import worker_process
from flamest.runtime.extractor import Extractor, PipelineOptions

from .simulated_gpu import Rates, simulated_extractor

RATE, READERS = float(sys.argv[2]), int(sys.argv[3])


def main() -> None:
    with ExitStack() as stack:

        def simulated(*_: Any, **__: Any) -> Extractor:
            rates = Rates(device=RATE, readers=1.5 * RATE)
            return stack.enter_context(simulated_extractor(rates, PipelineOptions(readers=READERS)))

        with mock.patch.object(worker_process, "open_extractor", simulated):
            worker_process.main()


if __name__ == "__main__":
    main()
