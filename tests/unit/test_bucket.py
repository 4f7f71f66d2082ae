"""The bucket client: what is there, what is not, and why it cannot be read; on disk and from a small S3 server."""

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from bintally.errors import AccessDeniedError, SourceError, SourceNotFoundError, SourceUnreachableError
from bintally.source_config import DataConfig
from data.bucket import Bucket, open_bucket

Answer = tuple[int, bytes]
StartServer = Callable[[Callable[[str], Answer]], str]

ACCESS_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
NO_SUCH_BUCKET = b"<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>"
NO_SUCH_KEY = b"<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>"
SLOW_DOWN = b"<Error><Code>SlowDown</Code></Error>"


def listing(*keys: str, more: bool = False) -> bytes:
    """A page of ListObjectsV2."""
    contents = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key in keys
    )
    token = "<NextContinuationToken>next</NextContinuationToken>" if more else ""
    return (
        f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}</ListBucketResult>"
    ).encode()


def on_disk(folder: Path) -> Bucket:
    return open_bucket(DataConfig(source=f"file://{folder}"))


def on_server(url: str, source: str = "s3://bins", *, max_retries: int = 3) -> Bucket:
    return open_bucket(DataConfig(source=source, endpoint_url=url), max_retries=max_retries)


def get(bucket: Bucket, key: str) -> bytes | None:
    return asyncio.run(bucket.get(key))


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# On disk


def test_ids_are_sorted_strings_of_the_photos_alone(bucket_dir: Callable[..., Path]) -> None:
    junk = {"bin-images/readme.txt": b"", "bin-images/00009.png": b"", "00008.jpg": b"", "metadata/00007.json": b"{}"}
    folder = bucket_dir({"00523": 1, "523": 2, "00001": 0, "100000": 3}, broken=junk)
    assert on_disk(folder).list_ids() == ["00001", "00523", "100000", "523"]


def test_an_object_comes_whole_and_an_absent_one_is_none(bucket_dir: Callable[..., Path]) -> None:
    folder = bucket_dir({"00001": 4})
    assert get(on_disk(folder), "metadata/00001.json") == (folder / "metadata/00001.json").read_bytes()
    assert get(on_disk(folder), "metadata/00002.json") is None
    assert get(on_disk(folder), "nowhere/00002.json") is None


def test_an_empty_object_is_not_an_absent_one(bucket_dir: Callable[..., Path]) -> None:
    assert get(on_disk(bucket_dir({}, broken={"bin-images/00001.jpg": b""})), "bin-images/00001.jpg") == b""


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=f"no folder {tmp_path}/absent"):
        on_disk(tmp_path / "absent")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceNotFoundError, match="file"):
        on_disk(tmp_path / "file")


def test_a_folder_that_appears_later_is_found(tmp_path: Path, bucket_dir: Callable[..., Path]) -> None:
    with pytest.raises(SourceNotFoundError):
        on_disk(tmp_path / "bucket")
    assert on_disk(bucket_dir({"00001": 1})).list_ids() == ["00001"]


@pytest.mark.parametrize("keys", [[], ["metadata/00001.json"], ["bin-images/00001.txt"]])
def test_a_folder_without_photos(bucket_dir: Callable[..., Path], keys: list[str]) -> None:
    folder = bucket_dir({}, broken=dict.fromkeys(keys, b"{}") | {"other/x": b""})
    with pytest.raises(SourceNotFoundError, match=f"no bin-images/.*under file://{folder}"):
        on_disk(folder).list_ids()


