"""Google Cloud Storage on this machine: python -m tests.emulator PORT

The objects are in the memory of the process that serves, so they survive the death of the processes
that write them. The bucket is named `bucket`. For another process:

    export STORAGE_EMULATOR_HOST=http://localhost:PORT TENSORSTORE_GCS_HTTP_URL=http://localhost:PORT
    export FSSPEC_GCS_TOKEN=anon GOOGLE_AUTH_TOKEN_FOR_TESTING=any
    python -m mnv2.main --config configs/v2_ablation.py:quick --workdir gs://bucket/runs
"""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import unquote, urlparse

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound

BUCKET = "bucket"


class _Handler(server.RequestHandler):
    """Also sends the generation of what is read, as Google does: tensorstore asks for it."""

    def send_response(self, code: int, message: str | None = None) -> None:
        super().send_response(code, message)
        url = urlparse(self.path)
        if self.command == "GET" and "alt=media" in url.query:
            name = unquote(url.path.partition("/o/")[2])
            self.send_header("x-goog-generation", self._generation(url.path, name))

    def do_POST(self) -> None:
        if "/moveTo/" in self.path:  # the emulator's answer is one after which gcsfs tries again
            self.send_error(HTTPStatus.BAD_REQUEST)
        else:
            super().do_POST()

    def _generation(self, path: str, name: str) -> str:
        bucket = path.partition("/b/")[2].partition("/")[0]
        try:
            return self.storage.get_file_obj(bucket, name)["generation"]
        except NotFound:
            return "0"


def environment(address: str) -> dict[str, str]:
    """Returns the variables that make a process use the emulator at an address."""
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "FSSPEC_GCS_TOKEN": "anon",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",  # tensorstore would look for credentials
    }


@contextmanager
def serving(port: int = 0) -> Iterator[str]:
    """Serves on a port, by default on a free one; yields the address."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    storage = server.Storage(use_memory_fs=True)
    server.buckets.create_bucket(BUCKET, storage)

    class Quiet(server.server.HTTPServer):
        def handle_error(self, request, client_address) -> None:
            """Says nothing about a client that left, such as one that was killed."""

    with Quiet(("localhost", port), lambda *given: _Handler(storage, *given)) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://localhost:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


if __name__ == "__main__":
    with serving(int(sys.argv[1])) as address:
        print(address, flush=True)
        threading.Event().wait()
