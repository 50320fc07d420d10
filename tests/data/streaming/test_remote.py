"""Remote shards: they arrive complete over bad connections, once for all readers, in a cache of bounded size."""

import contextlib
import functools
import hashlib
import http.server
import json
import multiprocessing
import random
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from filelock import FileLock
from support.panoramas import data, keys, shards

from cubediff.data import DataError
from cubediff.data.format.index import index_tar
from cubediff.data.streaming import catalog, remote, retrying
from cubediff.data.streaming.catalog import Shard
from cubediff.data.streaming.reader import ShardReader
from cubediff.data.streaming.remote import Cache


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_DELAY", 0.001)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("remote"), 30, val=0.2)


def everything(path: Any, cache: Path, workers: int = 0, **options: Any) -> list[str]:
    """The keys of a training epoch and the validation; waits for the background fetches."""
    module = data(path, batch_size=1, num_workers=workers, cache_dir=cache, **options)
    samples = sorted(keys(module.train_dataloader()) + keys(module.val_dataloader()))
    fetched()
    return samples


def fetched() -> None:
    """Waits for the background fetches."""
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            while thread.ident is None:  # it is being started, and may not be joined yet
                time.sleep(0.01)
            thread.join()


def braces(dataset: Path) -> str:
    last = len(list(dataset.glob("train-*.tar"))) - 1
    return f"train-{{000000..{last:06d}}}.tar"


