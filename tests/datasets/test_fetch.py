"""fetch: against a server on this machine that behaves well and badly. No test here leaves the machine."""

import gc
import gzip
import hashlib
import re
import socket
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pooch
import pytest
import requests

from companion.datasets import DataCorruptError, DataFile, DataMissingError, _fetch, fetch

BODY = bytes(range(256)) * 23
WRONG = BODY[::-1]
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One behaviour per path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requested.append(self.path)
        self.close_connection = True
        behaviour = getattr(self, "answer_" + self.path.strip("/"), None)
        if behaviour is None:
            self.send_error(404)
        else:
            behaviour()

    def _send(self, body, length=None, **headers):
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def answer_right(self):
        self._send(BODY, len(BODY))

    def answer_gzip(self):
        body = gzip.compress(BODY)
        self._send(body, len(body), Content_Encoding="gzip")

    def answer_wrong(self):
        self._send(WRONG, len(WRONG))

    def answer_short(self):
        self._send(BODY[:-100], len(BODY) - 100)

    def answer_closed(self):
        self._send(BODY[:3000], len(BODY))

    def answer_closed_chunk(self):
        self._send(b"7d0\r\n" + BODY[:2000] + b"\r\n", Transfer_Encoding="chunked")

    def answer_stalled(self):
        self._send(BODY[:3000], len(BODY))
        self.server.released.wait(10)

    def log_message(self, *args):
        """Keep the test output clean."""


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requested, server.released = [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_address[1]}/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()
    gc.collect()  # a connection left open warns now, in the test that left it


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no folder of the user's, and no proxy between the test and its server."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    monkeypatch.delenv("COMPANION_DATA", raising=False)
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The user's folder, with a subfolder for the data set and no file in it."""
    (tmp_path / "own" / "toy").mkdir(parents=True)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "own"))
    return tmp_path / "own"


def toy(url):
    return DataFile("toy", "bytes.bin", SHA256, len(BODY), url)


def contents(folder):
    """Everything below a folder, subfolders included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused_url():
    """An address on this machine where nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    return f"http://127.0.0.1:{port}/right"


@pytest.mark.parametrize("path", ["right", "gzip"])
def test_download_is_kept_where_it_was_promised(server, cache, path, capfd):
    found = fetch(toy(server.url + path))
    assert found == cache / "toy" / "bytes.bin"
    assert found.read_bytes() == BODY
    assert [p.name for p in cache.rglob("*") if p.is_file()] == ["bytes.bin"]
    assert [p.name for p in cache.iterdir()] == ["toy"]
    assert capfd.readouterr() == ("", "")


def test_second_call_reads_the_cache(server):
    first = fetch(toy(server.url + "right"))
    assert fetch(toy(server.url + "right")) == first
    assert server.requested == ["/right"]


def test_default_cache_is_the_one_of_the_operating_system(server, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_CACHE", "")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "system" / project)
    assert fetch(toy(server.url + "right")) == tmp_path / "system" / "mtl-companion" / "toy" / "bytes.bin"


def test_damaged_cache_is_replaced(server, cache):
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / "bytes.bin").write_bytes(WRONG)
    assert fetch(toy(server.url + "right")).read_bytes() == BODY
    assert [p.name for p in cache.iterdir()] == ["toy"]


def test_damaged_cache_is_not_used_offline(cache):
    (cache / "toy").mkdir(parents=True)
    path = cache / "toy" / "bytes.bin"
    path.write_bytes(WRONG)
    with pytest.raises(DataMissingError, match=re.escape(f"The copy at {path} has other bytes and was not used")):
        fetch(toy(refused_url()))


