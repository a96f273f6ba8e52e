"""Serve an engine at an address until Ctrl-C."""

import contextlib
import socket
import sys

from reso_llm.generation.text_engine import TextEngine
from reso_llm.server.app import create_app
from reso_llm.server.guard import check_address
from run_core.terminal import report

DRAIN_SECONDS = 1
"""Time that open answers get to end after Ctrl-C."""
MAX_CONNECTIONS = 256
SWITCH_SECONDS = 0.0005
"""Time that the desk's thread may hold the interpreter while the event loop waits for it."""


def serve(
    engine: TextEngine,
    name: str = "reso",
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
) -> None:
    """Serve the page and the API; the address is printed once it can be opened.

    Port 0 takes a free one. Raises ValueError as `check_address` and without the extra
    `web`, OSError for a port that is taken.
    """
    check_address(host, token)
    try:
        import fastapi  # noqa: F401 - what `create_app` needs, refused before the port is taken
        import uvicorn
    except ImportError:
        raise ValueError('the server needs the extra web: pip install "reso-llm[web]"') from None
    listening = listening_socket(host, port)
    config = uvicorn.Config(
        create_app(engine, name, token),
        access_log=False,
        log_level="warning",
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    report(f"{name} is at {page_address(host, listening.getsockname()[1], token)}")
    sys.setswitchinterval(SWITCH_SECONDS)
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        uvicorn.Server(config).run(sockets=[listening])


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens. OSError for a port that is taken.

    asyncio sends small answers at once only where the protocol is named; else each waits 40 ms for
    an acknowledgement.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(MAX_CONNECTIONS)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from None
    return listening


def page_address(host: str, port: int, token: str | None) -> str:
    """The address of the page; a token stands behind #, which browsers send to nobody."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"#token={token}" if token else "")
