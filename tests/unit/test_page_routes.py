"""The routes of the page: whole, cached by content, closed to everything else."""

import asyncio
import re

import httpx
import pytest
from fastapi import FastAPI

from serve.page_routes import add_page_routes

FILES = {
    "/": "text/html",
    "/page/app.js": "text/javascript",
    "/page/records.js": "text/javascript",
    "/page/server.js": "text/javascript",
    "/page/view.js": "text/javascript",
    "/page/style.css": "text/css",
    "/page/icon.svg": "image/svg+xml",
}


def ask(path: str, method: str = "GET", **headers: str) -> httpx.Response:
    api = FastAPI()
    add_page_routes(api)

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://server") as client:
            return await client.request(method, path, headers={key.replace("_", "-"): headers[key] for key in headers})

    return asyncio.run(send())


@pytest.mark.parametrize("path", FILES)
def test_each_file_has_its_type_and_policy(path: str) -> None:
    answer = ask(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == FILES[path]
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "*" not in policy


def test_what_the_files_name_is_served_from_here() -> None:
    text = "".join(ask(path).text for path in FILES)
    named = re.findall(r'(?:src|href)="(page/[^"]+)"', text)
    named += [f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', text)]
    assert {f"/{name}" for name in named} == set(FILES) - {"/"}
    assert re.findall(r"""(?:https?:)?//[a-z][^\s"'<>]*""", text.replace("http://www.w3.org/2000/svg", "")) == []


def test_a_known_file_is_not_sent_again() -> None:
    etag = ask("/page/app.js").headers["etag"]
    for known in (etag, f'"other", W/{etag}'):
        answer = ask("/page/app.js", if_none_match=known)
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert ask("/page/app.js", if_none_match='"other"').status_code == 200
    assert ask("/page/style.css").headers["etag"] != etag


def test_head_has_no_body() -> None:
    answer = ask("/", "HEAD")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == len(ask("/").content)


@pytest.mark.parametrize("path", ["/page/", "/page/index.html", "/page/../settings.py", "/page/%2e%2e/settings.py"])
def test_nothing_else_is_served(path: str) -> None:
    assert ask(path).status_code == 404
