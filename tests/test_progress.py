import io

import pytest

from hyenadna import progress
from hyenadna.progress import Job, duration, notice, quantity, set_quiet


@pytest.fixture(autouse=True)
def _loud():
    yield
    set_quiet(False)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when told."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (90, "1 min 30 s"),
        (5399, "89 min 59 s"),
        (5400, "1 h 30 min"),
        (4000 * 3, "3 h 20 min"),
        (48 * 3600, "2.0 days"),
        (1e6, "11.6 days"),
    ],
)
def test_duration(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0 "), (999, "999 "), (1000, "1 k"), (27_500, "27.5 k"), (5.8e6, "5.8 M"), (2.5e9, "2.5 G")],
)
def test_quantity(value, said):
    assert quantity(value) == said


def test_lines_where_there_is_no_terminal(clock, capsys):
    job = Job("packing", total=1000, unit="nt")
    clock.now += 10
    job.advance(100, "chr1")
    assert capsys.readouterr().err == ""
    clock.now += 10
    job.advance(100, "chr2")
    assert capsys.readouterr().err == "packing: 20%  chr2  10 nt/s  80 s left\n"
    clock.now += 1
    job.advance(100)
    job.close()
    assert capsys.readouterr().err == ""


def test_the_rate_of_a_resumed_job_is_its_own(clock):
    job = Job("training", total=1000, unit="nt", done=900)
    clock.now += 5
    job.advance(50)
    assert job.rate == pytest.approx(10) and job.done == 950


def test_a_total_that_is_not_known(clock, capsys):
    with progress.progress("reading", 0) as job:
        clock.now += 60
        job.advance(6000)
    assert "100 nt/s" in capsys.readouterr().err


def test_quiet(clock, capsys):
    set_quiet(True)
    notice("something")
    job = Job("packing", total=1000, unit="nt")
    clock.now += 60
    job.advance(1)
    assert capsys.readouterr() == ("", "")
    set_quiet(False)
    notice("something")
    assert capsys.readouterr() == ("", "something\n")


def test_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    job = Job("packing", total=1000, unit="nt")
    job.advance(500, "chr1")
    job.close()
    assert "packing" in terminal.getvalue()
