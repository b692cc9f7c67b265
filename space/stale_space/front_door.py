"""What every HTTP request passes before Gradio sees it: sizes, a full disk, and addresses that the server would fetch.

Gradio limits single uploaded files, but neither the size of other requests nor the sum of uploads; and it downloads
any URL that a client names in place of a file. A Space has no use for either.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


FETCHES = re.compile(r"/(file|proxy|stream)=\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)
"""Addresses by which a client asks the server to fetch something from elsewhere."""

URL = re.compile(r"\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)
UPLOAD_OVERHEAD = 64 * 1024
"""Bytes of an upload beside its file."""


class FrontDoor:
    """ASGI middleware.

    Args:
        app: what comes after it.
        body_bytes: most bytes of a request that is no upload.
        upload_bytes: most bytes of an upload.
        is_full: whether the disk has no room for another upload.
    """

    def __init__(self, app: ASGIApp, body_bytes: int, upload_bytes: int, is_full: Callable[[], bool]) -> None:
        self.app = app
        self.body_bytes = body_bytes
        self.upload_bytes = upload_bytes
        self.is_full = is_full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = None
        if FETCHES.search(scope["path"]):
            refusal = (404, "This server fetches nothing from elsewhere.")
        elif scope["method"] == "POST" and scope["path"].endswith("/upload"):
            refusal = self._upload_problem(scope)
        elif scope["method"] == "POST":
            body, refusal = await _body(scope, receive, self.body_bytes)
            refusal = refusal or _problem(body)
            receive = _replayed(body, receive)
        if refusal is not None:
            await PlainTextResponse(refusal[1], status_code=refusal[0])(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _upload_problem(self, scope: Scope) -> tuple[int, str] | None:
        """Uploads are not collected here, so their length must be told; the HTTP server holds them to it."""
        length, most = _told_length(scope), self.upload_bytes + UPLOAD_OVERHEAD
        if length is None:
            return 411, "An upload must say how long it is (Content-Length); use a browser or gradio_client."
        if length > most:
            return 413, f"The upload must have at most {self.upload_bytes} bytes, got {length}; send less."
        if self.is_full():
            return 507, "There is no room for uploads now; try again in a few minutes."
        return None


def _told_length(scope: Scope) -> int | None:
    told = dict(scope["headers"]).get(b"content-length", b"")
    return int(told) if told.isdigit() and len(told) < 20 else None


async def _body(scope: Scope, receive: Receive, most: int) -> tuple[bytes, tuple[int, str] | None]:
    """The whole body, collected, or why it is not taken."""
    refusal = (413, f"The request must have at most {most} bytes; send less.")
    if (_told_length(scope) or 0) > most:
        return b"", refusal
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > most:
            return b"", refusal
    return b"".join(parts), None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands over `body` first."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _problem(body: bytes) -> tuple[int, str] | None:
    """What is wrong with a body of JSON; other bodies are Gradio's to refuse."""
    if body[:1] not in (b"{", b"["):
        return None
    try:
        value = json.loads(body)
        names_url = _names_url(value)
    except (ValueError, RecursionError) as error:
        return 400, f"The request must be sound JSON, got {type(error).__name__}; write plain values."
    return (400, "Files must be uploaded, not named by their address.") if names_url else None


def _names_url(value: Any) -> bool:
    """Whether any `path` in `value` is an address rather than a file that has been uploaded."""
    if isinstance(value, dict):
        path = value.get("path")
        return (isinstance(path, str) and URL.match(path) is not None) or any(map(_names_url, value.values()))
    return isinstance(value, list) and any(map(_names_url, value))
