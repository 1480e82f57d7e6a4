"""Files in a bucket of Google Cloud Storage, which an emulator serves."""

import pickle
import subprocess
import sys

import pytest

from mnv2.runtime import files
from mnv2.runtime.errors import Held, UserError, is_store_error


@pytest.fixture
def folder(bucket, request):
    """A folder in a bucket, which only this test has."""
    return files.given_folder(f"{bucket}/{request.node.name.partition('[')[0]}", "--workdir")


def test_files_in_a_bucket_are_replaced_read_and_listed_as_others(folder):
    files.write_json(folder / "a/0/result.json", {"a": 1})
    files.write_json(folder / "a/0/result.json", {"a": 2})
    files.write_text(folder / "a/1/result.json", "ä")
    files.write_text(folder / "lines.jsonl", '{"step": 1}\n{"step": 2}\n{"ste')
    assert files.read_json(folder / "a/0/result.json", "") == {"a": 2}
    assert files.read_lines(folder / "lines.jsonl") == [{"step": 1}, {"step": 2}]
    assert files.read_lines(folder / "none.jsonl") == []
    assert [str(path) for path in files.matches(folder / "a", "*/result.json")] == [
        f"{folder}/a/0/result.json",
        f"{folder}/a/1/result.json",
    ]
    with pytest.raises(UserError, match=r"cannot read gs://.*/none.json: .*; do this"):
        files.read_json(folder / "none.json", "do this")
    with pytest.raises(UserError, match=r"gs://.*/a/1/result.json is damaged .*: do this"):
        files.read_json(folder / "a/1/result.json", "do this")


def test_what_fails_while_it_is_written_leaves_the_file_as_it_was(folder):
    def fail():
        with files.replacing(folder / "report.png") as unfinished:
            unfinished.write_text("half of the ne")
            raise ValueError("no")

    files.write_text(folder / "report.png", "old")
    with pytest.raises(ValueError, match="no"):
        fail()
    assert (folder / "report.png").read_text() == "old"


def test_an_address_stays_an_address(folder, tmp_path):
    assert str(files.absolute(folder)) == str(folder)
    assert files.absolute(tmp_path) == tmp_path


def test_a_process_that_gets_a_path_uses_it_as_the_one_that_made_it(folder):
    files.write_text(folder / "file", "here")
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read_text())"
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(folder / "file"), capture_output=True
    )
    assert done.stdout == b"here\n", done.stderr


def test_a_file_that_grows_is_stored_when_it_is_asked_for(folder):
    growing = files.Growing(folder)
    path = growing.here / "metrics.jsonl"
    files.append_line(path, "1")
    assert not (folder / "metrics.jsonl").exists()
    growing.store()
    files.append_line(path, "2")
    assert (folder / "metrics.jsonl").read_text() == "1\n"
    growing.close()
    assert (folder / "metrics.jsonl").read_text() == "1\n2\n"
    assert not path.exists()
    again = files.Growing(folder)
    again.fetch("metrics.jsonl")
    again.fetch("none")
    assert (again.here / "metrics.jsonl").read_text() == "1\n2\n"
    again.close()


def test_in_a_local_folder_a_file_that_grows_needs_no_storing(tmp_path):
    growing = files.Growing(tmp_path)
    assert growing.here == tmp_path
    growing.close()
    assert tmp_path.exists()


def test_a_folder_in_a_bucket_has_one_writer_on_this_machine(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    with files.sole_writer(folder):
        assert files.holder(folder).startswith("process ")
        with pytest.raises(Held, match="process "), files.sole_writer(folder):
            raise AssertionError
        with files.sole_writer(folder / "other"):
            pass
    assert files.holder(folder) is None
    assert not folder.exists()


def test_a_folder_that_can_be_written_is_left_empty_and_a_note_says_for_whom_it_is(folder, capsys):
    files.note_once.cache_clear()
    for _ in range(2):
        files.check_can_be_written(folder, "--workdir")
    assert not folder.exists()
    assert capsys.readouterr().err == (
        "note: other machines are not kept out of a folder in a bucket: use it on one only\n"
    )


def test_a_bucket_that_does_not_exist_is_refused_in_one_line(bucket):
    folder = files.given_folder("gs://none/runs", "--workdir")
    with pytest.raises(UserError, match=r"^cannot write to --workdir gs://none/runs: File.*$"):
        files.check_can_be_written(folder, "--workdir")


def test_a_file_in_a_bucket_is_no_folder(folder):
    files.write_text(folder / "file", "")
    with pytest.raises(UserError, match=r"/file is a file: give a folder"):
        files.given_folder(f"{folder}/file", "WORKDIR")
    assert files.given_folder(f"{folder}/fil", "WORKDIR")


def test_what_keeps_a_bucket_from_being_used_is_one_line(bucket, monkeypatch):
    def failing(*_):
        raise ValueError("Your default credentials\nwere not found.")

    monkeypatch.setattr(type(files.as_path(bucket)), "exists", failing)
    with pytest.raises(UserError) as error:
        files.given_folder(f"{bucket}/runs", "--workdir")
    assert str(error.value) == (
        f"cannot use --workdir {bucket}/runs: ValueError: Your default credentials were not found."
    )


def test_without_its_package_a_bucket_says_how_to_install_it(bucket, monkeypatch):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs another package: pip install "\.\[gcs\]"'):
        files.given_folder(f"{bucket}/runs", "--workdir")


def test_errors_of_storage_are_told_from_others(folder):
    from gcsfs.retry import HttpError

    wrapped = UserError("of mnv2")
    wrapped.__cause__ = HttpError({"code": 503, "message": "later"})
    assert is_store_error(wrapped)
    assert is_store_error(OSError("Forbidden: b/x"))
    assert is_store_error(ValueError("UNAVAILABLE: Error opening 'zarr' driver"))
    assert not is_store_error(ValueError("the checksum of its float32 numbers is wrong"))
    assert not is_store_error(FileNotFoundError(2, "No such file"))
