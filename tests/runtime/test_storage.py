import threading

import google.auth.exceptions
import pytest
from gcsfs.retry import HttpError

from mnv2.runtime import files, storage
from mnv2.runtime.errors import UserError
from mnv2.runtime.folders import check_can_be_written, given_folder


@pytest.fixture
def folder(bucket, request):
    """A folder in a bucket, which only this test has."""
    return given_folder(f"{bucket}/{request.node.name.partition('[')[0]}", "--workdir")


def test_files_in_a_bucket_are_replaced_read_and_listed_as_others(folder):
    files.write_json(folder / "a/0/result.json", {"a": 1})
    files.write_json(folder / "a/0/result.json", {"a": 2})
    files.write_text(folder / "a/1/result.json", "ä")
    files.write_text(folder / "lines.jsonl", '{"step": 1}\n{"step": 2}\n{"ste')
    assert files.read_json(folder / "a/0/result.json", "") == {"a": 2}
    assert files.read_lines(folder / "lines.jsonl") == [{"step": 1}, {"step": 2}]
    assert files.read_lines(folder / "none.jsonl") == []
    assert sorted(str(path) for path in (folder / "a").glob("*/result.json")) == [
        f"{folder}/a/0/result.json",
        f"{folder}/a/1/result.json",
    ]
    with pytest.raises(UserError, match=r"cannot read gs://.*/none.json: .*; do this"):
        files.read_json(folder / "none.json", "do this")
    with pytest.raises(UserError, match=r"gs://.*/a/1/result.json is damaged .*: do this"):
        files.read_json(folder / "a/1/result.json", "do this")


def test_an_object_that_is_replaced_while_it_is_read_is_read_whole(folder):
    path = folder / "replaced.json"
    contents = [b"[1]", b"[1, 2, 3, 4]"]
    storage.write(path, contents[0])
    ended = threading.Event()

    def replace():
        while not ended.is_set():
            for content in contents:
                storage.write(path, content)

    replacing = threading.Thread(target=replace)
    replacing.start()
    try:
        assert {storage.read(path) for _ in range(100)} <= set(contents)
    finally:
        ended.set()
        replacing.join()


def test_what_tensorstore_has_read_it_replaces_if_nobody_else_did(folder):
    import tensorstore

    store = tensorstore.KvStore.open(f"{folder}/").result()
    store.write("an object", b"1").result()
    read = store.read("an object").result()
    assert read.value == b"1"
    assert store.write("an object", b"2", if_equal=read.stamp.generation).result().generation
    late = store.write("an object", b"3", if_equal=read.stamp.generation).result()
    assert not late.generation
    assert store.read("an object").result().value == b"2"


def test_what_fails_while_it_is_written_leaves_the_object_as_it_was(folder):
    def fail():
        with files.replacing(folder / "report.png") as unfinished:
            unfinished.write_text("half of the ne")
            raise ValueError("no")

    files.write_text(folder / "report.png", "old")
    with pytest.raises(ValueError, match="no"):
        fail()
    assert (folder / "report.png").read_text() == "old"


def test_a_path_that_does_not_name_a_folder_on_this_machine_stays_an_address(folder, tmp_path):
    assert str(storage.absolute(folder)) == str(folder)
    assert storage.absolute(tmp_path) == tmp_path
    assert storage.is_object(folder / "x")
    assert not storage.is_object(tmp_path)


@pytest.mark.parametrize("stored", [True, False])
def test_a_folder_is_moved(folder, tmp_path, stored):
    here = folder if stored else tmp_path
    for name in ("10/state/a", "10/b"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(name.encode())
    storage.move(here / "10", here / "damaged" / "10-1")
    assert (here / "damaged/10-1/state/a").read_bytes() == b"10/state/a"
    assert (here / "damaged/10-1/b").read_bytes() == b"10/b"
    assert not (here / "10").exists()


def test_a_file_that_grows_is_stored_whole_when_it_is_asked_for(folder):
    mirror = storage.Mirror(folder)
    path = mirror.here / "metrics.jsonl"
    files.append_line(path, "1")
    assert not (folder / "metrics.jsonl").exists()
    mirror.store()
    files.append_line(path, "2")
    assert (folder / "metrics.jsonl").read_text() == "1\n"
    mirror.close()
    assert (folder / "metrics.jsonl").read_text() == "1\n2\n"
    assert not path.exists()
    again = storage.Mirror(folder)
    again.fetch("metrics.jsonl")
    again.fetch("none")
    assert (again.here / "metrics.jsonl").read_text() == "1\n2\n"
    assert not again.due()
    again.close()


def test_in_a_local_folder_a_file_that_grows_needs_no_storing(tmp_path):
    mirror = storage.Mirror(tmp_path)
    assert mirror.here == tmp_path
    assert not mirror.due()
    mirror.close()
    assert tmp_path.exists()


def test_nothing_is_left_by_the_test_whether_a_folder_can_be_written(folder):
    check_can_be_written(folder, "--workdir")
    assert not folder.exists()


def test_a_bucket_that_does_not_exist_is_refused(bucket):
    with pytest.raises(UserError, match=r"cannot use --workdir gs://none/runs: there is no bucket"):
        given_folder("gs://none/runs", "--workdir")


def test_an_object_is_no_folder(folder):
    files.write_text(folder / "file", "")
    with pytest.raises(UserError, match=r"/file is an object: give a folder"):
        given_folder(f"{folder}/file", "WORKDIR")
    assert given_folder(f"{folder}/fil", "WORKDIR")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (google.auth.exceptions.DefaultCredentialsError("x"), "gcloud auth application-default"),
        (HttpError({"code": 401, "message": "Anonymous caller"}), "there are no valid credentials"),
        (OSError("Forbidden: b/bucket/o\nno access"), "need the role Storage Object User"),
        (TimeoutError(), "does not answer within 20 s"),
        (HttpError({"code": 500, "message": "Backend\nerror"}), "Backend error, 500"),
    ],
)
def test_what_keeps_a_bucket_from_being_used_is_one_line(bucket, monkeypatch, error, message):
    class Failing:
        def call(self, *_, **__):
            raise error

        pipe_file = call

    monkeypatch.setattr(storage, "filesystem", Failing)
    with pytest.raises(UserError) as listed:
        given_folder(f"{bucket}/runs", "--workdir")
    with pytest.raises(UserError) as written:
        check_can_be_written(storage.as_path(f"{bucket}/runs"), "--workdir")
    for raised in (listed, written):
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
    assert str(listed.value).startswith(f"cannot use --workdir {bucket}/runs: ")
    assert str(written.value).startswith(f"cannot write to --workdir {bucket}/runs: ")


def test_without_its_package_storage_says_how_to_install_it(bucket, monkeypatch):
    storage.connect.cache_clear()
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs another package: pip install "\.\[gcs\]"'):
        given_folder(f"{bucket}/runs", "--workdir")


def test_errors_of_storage_are_told_from_others(bucket):
    wrapped = UserError("of mnv2")
    wrapped.__cause__ = HttpError({"code": 503, "message": "later"})
    assert storage.is_store_error(wrapped)
    assert storage.is_store_error(OSError("Forbidden: b/x"))
    assert storage.is_store_error(ValueError("UNAVAILABLE: Error opening 'zarr' driver"))
    assert not storage.is_store_error(ValueError("the checksum of its float32 numbers is wrong"))
    assert not storage.is_store_error(FileNotFoundError(2, "No such file"))
