"""Random work of several threads on a GPU of Python: results are right, work on the same bytes is in order."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
from flamest.runtime.backends.element_types import ElementType
from flamest.runtime.backends.row_moves import moves_of, put_rows
from flamest.runtime.backends.tensorrt.cuda_device import CudaDevice
from flamest.runtime.backends.tensorrt.session_memory import SessionMemory

FLOATS = ElementType.of("float32")
WIDTHS = (10, 6000, 40_000)  # numbers of a row; arrays go up on both ways
WIDTH, ROWS = 6000, 4


@pytest.fixture
def cuda(fake_cuda):
    return fake_cuda.FakeCuda(limit=64 << 20)


class Doubling:
    """A session that doubles its input, by a captured graph once it has seen the addresses."""

    def __init__(self, device, cuda):
        self.memory = SessionMemory(device, "doubling", {"x": FLOATS}, {"y": FLOATS})
        self.cuda, self.graphs, self.seen = cuda, {}, set()

    def run(self, of, into):
        memory = self.memory
        with memory.lock:
            memory.device.calls.use()
            ready = memory.ready({"x": of})
            inputs = memory.bind_inputs(ready)
            outputs = memory.bind_outputs({"y": tuple(ready["x"].shape)}, into, inputs)
            self._launch((inputs["x"].block.pointer, outputs["y"].pointer, outputs["y"].nbytes))
            memory.finish(inputs.values(), outputs.values())
        return outputs["y"]

    def _launch(self, key):
        source, target, size = key

        def double():
            self.cuda.write(target, (np.frombuffer(self.cuda.read(source, size), np.float32) * 2).tobytes())

        def enqueue():
            self.cuda.put(self.memory.stream.handle, double, reads=[(source, size)], writes=[(target, size)])

        if key in self.graphs:
            self.memory.device.launch(self.graphs[key], self.memory.stream)
            return
        enqueue()
        if key in self.seen and len(self.graphs) < 20:
            self.graphs[key] = self.memory.device.capture(self.memory.stream, enqueue)
            assert self.graphs[key] is not None
        self.seen.add(key)


class Worker:
    """One thread's work: values and rows, each with what it should hold."""

    def __init__(self, device, sessions, seed):
        self.device, self.sessions, self.rng = device, sessions, random.Random(seed)
        self.held = []
        memory = sessions[seed % len(sessions)].memory
        self.rows, self.out = memory.rows("x", (ROWS, WIDTH)), memory.rows("x", (ROWS, WIDTH))
        self.shadow = np.zeros((ROWS, WIDTH), np.float32)

    def any_session(self):
        return self.rng.choice(self.sessions)

    def value(self):
        array = np.full((self.rng.randint(1, 3), self.rng.choice(WIDTHS)), self.rng.random(), np.float32)
        self.held.append((self.any_session().memory.value(array, None, "a value"), array))

    def run(self):
        if self.held:
            value, array = self.rng.choice(self.held)
            self.held.append((self.any_session().run(value, {}), array * 2))

    def put(self):
        fitting = [pair for pair in self.held if pair[1].shape[1] == WIDTH]
        if fitting:
            value, array = self.rng.choice(fitting)
            row, index = self.rng.randrange(ROWS), self.rng.randrange(len(array))
            self.rows.put(row, value, index)
            self.shadow[row] = array[index]

    def clear(self):
        row = self.rng.randrange(ROWS)
        self.rows.clear(row)
        self.shadow[row] = 0

    def copy(self):
        row, source = self.rng.randrange(ROWS), self.rng.randrange(ROWS)
        self.rows.copy(row, source)
        self.shadow[row] = self.shadow[source]

    def put_several(self):
        fitting = [pair for pair in self.held if pair[1].shape[1] == WIDTH]
        if fitting:
            value, array = self.rng.choice(fitting)
            places = sorted(self.rng.sample(range(ROWS), len(array)))
            put_rows({"x": self.rows}, {"x": value}, moves_of(zip(places, range(len(array)), strict=True)))
            self.shadow[places] = array

    def run_rows(self):
        into = {"y": self.out} if self.rng.random() < 0.5 else {}
        np.testing.assert_array_equal(self.any_session().run(self.rows.first(3), into).numpy(), self.shadow[:3] * 2)

    def check(self):
        if self.held:
            value, array = self.held.pop(self.rng.randrange(len(self.held)))
            np.testing.assert_array_equal(value.numpy(), array)

    def trim(self):
        self.device.memory.trim()

    def work(self, steps):
        usual = [self.value, self.run, self.put, self.put_several, self.clear, self.copy, self.run_rows, self.check]
        for step in range(steps):
            (self.trim if step % 60 == 59 else self.rng.choice(usual))()
            del self.held[:-5]


@pytest.mark.parametrize("seed", [0, 4])
def test_random_work_of_four_threads_is_right_and_in_order(cuda, seed):
    device = CudaDevice(cuda)
    sessions = [Doubling(device, cuda) for _ in range(3)]
    failures = []

    def work(number):
        try:
            Worker(device, sessions, number).work(250)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed + number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert "cudaGraphLaunch" in cuda.calls
    cuda.finish()
