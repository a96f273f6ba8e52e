"""The guard: who may ask, and how much.

A web page of anybody can send requests to a server on the same machine, so without a token the
Host header must name this machine, which a rebound DNS name does not, and an Origin must be the
server's own. With a token every request to the API shows it; the page's files are public.
"""

import asyncio
import hmac
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from reso_llm.server.errors import ApiError

MAX_BODY = 256 * 1024
"""Bytes of a body that are read."""
MAX_DRAINED = 16 * 1024 * 1024
"""Bytes of a body that is too long that are thrown away, so that its sender hears of it."""
BODY_SECONDS = 20
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
PROTECTED = ("/v1/", "/reso/")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def check_address(host: str, token: str | None) -> None:
    """ValueError for a host that others can reach, without a token; and for a short token."""
    if token is None and host not in LOOPBACK:
        raise ValueError(
            f"host = {host!r}: others can reach it, so give a token too; "
            f"without one expected {', '.join(sorted(LOOPBACK))}"
        )
    if token is not None and (len(token) < 16 or not token.isascii() or not token.isprintable()):
        raise ValueError("token: expected at least 16 printable ASCII characters")


class Guard:
    """ASGI middleware: checks every request, and adds HEADERS to every answer."""

    def __init__(self, app: Any, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":  # the lifespan; there are no web sockets
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message = message | {"headers": [*message.get("headers", []), *added]}
            await send(message)

        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        try:
            check_request(scope["path"], headers, self.token)
        except ApiError as error:
            await refuse_request(error, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)


async def refuse_request(error: ApiError, send: Any) -> None:
    """Answer a request with an error alone."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(error.body).encode()})


def check_request(path: str, headers: Mapping[str, str], token: str | None) -> None:
    """ApiError 401 or 403 for a request that may not ask."""
    host = headers.get("host", "")
    if token is None and _name(host) not in LOOPBACK:
        raise ApiError(403, f"Host {host[:80]!r} is not this machine: use 127.0.0.1 or localhost")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise ApiError(403, "a request of another web page is refused")
    if token is not None and path.startswith(PROTECTED):
        shown = headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(shown.encode(), token.encode()):
            raise ApiError(401, "the token is missing or wrong: send Authorization: Bearer TOKEN")


def _name(host: str) -> str:
    """The host of a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def limited_body(request: Any) -> bytes:
    """The body of a request. ApiError 413 where it is too long, 408 where it does not come."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _body(request)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS} s") from None


async def _body(request: Any) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= MAX_BODY:
            parts.append(part)
        elif size > MAX_DRAINED:
            break
    if size > MAX_BODY:
        raise ApiError(413, f"the body has more than {MAX_BODY:,} bytes")
    return b"".join(parts)
