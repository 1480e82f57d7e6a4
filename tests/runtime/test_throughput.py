import time

from mnv2.runtime.terminal import waiting_for_input
from mnv2.training.progress import Stopwatch, progress


def slow(seconds):
    for _ in range(4):
        time.sleep(seconds)
        yield "batch"


def run(idle):
    stopwatch = Stopwatch(batch_size=8)
    batches = slow(0.01)
    for step in range(1, 5):
        with stopwatch.fetching(idle):
            next(batches)
        stopwatch.stop(step)
        stopwatch.start(step)
    stopwatch.stop(5)
    return stopwatch


def test_waiting_counts_while_the_devices_are_idle_and_the_clock_runs():
    # The first batch comes before the clock is started, and after the last there is nothing.
    assert 0.03 / 0.04 * 0.5 < run(idle=lambda: True).waiting <= 1


def test_a_batch_that_comes_while_the_devices_work_is_not_waited_for():
    assert run(idle=lambda: False).waiting == 0


def test_a_run_that_becomes_slower_is_seen_in_its_latest_rate(monkeypatch):
    clock = iter([0.0, 0.0, 1.0, 1.0, 5.0, 5.0, 6.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    stopwatch = Stopwatch(batch_size=8)
    for first, last, latest in ((0, 2, 16.0), (2, 4, 4.0), (4, 4, 4.0)):  # the last is no step
        stopwatch.start(first)
        stopwatch.stop(last)
        assert stopwatch.latest_images_per_second == latest
    assert stopwatch.images_per_second == 4 * 8 / 6
    assert "all skipped" in str(progress(4, 8, None, stopwatch))


def test_waiting_is_worth_a_word_where_it_is_noticeable():
    assert waiting_for_input(0.31) == "  31% waiting for input"
    assert waiting_for_input(0.01) == ""
