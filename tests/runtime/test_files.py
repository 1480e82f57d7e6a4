import subprocess
import sys

import pytest

from mnv2.runtime import files

HOLD = """
import sys
from pathlib import Path
from mnv2.runtime.files import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("holding", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_writer_and_says_who(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "holding\n"
        with pytest.raises(files.Held, match=f"process {process.pid} on "):
            files.sole_writer(tmp_path).__enter__()
        process.kill()
    with files.sole_writer(tmp_path):  # the lock ended with its process
        pass


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": 2})
    assert path.read_text() == '{\n  "a": 2\n}\n'
    assert list(path.parent.iterdir()) == [path]
