"""examples/serve.py over HTTP: panoramas from texts and photos, one at a time, and errors with a message."""

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from PIL import Image
from support.examples import ROOT, as_python, documented

pytestmark = pytest.mark.slow

PHOTO = (ROOT / "data/photo.jpg").read_bytes()


class Answer(NamedTuple):
    status: int
    body: bytes


@pytest.fixture(scope="module")
def address(checkout: Path) -> Iterator[str]:
    """The address of a service that the documented command starts, on a free port."""
    (command,) = (words for words in documented("serve.py") if words[0] == "python")
    log = checkout / "serve.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *as_python(command)[1], "--port", "0"], cwd=checkout, stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + 300
        while not (running := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield running[1]
    finally:
        process.terminate()
        process.wait(60)


def post(address: str, photo: bytes = b"", **query: object) -> Answer:
    request = Request(f"{address}/panorama?{urlencode({'steps': 1, **query})}", data=photo, method="POST")
    try:
        with urlopen(request, timeout=300) as response:
            assert response.headers["Content-Type"] == "image/jpeg"
            return Answer(response.status, response.read())
    except HTTPError as error:
        with error:
            return Answer(error.code, error.read())


def test_answers_are_panoramas_of_prompt_photo_and_seed(address: str) -> None:
    answers = [post(address, prompt="a hall"), post(address, prompt="a hall", seed=1),
               post(address, prompt="a beach"), post(address, PHOTO, prompt="a hall")]  # fmt: skip
    for answer in answers:
        assert answer.status == 200
        with Image.open(io.BytesIO(answer.body)) as panorama:
            assert (panorama.format, panorama.size) == ("JPEG", (512, 256))
    assert len({answer.body for answer in answers}) == 4
    with ThreadPoolExecutor() as pool:  # at the same time, with the same results
        again = list(pool.map(lambda seed: post(address, prompt="a hall", seed=seed), (0, 1)))
    assert again == answers[:2]


def test_documented_requests_are_accepted(address: str) -> None:
    requests = [" ".join(words) for words in documented("serve.py") if words[0] == "curl"]
    assert len(requests) == 2
    for request in requests:
        found = re.search(r"http://127\.0\.0\.1:8000/panorama\?(\S+)", request)
        assert found is not None
        query = dict(part.split("=") for part in found[1].replace("+", " ").split("&")) | {"steps": 1}
        assert post(address, PHOTO if "--data-binary @data/photo.jpg" in request else b"", **query).status == 200


@pytest.mark.parametrize(
    ("status", "message", "photo", "query"),
    [
        (422, "Field required", b"", {}),
        (422, "at least 1 character", b"", {"prompt": ""}),
        (422, "at most 1000 characters", b"", {"prompt": "x" * 1001}),
        (422, "less than or equal to 100", b"", {"prompt": "a hall", "steps": 101}),
        (422, "greater than or equal to 0", b"", {"prompt": "a hall", "seed": -1}),
        (400, "shorten it", b"", {"prompt": "word " * 150}),
        (400, "not an image", b"no image", {"prompt": "a hall"}),
        (400, "truncated", PHOTO[:-3000], {"prompt": "a hall"}),
        (413, "send a smaller one", bytes(20_000_001), {"prompt": "a hall"}),
    ],
)
def test_errors_have_a_message(address: str, status: int, message: str, photo: bytes, query: dict[str, object]) -> None:
    answer = post(address, photo, **query)
    assert answer.status == status, answer
    assert message in str(json.loads(answer.body)["detail"])