@pytest.mark.parametrize("name", ["with space", "ümlaut", "with#hash", "with?mark", "100%"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "bin-images").mkdir(parents=True)
    (tmp_path / name / "bin-images" / "00001.jpg").write_bytes(b"")
    assert on_disk(tmp_path / name).list_ids() == ["00001"]


@pytest.mark.parametrize("name", ["with space", "with#hash", "with?mark", "100%25"])
def test_a_percent_encoded_url_is_understood(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    (folder / "bin-images").mkdir(parents=True)
    (folder / "bin-images" / "00001.jpg").write_bytes(b"")
    assert open_bucket(DataConfig(source=folder.as_uri())).list_ids() == ["00001"]


# From a server


def test_pages_are_followed_and_progress_is_told(s3_server: StartServer) -> None:
    def answer(path: str) -> Answer:
        if "continuation-token" in path:
            return 200, listing("bin-images/00003.jpg")
        return 200, listing("bin-images/00002.jpg", "bin-images/00001.jpg", more=True)

    seen: list[int] = []
    assert on_server(s3_server(answer)).list_ids(on_progress=seen.append) == ["00001", "00002", "00003"]
    assert seen[-1] == 3


def test_a_prefix_goes_before_the_keys(s3_server: StartServer) -> None:
    paths: list[str] = []

    def answer(path: str) -> Answer:
        paths.append(path)
        if "list-type" in path:
            return 200, listing("some/where/bin-images/00001.jpg")
        return 200, b"{}"

    bucket = on_server(s3_server(answer), "s3://bins/some/where/")
    assert bucket.list_ids() == ["00001"]
    assert get(bucket, "metadata/00001.json") == b"{}"
    assert paths[0].startswith("/bins?")
    assert "prefix=some%2Fwhere%2Fbin-images" in paths[0]
    assert paths[1] == "/bins/some/where/metadata/00001.json"


@pytest.mark.parametrize("prefix", ["with space", "with#hash", "with?mark"])
def test_a_prefix_may_have_any_name(s3_server: StartServer, prefix: str) -> None:
    paths: list[str] = []

    def answer(path: str) -> Answer:
        paths.append(path)
        return 200, listing(f"{prefix}/bin-images/00001.jpg")

    on_server(s3_server(answer), f"s3://bins/{prefix}").list_ids()
    assert parse_qs(urlsplit(paths[0]).query)["prefix"] == [f"{prefix}/bin-images/"]


def test_without_an_endpoint_it_is_the_one_of_the_environment_or_of_aws(
    s3_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "at AWS us-east-1" in repr(open_bucket(DataConfig(source="s3://aft-vbi-pds")))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server(lambda _: (200, listing("bin-images/00001.jpg"))))
    assert open_bucket(DataConfig(source="s3://bins")).list_ids() == ["00001"]


def test_an_absent_object_is_none(s3_server: StartServer) -> None:
    assert get(on_server(s3_server(lambda _: (404, NO_SUCH_KEY))), "metadata/00001.json") is None


@pytest.mark.parametrize("status", [401, 403])
def test_a_forbidden_listing_is_denied(s3_server: StartServer, status: int) -> None:
    url = s3_server(lambda _: (status, ACCESS_DENIED))
    with pytest.raises(AccessDeniedError, match=f"access to s3://bins at {url} is denied"):
        on_server(url).list_ids()


def test_a_forbidden_listing_is_not_asked_for_again(s3_server: StartServer) -> None:
    paths: list[str] = []

    def answer(path: str) -> Answer:
        paths.append(path)
        return 403, ACCESS_DENIED

    with pytest.raises(SourceError, match="403 Forbidden"):
        on_server(s3_server(answer)).list_ids()
    assert len(paths) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_forbidden_object_is_denied(s3_server: StartServer, status: int) -> None:
    with pytest.raises(AccessDeniedError, match="s3://bins"):
        get(on_server(s3_server(lambda _: (status, ACCESS_DENIED))), "metadata/00001.json")


def test_no_such_bucket(s3_server: StartServer) -> None:
    url = s3_server(lambda _: (404, NO_SUCH_BUCKET))
    with pytest.raises(SourceNotFoundError, match=f"s3://bins at {url}"):
        on_server(url).list_ids()


def test_a_bucket_without_photos(s3_server: StartServer) -> None:
    with pytest.raises(SourceNotFoundError, match=r"no bin-images/\*\.jpg under s3://bins"):
        on_server(s3_server(lambda _: (200, listing()))).list_ids()


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_stumbles_twice_is_asked_again(s3_server: StartServer, status: int) -> None:
    replies = iter([(status, SLOW_DOWN), (status, SLOW_DOWN), (200, listing("bin-images/00001.jpg"))])
    assert on_server(s3_server(lambda _: next(replies))).list_ids() == ["00001"]


def test_an_object_is_asked_for_again_as_well(s3_server: StartServer) -> None:
    replies = iter([(503, SLOW_DOWN), (503, SLOW_DOWN), (200, b"photo")])
    assert get(on_server(s3_server(lambda _: next(replies))), "bin-images/00001.jpg") == b"photo"


def test_an_object_is_asked_for_more_often_than_a_minute_of_503_lasts(
    s3_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.stores.FIRST_WAIT_S", 0.001)
    replies = iter([*[(503, SLOW_DOWN)] * 30, (200, b"photo")])
    data = DataConfig(source="s3://bins", endpoint_url=s3_server(lambda _: next(replies)))
    assert get(open_bucket(data, max_wait_s=0.002), "bin-images/00001.jpg") == b"photo"


def test_a_server_that_only_stumbles_is_given_up(s3_server: StartServer) -> None:
    paths: list[str] = []

    def answer(path: str) -> Answer:
        paths.append(path)
        return 503, SLOW_DOWN

    url = s3_server(answer)
    with pytest.raises(SourceUnreachableError, match=url):
        on_server(url, max_retries=2).list_ids()
    assert len(paths) == 3


@pytest.mark.parametrize("what", ["list", "get"])
def test_a_closed_port_is_told_within_seconds(what: str) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    bucket = on_server(url, max_retries=1)
    started = time.monotonic()
    with pytest.raises(SourceUnreachableError, match=f"s3://bins at {url}"):
        bucket.list_ids() if what == "list" else get(bucket, "metadata/00001.json")
    assert time.monotonic() - started < 5


def test_an_answer_that_is_no_listing(s3_server: StartServer) -> None:
    url = s3_server(lambda _: (200, b"<html>please log in to this wifi</html>"))
    with pytest.raises((SourceUnreachableError, SourceNotFoundError), match=url):
        on_server(url, max_retries=1).list_ids()


def test_one_client_serves_all_calls_with_the_same_config(s3_server: StartServer) -> None:
    url = s3_server(lambda _: (404, NO_SUCH_KEY))
    assert on_server(url) is on_server(url)
    assert on_server(url) is not on_server(url, "s3://others")


def test_messages_are_one_line(s3_server: StartServer) -> None:
    with pytest.raises(SourceUnreachableError) as caught:
        on_server(s3_server(lambda _: (400, b"<Error>\n<Code>Odd</Code>\n</Error>"))).list_ids()
    assert "\n" not in str(caught.value)
