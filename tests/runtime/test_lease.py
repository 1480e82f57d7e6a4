import threading
import time

import pytest

from mnv2.runtime import files, lease, storage
from mnv2.runtime.errors import Held


@pytest.fixture
def folder(bucket, request, monkeypatch):
    monkeypatch.setattr(lease, "RENEW", 0.05)
    monkeypatch.setattr(lease, "EXPIRY", 0.5)
    return storage.as_path(f"{bucket}/{request.node.name}")


def leave_a_lease(folder):
    """As a process that was killed."""
    lease._replace(folder / ".lock", "of another process", "0")


def test_a_folder_in_a_bucket_has_one_writer_and_says_who(folder):
    with files.sole_writer(folder):
        assert files.holder(folder).startswith("process ")
        with pytest.raises(Held, match="process "), files.sole_writer(folder):
            raise AssertionError
        time.sleep(0.6)  # it is renewed
        assert files.holder(folder)
    assert files.holder(folder) is None
    assert not (folder / ".lock").exists()


def test_a_lease_that_a_killed_process_left_expires(folder, capsys):
    leave_a_lease(folder)
    assert files.holder(folder)
    began = time.monotonic()
    with files.sole_writer(folder):
        assert time.monotonic() - began > 0.5
    said = capsys.readouterr().err
    assert said.startswith("note: process ")
    assert said.endswith("or was killed there: waiting 0 s for a sign of life\n")


def test_a_lease_that_is_given_back_meanwhile_is_taken_at_once(folder, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRY", 60)
    leave_a_lease(folder)
    timer = threading.Timer(0.2, (folder / ".lock").unlink)
    timer.start()
    with files.sole_writer(folder):
        assert files.holder(folder)


def test_of_several_processes_that_find_the_same_lease_one_gets_it(folder):
    leave_a_lease(folder)
    got, refused = [], []

    def take():
        try:
            with files.sole_writer(folder):
                got.append(1)
                time.sleep(1)
        except Held:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 3)


def test_a_process_that_lost_its_lease_ends(folder, monkeypatch):
    left = threading.Event()
    monkeypatch.setattr(lease, "_leave", lambda message: left.set())
    with files.sole_writer(folder):
        current = lease._seen(folder / ".lock")
        storage.write(folder / ".lock", lease.json.dumps(
            {"process": "process 1 on other", "token": "theirs", "written": current.written}
        ).encode())  # fmt: skip
        assert left.wait(5)
    assert files.holder(folder) == "process 1 on other"  # theirs is left to them


def test_a_process_that_cannot_renew_its_lease_ends_before_another_may_take_it(folder, monkeypatch):
    messages, ended = [], threading.Event()

    def failing(*_):
        raise TimeoutError

    def leave(message):
        messages.append((message, time.monotonic()))
        ended.set()

    monkeypatch.setattr(lease, "_leave", leave)
    with files.sole_writer(folder):
        monkeypatch.setattr(lease, "PATIENCE", 0.2)
        began = time.monotonic()
        monkeypatch.setattr(lease, "_replace", failing)
        assert ended.wait(5)
    assert messages[0][0].startswith(f"cannot renew {folder}/.lock: TimeoutError")
    assert messages[0][1] - began > 0.1


def test_a_renewal_whose_answer_was_lost_is_no_loss(folder, monkeypatch):
    replace, lost = lease._replace, []

    def without_an_answer(path, token, generation):
        written = replace(path, token, generation)
        if generation != "0" and not lost:
            lost.append(written)
            raise TimeoutError
        return written

    left = []
    monkeypatch.setattr(lease, "_leave", left.append)
    monkeypatch.setattr(lease, "_replace", without_an_answer)
    with files.sole_writer(folder):
        time.sleep(0.5)
        assert lost
        assert files.holder(folder)
    assert not left
