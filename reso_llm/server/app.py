"""The web application: routes to the desk, and the page's files."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from reso_llm.decoding.controllers import controllers_by_name
from reso_llm.generation.text_engine import TextEngine
from reso_llm.server.answers import Answer, ChatForm, CompletionForm, Form
from reso_llm.server.asked import Asked, chat_asked, completion_asked, read_body
from reso_llm.server.desk import Desk, Ended, Text
from reso_llm.server.errors import ApiError
from reso_llm.server.guard import Guard, limited_body
from reso_llm.server.mind import Mind

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""The media type of a file of the page."""


class Gone(Exception):
    """The client has disconnected."""


class Texts:
    """The texts of one request at the desk; their events arrive in the event loop."""

    def __init__(self, desk: Desk, asked: Asked) -> None:
        loop, self._events = asyncio.get_running_loop(), asyncio.Queue()

        def handed_to(index: int) -> Any:
            return lambda event: loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        prompts = [prompt for prompt in asked.prompts for _ in range(asked.num_each)]
        self.texts = [
            Text(
                prompt,
                asked.options,
                None if asked.seed is None else asked.seed + index,
                handed_to(index),
                asked.goal,
                asked.without,
            )
            for index, prompt in enumerate(prompts)
        ]
        self._num_open = len(self.texts)
        desk.submit(self.texts)

    async def next(self) -> tuple[int, Any] | None:
        """The next event and the number of its text; None when all have ended. ApiError."""
        if not self._num_open:
            return None
        index, event = await self._events.get()
        if isinstance(event, ApiError):
            raise event
        self._num_open -= isinstance(event, Ended)
        return index, event

    def drop(self) -> None:
        """Nobody wants them any more."""
        for text in self.texts:
            text.drop()


def create_app(engine: TextEngine, name: str, token: str | None = None, **limits: int) -> Any:
    """The application (FastAPI) that serves an engine under a model's name.

    limits: `num_slots` and `max_waiting` of the `Desk`. The application owns the engine until its
    lifespan ends. ImportError without the extra `web`.
    """
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from starlette.exceptions import HTTPException

    desk = Desk(engine, **limits)
    mind = Mind(desk, name)
    controllers = controllers_by_name(engine.srb)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk = desk

    app.add_middleware(Guard, token=token)

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        sentence = f"{request.method} {request.url.path[:80]}: {error.detail}"
        return JSONResponse(ApiError(error.status_code, sentence).body, error.status_code)

    async def answer(request: Request, form: Form, asked: Asked) -> Response:
        mind.check_model(asked.model)
        texts, written = Texts(desk, asked), Answer(form, asked, name)
        try:
            first = await until_gone(request, texts.next())
            if not asked.stream:
                event = first
                while event is not None:
                    written.texts[event[0]].add(event[1])
                    event = await until_gone(request, texts.next())
                return JSONResponse(written.whole())
        except BaseException:
            texts.drop()
            raise
        return StreamingResponse(stream(texts, written, first), media_type="text/event-stream")

    async def stream(texts: Texts, written: Answer, event: Any) -> AsyncIterator[str]:
        try:
            while event is not None:
                for chunk in written.chunks(*event):
                    yield server_sent(chunk)
                event = await texts.next()
            if written.asked.with_usage:
                yield server_sent(written.usage_chunk())
        except ApiError as error:  # after the first token the status is sent already
            yield server_sent(error.body)
        finally:
            texts.drop()
        yield "data: [DONE]\n\n"

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = read_body(await limited_body(request))
        return await answer(request, ChatForm, chat_asked(body, controllers))

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        body = read_body(await limited_body(request))
        return await answer(request, CompletionForm, completion_asked(body, controllers))

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [mind.model]})

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        mind.check_model(model)
        return JSONResponse(mind.model)

    @app.get("/reso/mind")
    async def about() -> Response:
        return JSONResponse(mind.about)

    @app.get("/reso/memories")
    async def memories() -> Response:
        return JSONResponse(await mind.memories())

    @app.post("/reso/memories")
    async def remember(request: Request) -> Response:
        return JSONResponse(await mind.remember(read_body(await limited_body(request))))

    @app.post("/reso/recall")
    async def recall(request: Request) -> Response:
        return JSONResponse(await mind.recall(read_body(await limited_body(request))))

    for file in files("reso_llm.server").joinpath("page").iterdir():
        path = "/" if file.name == "index.html" else f"/{file.name}"
        media_type = MEDIA_TYPES[PurePath(file.name).suffix]
        app.get(path)(page_file(Response, file.read_bytes(), media_type))
    return app


def page_file(response: Any, content: bytes, media_type: str) -> Any:
    """The route of one file of the page."""

    async def serve_file() -> Any:
        return response(content, media_type=media_type)

    return serve_file


def server_sent(value: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n"


async def until_gone(request: Any, awaited: Awaitable[Any]) -> Any:
    """What is awaited; raises `Gone` when the client disconnects first."""
    work = asyncio.ensure_future(awaited)
    watch = asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Gone
        return work.result()
    finally:
        for task in (work, watch):
            task.cancel()


async def disconnected(request: Any) -> None:
    """Return when the client has disconnected; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