EVERY = [f"{i:03d}" for i in range(30)]


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; breaks off a share of the responses in their middle."""

    daemon_threads = True

    def __init__(self, folder: Path, drops: float) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.drops, self.dropped, self.random = drops, 0, random.Random(0)
        self.requests: Counter[str] = Counter()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def copyfile(self, source: Any, outputfile: Any) -> None:
        content = source.read()
        self.server.requests[self.path.rpartition("/")[2]] += 1
        if self.server.random.random() < self.server.drops:
            self.server.dropped += 1
            outputfile.write(content[: self.server.random.randrange(len(content))])
            self.connection.shutdown(socket.SHUT_RDWR)  # close() is not enough: the socket is open in the test too
            self.close_connection = True
        else:
            outputfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


@pytest.fixture
def server(dataset: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(dataset, getattr(request, "param", 0.0)) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        fetched()  # they would try to reach a server that is gone for ten minutes
        running.shutdown()
        thread.join()


# ---- locations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("server", [0.4], indirect=True)
def test_all_samples_arrive_over_http_with_dropped_connections(server: Server, tmp_path: Path, workers: int) -> None:
    assert everything(server.url, tmp_path, workers) == EVERY
    assert server.dropped > 3
    whole = {file: count for file, count in server.requests.items() if file.endswith(".tar")}
    assert sum(whole.values()) - server.dropped <= len(whole)  # each once for all readers
    requests = server.requests.total()
    assert everything(server.url, tmp_path, workers) == EVERY
    assert not {f for f, count in server.requests.items() if f.endswith(".tar") and count > whole[f]}
    assert server.requests.total() > requests  # the manifest and the index, each time


def test_shards_are_fetched_before_they_are_needed(server: Server, tmp_path: Path) -> None:
    module = data(server.url, batch_size=2, cache_dir=tmp_path, shuffle_buffer=4)
    batches = iter(module.train_dataloader())
    next(batches)
    stream = module._streams["train"]
    for _ in batches:
        fetched()
        present = {file.name.partition("-")[2] for file in tmp_path.glob("*.tar")}
        coming = [stream.reader.locate(stream.order[module.position + i])[0] for i in range(2)]
        assert {Path(stream.reader.shards[shard].name).name for shard in coming} <= present


def test_all_samples_arrive_from_an_s3_bucket(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.server import ThreadedMotoServer

    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    bucket.start()
    try:
        host, port = bucket.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        s3 = fsspec.filesystem("s3")
        s3.mkdir("panoramas")
        s3.put(f"{dataset}/", "panoramas/shards/", recursive=True)
        assert everything("s3://panoramas/shards", tmp_path / "a", 2) == EVERY
        tars = "s3://panoramas/shards/" + braces(dataset)
        assert set(everything(tars, tmp_path / "b")) == set(keys(data(dataset, batch_size=1).train_dataloader()))
    finally:
        bucket.stop()


@pytest.mark.parametrize("prefix", ["", "file://", "pipe:cat ", "http"])
def test_tars_without_a_manifest_are_all_for_training(
    dataset: Path, tmp_path: Path, prefix: str, server: Server
) -> None:
    tars = sorted(dataset.glob("train-*.tar"))
    place = f"{server.url}/" if prefix == "http" else f"{prefix}{dataset}/"
    expected = {key for tar in tars for key in index_tar(tar).keys}
    for path in (place + braces(dataset), [place + tar.name for tar in tars]):
        module = data(path, batch_size=1, cache_dir=tmp_path)
        assert module.samples("train") == len(expected)
        assert set(keys(module.train_dataloader())) == expected
        assert module.val_dataloader() == []
    fetched = [file for file in tmp_path.glob("*.tar") if file.is_file()]
    assert len(fetched) == (len(tars) if prefix in ("http", "pipe:cat ") else 0)


class Hub(Handler):
    """Serves the folder as the only dataset of a Hugging Face Hub."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/datasets/me/panoramas/resolve/main/"):
            self.path = path.removeprefix("/datasets/me/panoramas/resolve/main")
            return super().do_GET()
        files = [f for f in Path(self.directory).rglob("*") if f.is_file()]
        message: Any = {"id": "me/panoramas", "sha": "0" * 40}
        if "/tree/" in path:
            names = [(f.relative_to(self.directory).as_posix(), f.stat().st_size) for f in files]
            message = [{"type": "file", "path": name, "size": size, "oid": "0"} for name, size in names]
        body = json.dumps(message).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_all_samples_arrive_from_a_dataset_of_the_hub(
    dataset: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.RequestHandlerClass = functools.partial(Hub, directory=str(dataset))  # type: ignore[assignment]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    fsspec.get_filesystem_class("hf").clear_instance_cache()
    assert everything("hf://datasets/me/panoramas", tmp_path, 2) == EVERY
    fsspec.get_filesystem_class("hf").clear_instance_cache()


# ---- errors ---------------------------------------------------------------------------------------


def test_the_error_for_a_missing_remote_shard_names_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other thread still loads when this test and its server end: by default it would try for ten minutes.
    options = {"num_workers": 2, "retry_minutes": 0.01}
    loader = data(server.url, batch_size=1, cache_dir=tmp_path, **options).train_dataloader()
    monkeypatch.setattr(Handler, "translate_path", lambda self, path: "/nowhere")
    with pytest.raises(DataError, match=r"^http://127.*train-0000\d\d\.tar cannot be read \(FileNotF"):
        keys(loader)
    assert list(tmp_path.glob("*.tar")) == []


def test_the_error_for_a_deleted_local_shard_names_it(tmp_path: Path) -> None:
    path = shards(tmp_path, 4)
    module = data(path)
    (path / "train-000000.tar").unlink()
    with pytest.raises(DataError, match=r"^/.*train-000000\.tar cannot be read \(FileNotFoundError: No such"):
        keys(module.train_dataloader())


def test_a_path_of_an_unknown_protocol_is_refused(tmp_path: Path) -> None:
    for path in ("foo://x", "foo://x/a.tar"):
        with pytest.raises(DataError, match=r"^foo://x/.* has the unknown protocol foo://: use s3://, .*a local path"):
            data(path, cache_dir=tmp_path)


@pytest.mark.parametrize("server", [1.0], indirect=True)
def test_a_transfer_that_ends_early_names_the_file_and_its_bytes(
    server: Server, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A background fetch leaves the error to the reader that needs the shard."""
    size = (dataset / "train-000000.tar").stat().st_size
    shard = Shard(f"{server.url}/train-000000.tar", "000", np.array([0, size]), size)
    reader = ShardReader([shard], Cache(tmp_path, 1e9, retry_minutes=0.0))
    message = rf"^{shard.name} cannot be read \(\d+ bytes arrived instead of {size}\): check the network, and upload it"
    with pytest.raises(DataError, match=message):
        reader.open(0)
    reader = ShardReader([shard], Cache(tmp_path, 1e9, retry_minutes=1.0))
    reader.prefetch(0)
    fetched()
    assert server.requests["train-000000.tar"] == 2
    assert [message for message in caplog.messages if server.url in message] == []


class Response:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class HubError(OSError):
    """As huggingface_hub and httpx raise it."""

    def __init__(self, status: int) -> None:
        self.response = Response(status)


class S3Error(Exception):
    """As botocore raises it."""

    def __init__(self, status: int) -> None:
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class GoogleError(Exception):
    """As gcsfs raises it."""

    def __init__(self, status: int) -> None:
        self.code = str(status)


@pytest.mark.parametrize("kind", [HubError, S3Error, GoogleError])
@pytest.mark.parametrize(("status", "passes"), [(403, False), (404, False), (401, False), (429, True), (503, True)])
def test_only_errors_that_may_pass_are_retried(kind: Callable[[int], Exception], status: int, passes: bool) -> None:
    errors = [kind(status)]

    def read() -> str:
        if errors:
            raise errors.pop()
        return "content"

    if passes:
        assert retrying.retried(read, "hf://datasets/me/panoramas") == "content"
    else:
        with pytest.raises(DataError, match=r"panoramas cannot be read \("):
            retrying.retried(read, "hf://datasets/me/panoramas")


def test_retries_last_as_long_as_the_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = [0.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    def fail() -> None:
        raise ConnectionResetError("by peer")

    monkeypatch.setattr(retrying, "FIRST_DELAY", 1.0)
    monkeypatch.setattr(retrying, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    for minutes in (3.0, retrying.RETRY_MINUTES):
        now[0], waits[:] = 0.0, []
        with pytest.raises(DataError, match=r"after \d+ attempts \(ConnectionResetError: by peer"):
            retrying.retried(fail, "https://host/x.tar", minutes)
        assert 60 * minutes - 31 < sum(waits) <= 60 * minutes
    assert retrying.RETRY_MINUTES == 10.0


def test_a_refused_permission_is_an_error_at_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("do_GET", "do_HEAD"):
        monkeypatch.setattr(Handler, method, lambda self: self.send_error(403))
    began = time.monotonic()
    with pytest.raises(DataError, match="403"):
        data(server.url, cache_dir=tmp_path)
    assert time.monotonic() - began < 5


def test_a_command_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"pipe:exit 3 .* after \d+ attempts \(OSError: the command ended with exit 3\)"
    ):
        data("pipe:exit 3 # x.tar", cache_dir=tmp_path, retry_minutes=0.01)
    with pytest.raises(DataError, match=r"no_such_command .*\.tar cannot be read \(OSError"):
        data("pipe:no_such_command # x.tar", cache_dir=tmp_path)


def test_a_shard_with_another_size_or_checksum_is_not_used(server: Server, tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1e9)
    shard = f"{server.url}/train-000000.tar"
    with pytest.raises(DataError, match=r"larger than expected \(more than 5 bytes\)"):
        cache.open(shard, 5)
    with pytest.raises(
        DataError, match=r"\d+ bytes arrived instead of the 1000000 of its manifest\): it is incomplete"
    ):
        cache.open(shard, 10**6)
    with pytest.raises(DataError, match=r"sha256 differs\)\): .*upload it there again"):
        cache.open(shard, None, "0" * 64)
    assert [*tmp_path.glob("*.tar"), *(tmp_path / "part").iterdir()] == []
    cache.open(shard).close()
    assert len(list(tmp_path.glob("*.tar"))) == 1


class Endless(Handler):
    """Answers every request with zeros without end, compressed below /gzip."""

    def do_GET(self) -> None:
        zeros = bytes(1 << 20)
        packer = zlib.compressobj(9, wbits=31)
        self.send_response(200)
        if self.path.startswith("/gzip"):
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Connection", "close")
        self.end_headers()
        with contextlib.suppress(OSError):  # the reader has had enough
            while True:
                self.server.requests["sent"] += 1
                self.wfile.write(packer.compress(zeros) if self.path.startswith("/gzip") else zeros)

    def do_HEAD(self) -> None:
        self.send_error(405)


@pytest.mark.parametrize("path", ["plain", "gzip"])
def test_a_server_that_sends_without_end_is_cut_off(
    path: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.RequestHandlerClass = functools.partial(Endless, directory="/")  # type: ignore[assignment]
    monkeypatch.setattr(catalog, "MAX_MANIFEST", 1 << 20)
    with pytest.raises(DataError, match=r"manifest\.json is larger than expected \(more than 1048576 bytes\)"):
        data(f"{server.url}/{path}/x", cache_dir=tmp_path)
    with pytest.raises(DataError, match=r"train-000000\.tar is larger than expected \(more than 3000000 bytes\)"):
        Cache(tmp_path, 1e9).open(f"{server.url}/{path}/train-000000.tar", 3_000_000)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.stat().st_size]


def test_a_command_that_writes_without_end_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"larger than expected \(more than 1000000 bytes\)"):
        Cache(tmp_path, 1e9).open("pipe:yes", 1_000_000)
    assert not list((tmp_path / "part").iterdir())


@pytest.mark.parametrize(("protocol", "extra"), [("s3", "s3"), ("gs", "gcs")])
def test_a_missing_package_is_named_with_its_extra(
    protocol: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("install it")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    message = rf"^{protocol}://bucket/x/manifest.json needs another package .*: pip install 'cubediff\[{extra}\]'$"
    with pytest.raises(DataError, match=message):
        data(f"{protocol}://bucket/x", cache_dir=tmp_path)


# ---- the cache ---------------------------------------------------------------------------------------------


def files(folder: Path, count: int, size: int) -> list[str]:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i}.tar").write_bytes(bytes([i]) * size)
    return [f"local://{folder}/{i}.tar" for i in range(count)]


def test_the_cache_keeps_its_limit_and_evicts_the_least_recently_used_file(tmp_path: Path) -> None:
    urls = files(tmp_path / "there", 6, 1000)
    cache = Cache(tmp_path / "cache", 3500.0)

    def held() -> set[int]:
        return {file.read_bytes()[0] for file in (tmp_path / "cache").glob("*.tar")}

    first = cache.open(urls[0])
    for i in (1, 2):
        cache.open(urls[i]).close()
    cache.open(urls[0]).close()  # used again, so that 1 is the oldest
    cache.open(urls[3]).close()
    assert held() == {0, 2, 3}
    for i in (4, 5, 1):
        cache.open(urls[i]).close()
        assert sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.tar")) <= 3500
    assert held() == {4, 5, 1}
    assert first.read() == bytes(1000)  # evicted, but still readable
    first.close()
    small = Cache(tmp_path / "small", 10.0)
    for url in urls:
        with small.open(url) as file:
            assert len(file.read()) == 1000
    assert len(list((tmp_path / "small").glob("*.tar"))) == 1  # the last, larger than the limit


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_smaller_than_the_data_shows_all_of_it(server: Server, tmp_path: Path, workers: int) -> None:
    assert everything(server.url, tmp_path, workers, cache_gb=1e-6) == EVERY
    assert len(list(tmp_path.glob("*.tar"))) == 1


@pytest.mark.parametrize("known", [True, False], ids=["with manifest", "without"])
def test_a_file_that_is_evicted_while_it_is_opened_is_read_nevertheless(
    server: Server, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    tar = dataset / "train-000000.tar"
    digest = hashlib.sha256(tar.read_bytes()).hexdigest() if known else None

    def open_then_evict(file: Path) -> BufferedReader | None:
        opened = real(file)
        for evicted in (tmp_path.glob("*.tar"), (tmp_path / "sums").glob("*")):
            for found in evicted:
                found.unlink()
        return opened

    Cache(tmp_path, 1e9).open(f"{server.url}/{tar.name}", digest=digest).close()
    real = remote._opened
    monkeypatch.setattr(remote, "_opened", open_then_evict)
    with Cache(tmp_path, 1e9).open(f"{server.url}/{tar.name}", digest=digest) as file:
        assert file.read() == tar.read_bytes()
    assert not list(tmp_path.glob("*.tar"))
    assert server.requests == {tar.name: 1}


def test_processes_fetch_a_shared_file_once(server: Server, dataset: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        sizes = pool.map(functools.partial(length, tmp_path), [f"{server.url}/train-000000.tar"] * 4, chunksize=1)
    assert sizes == [(dataset / "train-000000.tar").stat().st_size] * 4
    assert server.requests == {"train-000000.tar": 1}


@pytest.mark.parametrize("known", [True, False], ids=["with manifest", "without"])
@pytest.mark.parametrize("damage", ["a flipped bit", "zeros", "a truncation"])
def test_a_damaged_file_of_the_cache_is_fetched_again(
    damage: str, known: bool, server: Server, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = (dataset / "train-000000.tar").read_bytes()
    expected = (len(content), hashlib.sha256(content).hexdigest()) if known else (None, None)
    url = f"{server.url}/train-000000.tar"
    Cache(tmp_path, 1e9).open(url, *expected).close()
    (file,) = tmp_path.glob("*.tar")
    broken = {
        "a flipped bit": bytes([content[0] ^ 1]) + content[1:],
        "zeros": bytes(len(content)),
        "a truncation": content[:-1],
    }
    file.write_bytes(broken[damage])
    cache = Cache(tmp_path, 1e9)
    for _ in range(3):
        with cache.open(url, *expected) as opened:
            assert opened.read() == content
    assert server.requests["train-000000.tar"] == 2
    assert "in the cache is damaged: it is fetched again" in caplog.text


def test_partial_files_count_towards_the_limit_and_those_of_ended_processes_are_removed(tmp_path: Path) -> None:
    urls = files(tmp_path / "there", 4, 1000)
    cache = Cache(tmp_path / "cache", 3500.0)
    for url in urls[:2]:
        cache.open(url).close()
    parts = tmp_path / "cache" / "part"
    (parts / "ended").write_bytes(bytes(5000))
    (parts / "running").write_bytes(bytes(1000))
    with FileLock(tmp_path / "cache" / "locks" / "running"):
        cache.open(urls[2]).close()
        assert [part.name for part in parts.iterdir()] == ["running"]
        assert len(list((tmp_path / "cache").glob("*.tar"))) == 2  # and the partial file: 3000 bytes
    cache.open(urls[3]).close()
    assert list(parts.iterdir()) == []
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3


def test_room_is_made_before_a_file_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = files(tmp_path / "there", 4, 1000)
    cache, peaks = Cache(tmp_path / "cache", 3000.0), []
    whole = remote._fetch_file

    def fetch(url: str, part: Path, limit: int) -> None:
        whole(url, part, limit)
        peaks.append(sum(file.stat().st_size for file in (*(tmp_path / "cache").glob("*.tar"), part)))

    monkeypatch.setattr(remote, "_fetch_file", fetch)
    for url in urls:
        cache.open(url, 1000).close()
    assert peaks == [1000, 2000, 3000, 3000]


def length(folder: Path, url: str) -> int:
    with Cache(folder, 1e9).open(url) as file:
        return len(file.read())
