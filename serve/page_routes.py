"""The page at /: its files as they are in serve/page, for browsers."""

import hashlib
from importlib.resources import files
from typing import Final

from fastapi import FastAPI, Request, Response

TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""By suffix; the machine's own table may call a script plain text, and then browsers do not run it."""

HEADERS: Final = {
    # Nothing but what this server ships; blob: are the user's own photos, which never leave the page but to /v1.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'",
    "Cache-Control": "no-cache",  # kept, but asked for anew by its ETag: a new release shows at once
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_page_routes(api: FastAPI) -> None:
    """GET / and /page/*; read once, so that a page and its parts are of one release."""
    for file in sorted(files("serve").joinpath("page").iterdir(), key=lambda one: one.name):
        suffix = "." + file.name.rpartition(".")[2]
        if suffix in TYPES:
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            _add_file(api, path, file.read_bytes(), TYPES[suffix])


def _add_file(api: FastAPI, path: str, content: bytes, media_type: str) -> None:
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = HEADERS | {"ETag": etag}

    async def answer(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if etag in (one.strip().removeprefix("W/") for one in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    api.add_api_route(path, answer, methods=["GET", "HEAD"], include_in_schema=False)
