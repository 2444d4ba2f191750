"""The studio's backend puts pictures into the workers' input bucket."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from examples.studio.input_bucket import MAX_BYTES, MAX_SIDE_PX
from tests.pictures import animated, encoded
from tests.service.conftest import END_S, wait_until
from tests.studio.conftest import studio_at
from tests.studio.drawings import picture
from worker import embedded
from worker.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from examples.studio.input_bucket import InputBucket
    from worker.config.settings import Settings


def send(studio: str, data: bytes, content_type: str = "image/png") -> tuple[int, Any]:
    """Send a picture; gives status and answer."""
    headers = {"Content-Type": content_type}
    request = urllib.request.Request(f"{studio}inputs", data, headers)
    return answer(request)


def answer(request: urllib.request.Request) -> tuple[int, Any]:
    """Status and answer of a request; a picture's are its bytes and its type."""
    try:
        with urllib.request.urlopen(request, timeout=END_S) as reply:
            kind, data = reply.headers.get_content_type(), reply.read()
            return reply.status, json.loads(data) if kind.endswith("json") else (data, kind)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def get(url: str) -> tuple[int, Any]:
    return answer(urllib.request.Request(url))


@pytest.fixture
def backend(
    redis_url: str, namespace: str, environment: dict[str, str], tmp_path: Path
) -> Iterator[str]:
    """A backend with a bucket."""
    with studio_at(redis_url, namespace, tmp_path, others=environment) as studio:
        yield studio


@pytest.mark.parametrize(("name", "ending"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_a_worker_finds_what_was_sent(
    backend: str, settings: Settings, name: str, ending: str
) -> None:
    """The key is random; with it a worker reads the same bytes, and so does the page."""
    data, kind = picture(name), f"image/{name.lower()}"
    keys = []
    for _ in range(2):
        code, told = send(backend, data, kind)
        assert code == 201
        keys.append(told["key"])
        assert re.fullmatch(rf"studio/[0-9a-f]{{32}}\.{ending}", told["key"])
        assert Storage(settings).get_input(told["key"], "image") == data
        assert get(f"{backend}inputs/{told['key']}") == (200, (data, kind))
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("data", "content_type", "what"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", "no picture that workers read"),
        (picture("GIF"), "image/png", "no picture that workers read"),
        (picture()[:-30], "image/png", "can't be decoded"),
        (picture("JPEG", (400, 400))[:-600], "image/jpeg", "can't be decoded"),
        (picture(size=(MAX_SIDE_PX + 1, 1)), "image/png", f"has {MAX_SIDE_PX + 1} x 1 pixels"),
        (picture(), "text/plain", "content type text/plain"),
        (b"", "image/png", "no picture that workers read"),
        (animated("PNG"), "image/png", "is animated"),
        (animated("WEBP"), "image/webp", "is animated"),
        (encoded(Image.new("I;16", (8, 8)), "PNG"), "image/png", "is gray with 16 bits"),
    ],
    ids=[
        "svg",
        "gif",
        "cut png",
        "cut jpeg",
        "too wide",
        "text",
        "empty",
        "animated png",
        "animated webp",
        "gray of 16 bits",
    ],
)
def test_what_is_no_fit_picture_is_refused(
    backend: str, bucket: InputBucket, data: bytes, content_type: str, what: str
) -> None:
    """422, which says what it is and what would be taken; nothing is stored."""
    code, told = send(backend, data, content_type)
    assert code == 422
    (fault,) = told["faults"]
    assert fault["where"] == "image"
    assert what in fault["what"]
    assert fault["limit"]
    assert bucket.delete_older_than(timedelta(0)) == 0


def test_a_file_that_is_too_large_is_not_read_to_its_end(backend: str) -> None:
    """The backend answers or closes after the limit, and goes on serving."""
    try:
        code, told = send(backend, bytes(2 * MAX_BYTES))
    except urllib.error.URLError:  # it closed the connection while this was sent
        pass
    else:
        assert (code, told["faults"][0]["what"]) == (422, "is too large")
    assert get(f"{backend}inputs") == (200, {"side_px": 64})


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (f"studio/{'0' * 32}.png", 404),
        (f"studio/{'0' * 32}.safetensors", 422),
        ("caller-1/start.png", 422),
        (f"studio/../studio/{'0' * 32}.png", 422),
        (f"studio/%2e%2e/studio/{'0' * 32}.png", 422),
    ],
)
def test_only_the_studios_own_pictures_can_be_read(backend: str, key: str, code: int) -> None:
    """Not other callers' inputs, whose names may be guessed; 404 where there is none any more."""
    assert get(f"{backend}inputs/{key}")[0] == code


def test_a_bucket_that_is_away_is_503(
    redis_url: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """Storing and reading say so; the endpoints for tasks go on."""
    away = f"http://{embedded.LOOPBACK}:{embedded.free_port()}"
    others = environment | {"SAG_S3_ENDPOINT_URL": away}
    with studio_at(redis_url, "sag", tmp_path, others=others) as studio:
        for code, told in (send(studio, picture()), get(f"{studio}inputs/studio/{'0' * 32}.png")):
            assert code == 503
            assert away in told["detail"]
        assert get(f"{studio}queue")[0] == 200
        log = tmp_path / "studio.log"
        wait_until(lambda: "old pictures are not deleted" in log.read_text())
        assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        ({"SAG_S3_BUCKET": "no_bucket_is_called_so!"}, "settings of S3 are wrong"),
    ],
)
def test_what_s3_refuses_is_502(
    redis_url: str, environment: dict[str, str], tmp_path: Path, wrong: dict[str, str], what: str
) -> None:
    """With its words: to send the same again would not help."""
    with studio_at(redis_url, "sag", tmp_path, others=environment | wrong) as studio:
        for code, told in (send(studio, picture()), get(f"{studio}inputs/studio/{'0' * 32}.png")):
            assert code == 502
            assert what in told["detail"]
        log = tmp_path / "studio.log"
        wait_until(lambda: "old pictures are not deleted" in log.read_text())
        assert "Traceback" not in log.read_text()


def test_without_a_bucket_no_picture_is_taken(redis_url: str, tmp_path: Path) -> None:
    """404 with the file that helps."""
    with studio_at(redis_url, "sag", tmp_path) as studio:
        for code, told in (send(studio, picture()), get(f"{studio}inputs")):
            assert code == 404
            assert "README" in told["detail"]