@pytest.mark.parametrize(
    ("path", "body", "remark"),
    [
        ("wrong", WRONG, r"\)\. Nothing was kept"),
        ("short", BODY[:-100], r"\) \(it looks cut off\)\. Nothing"),
    ],
)
def test_other_bytes_are_refused(server, cache, path, body, remark):
    with pytest.raises(DataCorruptError) as error:
        fetch(toy(server.url + path))
    assert re.search(
        rf"^{re.escape(server.url + path)} does not hold the published toy/bytes\.bin: "
        rf"expected sha256 {SHA256} \({len(BODY)} bytes\), "
        rf"found {hashlib.sha256(body).hexdigest()} \({len(body)} bytes{remark}",
        str(error.value),
    )
    assert contents(cache) == []


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("nothing-here", r"HTTPError: 404 "),
        ("closed", r"ChunkedEncodingError: .*3000 bytes read"),
        ("closed_chunk", r"ChunkedEncodingError: "),
        ("stalled", r"ConnectionError: .*[Tt]imed out"),
        (None, r"ConnectionError: "),  # nobody listens
    ],
)
def test_failed_download_says_what_to_do(server, cache, monkeypatch, path, cause):
    monkeypatch.setattr(_fetch, "TIMEOUT", 0.5)
    url = refused_url() if path is None else server.url + path
    with pytest.raises(DataMissingError) as error:
        fetch(toy(url))
    assert re.search(
        rf"^toy/bytes\.bin \({len(BODY)} bytes\) is not on this machine and could not be downloaded from "
        rf"{re.escape(url)}: {cause}.*save it as FOLDER/toy/bytes\.bin and set the environment variable "
        r"COMPANION_DATA to FOLDER \(COMPANION_DATA is not set\)$",
        str(error.value),
    )
    assert isinstance(error.value, OSError)
    assert isinstance(error.value.__cause__, requests.RequestException)
    assert contents(cache) == []


def test_failure_leaves_other_files_of_the_cache(server, cache):
    fetch(toy(server.url + "right"))
    with pytest.raises(DataMissingError):
        fetch(replace(toy(server.url + "closed"), name="other.bin"))
    assert [p.name for p in cache.rglob("*")] == ["toy", "bytes.bin"]


def test_keyboard_interrupt_leaves_nothing(server, cache, monkeypatch):
    """Ctrl-C arrives when part of the file is on the disk."""
    seen = []

    def interrupted(response, chunk_size):
        yield BODY[:1000]
        seen.extend(p.stat().st_size for p in cache.rglob("*") if p.is_file())
        raise KeyboardInterrupt

    monkeypatch.setattr(requests.Response, "iter_content", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(toy(server.url + "right"))
    assert seen == [1000]
    assert contents(cache) == []


def test_cache_that_cannot_be_written_is_a_clear_error(server, tmp_path, monkeypatch):
    (tmp_path / "occupied").write_bytes(b"a file where the folder should be")
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(DataMissingError, match=r"FileExistsError: .*occupied"):
        fetch(toy(server.url + "right"))


def test_own_folder_comes_first(server, cache, own):
    path = own / "toy" / "bytes.bin"
    path.write_bytes(BODY)
    assert fetch(toy(server.url + "right")) == path
    assert server.requested == []
    assert not cache.exists()


def test_own_folder_with_other_bytes_is_refused_and_left_alone(server, cache, own):
    path = own / "toy" / "bytes.bin"
    path.write_bytes(WRONG[:50])
    with pytest.raises(DataCorruptError) as error:
        fetch(toy(server.url + "right"))
    assert re.search(
        rf"^{re.escape(str(path))} does not hold the published toy/bytes\.bin: expected sha256 {SHA256} .*"
        rf"found {hashlib.sha256(WRONG[:50]).hexdigest()} \(50 bytes\) \(it looks cut off\)\. "
        rf"Replace this file yourself, or unset COMPANION_DATA to download {re.escape(server.url)}right$",
        str(error.value),
    )
    assert path.read_bytes() == WRONG[:50]
    assert server.requested == []
    assert not cache.exists()


def test_file_missing_in_own_folder_is_downloaded_to_the_cache(server, cache, own):
    assert fetch(toy(server.url + "right")) == cache / "toy" / "bytes.bin"
    assert contents(own) == ["toy"]


def test_missing_everywhere_names_the_own_folder(own):
    with pytest.raises(DataMissingError, match=re.escape(f"COMPANION_DATA is {own}, which does not hold it")):
        fetch(toy(refused_url()))
    assert contents(own) == ["toy"]


def test_empty_variable_means_unset(server, cache, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", "")
    monkeypatch.chdir(cache.parent)
    (cache.parent / "toy").mkdir()
    (cache.parent / "toy" / "bytes.bin").write_bytes(WRONG)  # what an empty path would find: the working directory
    assert fetch(toy(server.url + "right")) == cache / "toy" / "bytes.bin"
