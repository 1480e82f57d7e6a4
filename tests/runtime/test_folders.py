import os
from pathlib import Path

import pytest

from mnv2.runtime import files
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import check_can_be_written, given_folder


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert given_folder("~/runs/first", "--workdir") == tmp_path / "runs/first"
    assert given_folder("runs/~x", "--workdir") == Path("runs/~x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--workdir is empty: give a folder"),
        ("  ", "--workdir is empty"),
        ("gs://", "--workdir gs:// is an address and no gs://BUCKET/FOLDER: a bucket has"),
        ("gs:///runs", "and no gs://BUCKET/FOLDER"),
        ("gs://Bucket/runs", "and no gs://BUCKET/FOLDER"),
        ("gs://bucket", "and no gs://BUCKET/FOLDER"),
        ("gs://bucket/", "and no gs://BUCKET/FOLDER"),
        ("gs://bucket//runs", "and no gs://BUCKET/FOLDER"),
        ("gs://bucket/../runs", "and no gs://BUCKET/FOLDER"),
        ("gs://bucket/runs*", "and no gs://BUCKET/FOLDER"),
        ("s3://bucket/runs", "--workdir s3://bucket/runs is an address and no"),
        ("memory://runs", "is an address"),
        ("http://host/runs", "is an address"),
        ("hdfs://host:1/runs", "is an address"),
        ("file:///data/runs", "is an address"),
        ("gs:/bucket/runs", "is an address"),
        ("~nobody_of_this_name/runs", "there is no such home folder"),
        (__file__, "is a file: give a folder"),
    ],
)
def test_what_can_be_no_folder_here_is_refused(text, message):
    with pytest.raises(UserError) as error:
        given_folder(text, "--workdir")
    assert message in str(error.value)


def test_a_folder_that_can_be_written_need_not_exist_and_is_not_made(tmp_path):
    check_can_be_written(tmp_path / "a" / "b", "--workdir")
    check_can_be_written(tmp_path, "--workdir")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write to --workdir .*/file/a/b: .*/file is a file"
    ):
        check_can_be_written(tmp_path / "file" / "a" / "b", "--workdir")

    def read_only(**_):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", read_only)
    with pytest.raises(UserError, match=r"cannot write to --workdir .*/a: Permission denied"):
        check_can_be_written(tmp_path / "a", "--workdir")


def test_the_signs_of_patterns_in_the_name_of_a_folder_stand_for_themselves(tmp_path):
    folder = tmp_path / "runs[1]*?"
    (folder / "a").mkdir(parents=True)
    assert files.matches(folder, "a*") == [folder / "a"]
    assert files.matches(tmp_path, "none*") == []
