"""Log lines of floods: the first at once, counts afterwards, and a bound on a day whatever varies."""

import logging
import time

import pytest
from flamest.base.event_limiter import BURST_LINES, LINE_S, EventLimiter
from flamest.base.log import LimitedLog, configure_logging
from flamest.base.token_bucket import TokenBucket

DAY_S = 86_400
LINE_BYTES = 1_500  # more than the longest line: a few values of 400 characters


class Lines:
    def __init__(self, **options) -> None:
        self.now, self.lines = 0.0, []
        self.limiter = EventLimiter(
            self.write, bucket=TokenBucket(BURST_LINES, LINE_S), clock=lambda: self.now, **options
        )

    def write(self, level, event, /, **fields) -> None:
        self.lines.append((event, fields))

    def note(self, who="a", code="revoked", **fields) -> None:
        self.limiter.note(logging.WARNING, "caller_refused", who, {"code": code, **fields})


@pytest.fixture
def made():
    lines = Lines()
    yield lines
    if lines.limiter._timer:
        lines.limiter._timer.cancel()


@pytest.fixture
def quiet_loggers():
    yield
    for name in ("flamest", "grpc", "asyncio"):
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).propagate = True


def test_first_event_of_a_kind_is_logged_at_once_and_others_counted(made):
    for _ in range(1000):
        made.note()
    made.note(who="b")
    assert len(made.lines) == 2
    made.now = 301.0
    made.note()
    assert made.lines[2] == ("caller_refused", {"code": "revoked", "repeated": 1000, "in_s": 301})


def test_counts_are_logged_after_the_flood_has_ended():
    lines = Lines(interval_s=0.05)
    lines.limiter._clock = time.monotonic
    for _ in range(10):
        lines.note()
    time.sleep(0.4)
    assert [fields.get("repeated") for _, fields in lines.lines] == [None, 9]
    assert not lines.limiter._kinds


def test_an_event_after_a_quiet_interval_is_logged_at_once_again(made):
    made.note()
    made.now = 1000.0
    made.note()
    made.now = 1301.0
    made.note()
    assert len(made.lines) == 3


@pytest.mark.parametrize("varied", ["nothing", "names", "codes", "details", "names and codes"])
def test_a_day_of_flood_writes_less_than_ten_megabytes(made, varied):
    for step in range(5_000):
        made.now = step * DAY_S / 5_000
        who = f"silo-{step}" if "names" in varied else "a"
        code = f"code-{step}" if "codes" in varied else "revoked"
        made.note(who, code, detail=f"{step}" * 50 if varied == "details" else "x")
    assert len(made.lines) * LINE_BYTES < 10e6
    assert len(made.limiter._kinds) <= 300
    counted = sum(fields.get("repeated", 1) for _, fields in made.lines)
    assert counted + sum(kind.count for kind in made.limiter._kinds.values()) == 5_000


def test_a_clock_that_stands_still_or_goes_back_writes_no_more_lines(made):
    for step in range(1000):
        made.now = -step
        made.note(f"silo-{step}")
    assert len(made.lines) <= 60


def test_a_long_value_is_cut_and_stays_one_printable_line(capsys, quiet_loggers):
    configure_logging()
    LimitedLog("coordinator").warning("x", who="a", detail="\x1b[31m\u202e\nlevel=error " * 10_000)
    line = capsys.readouterr().err
    assert len(line) < 4000
    assert line.count("\n") == 1
    assert line[:-1].isprintable()


@pytest.mark.parametrize("library", ["grpc", "grpc._cython.cygrpc", "asyncio"])
def test_a_library_logs_an_exception_once_without_its_text(capsys, quiet_loggers, library):
    configure_logging()
    for _ in range(100):
        try:
            raise ValueError("text of a caller")
        except ValueError:
            logging.getLogger(library).exception("Unexpected [%s] raised", "ValueError")
    lines = capsys.readouterr().err
    assert lines.count("\n") == 1
    assert "ValueError" in lines
    assert "text of a caller" not in lines
