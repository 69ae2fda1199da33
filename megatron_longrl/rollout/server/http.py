"""The routes of a rollout server; see service.py."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from megatron_longrl.errors import UserError
from megatron_longrl.memory.shared import SharedMemory
from megatron_longrl.memory.tensor_file import LENGTH, check_beginning
from megatron_longrl.rollout.server.connections import BoundedProtocol
from megatron_longrl.rollout.server.guard import Guard, Refused
from megatron_longrl.rollout.server.handles import Handles
from megatron_longrl.rollout.server.lease import BEAT_SECONDS, RUN_HEADER, Lease
from megatron_longrl.rollout.server.service import EngineThread, RolloutServer, error_line
from megatron_longrl.rollout.server.wire import Line

Endpoint = Callable[[Request], Awaitable[Response]]


def serve(
    server: RolloutServer, engine: EngineThread, listening: socket.socket, token: str
) -> None:
    """Answer on a socket, and take shared memory on another, in separate threads.

    Args:
        token: the token of the clients that may send requests.
    """
    handles = Handles(token)
    handles.start()
    config = uvicorn.Config(
        Guard(build_routes(server, engine, handles), token),
        http=BoundedProtocol,
        ws="none",
        # Its warnings are of those who have no token, and nothing bounds their number.
        log_config=None,
        log_level="error",
        lifespan="off",
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    run = uvicorn.Server(config).run
    threading.Thread(target=run, args=([listening],), name="http", daemon=True).start()


def build_routes(server: RolloutServer, engine: EngineThread, handles: Handles) -> Router:
    """Build the routes. Whatever concerns the engine waits for its thread; /health does not.

    The guard answers the errors that a route raises.
    """
    routes = Routes(server, engine, handles)
    post = {
        "/generate": routes.generate,
        "/reset_prefix_cache": routes.reset_prefix_cache,
        "/init_weight_transfer_engine": routes.init_weight_transfer_engine,
        "/bucket": routes.fill_bucket,
        "/start_weight_update": routes.start_weight_update,
        "/update_weights": routes.update_weights,
        "/finish_weight_update": routes.finish_weight_update,
    }
    return Router(
        [
            Route("/health", routes.health, methods=["GET"]),
            Route("/lease", routes.hold_lease, methods=["POST"]),
            *(Route(p, routes.leased(route), methods=["POST"]) for p, route in post.items()),
        ],
        redirect_slashes=False,
    )


class Routes:
    """The handlers of requests."""

    def __init__(self, server: RolloutServer, engine: EngineThread, handles: Handles) -> None:
        self._server, self._engine, self._handles = server, engine, handles
        self._lease = Lease()
        self._bucket: SharedMemory | None = None
        """The bucket of a trainer on another machine, which fills it by requests."""

    async def health(self, request: Request) -> JSONResponse:
        """Describe the served model."""
        return JSONResponse({**self._server.describe(), "socket": self._handles.address})

    def leased(self, route: Endpoint) -> Endpoint:
        """A route that answers no other trainer than the one that holds the lease."""

        async def answer(request: Request) -> Response:
            await self._lease.check(request.headers.get(RUN_HEADER))
            return await route(request)

        return answer

    async def hold_lease(self, request: Request) -> StreamingResponse:
        """The lease, until the client hangs up: a line that says whether it has got it, and then an
        empty line now and again."""
        run = (await request.json())["run"]
        return StreamingResponse(self._signs_of_life(run), media_type="text/plain")

    async def _signs_of_life(self, run: object) -> AsyncIterator[str]:
        try:
            async with self._lease.held(run):
                yield "{}\n"
                while True:
                    await asyncio.sleep(BEAT_SECONDS)
                    yield "\n"
        except (Refused, ValueError) as error:
            yield json.dumps({"error": str(error)}) + "\n"

    async def generate(self, request: Request) -> StreamingResponse:
        """A generation in shared memory, or in the body; a line for each response."""
        if _is_json(request):
            memory = self._handles.open((await request.json())["handle"])
        else:
            memory = await _received(request)
        return StreamingResponse(self._lines(memory), media_type="text/plain")

    async def init_weight_transfer_engine(self, request: Request) -> JSONResponse:
        """A bucket in shared memory, or one to be filled by requests, or what NCCL needs."""
        info = (await request.json())["init_info"]
        if "handle" in info:
            with closing(self._handles.open(info["handle"])) as memory:
                return await self._run(self._server.connect_bucket, memory)
        if "nbytes" in info:
            return await self._run(self._make_bucket, info["nbytes"])
        return await self._run(self._server.connect_nccl, info)

    def _make_bucket(self, nbytes: object) -> None:
        memory = self._server.make_bucket(nbytes)
        old, self._bucket = self._bucket, memory
        if old is not None:
            old.close()

    async def fill_bucket(self, request: Request) -> JSONResponse:
        """The bytes of a bucket."""
        bucket = self._bucket
        if bucket is None:
            raise ValueError("init_weight_transfer_engine comes first")
        if _length(request) > bucket.nbytes:
            raise Refused(413, f"the bucket has {bucket.nbytes} bytes")
        with bucket.map() as whole:
            position = 0
            async for piece in request.stream():
                whole[position : position + len(piece)] = piece
                position += len(piece)
        return JSONResponse({})

    async def reset_prefix_cache(self, request: Request) -> JSONResponse:
        """Forget prompts."""
        return await self._run(self._server.reset_prefix_cache)

    async def start_weight_update(self, request: Request) -> JSONResponse:
        """See :class:`RolloutServer`."""
        return await self._run(self._server.start_weight_update)

    async def update_weights(self, request: Request) -> JSONResponse:
        """See :class:`RolloutServer`."""
        return await self._run(self._server.update_weights, (await request.json())["update_info"])

    async def finish_weight_update(self, request: Request) -> JSONResponse:
        """See :class:`RolloutServer`."""
        version = (await request.json())["weight_version"]
        return await self._run(self._server.finish_weight_update, version)

    async def _run(self, function: Callable[..., None], *args: Any) -> JSONResponse:
        try:
            await asyncio.wrap_future(self._engine.submit(function, *args))
        except Refused:
            raise
        except Exception as error:
            status = 400 if isinstance(error, ValueError | UserError) else 500
            return JSONResponse(error_line(error), status_code=status)
        return JSONResponse({})

    async def _lines(self, memory: SharedMemory) -> AsyncIterator[str]:
        """The answer to /generate; a client that hangs up ends the generation."""
        lines: asyncio.Queue[Line] = asyncio.Queue()
        loop, gone = asyncio.get_running_loop(), threading.Event()

        def send_line(line: Line) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, line)

        def end(future: Any) -> None:
            memory.close()
            if not future.cancelled():
                error = future.exception()
                send_line(error_line(error) if error is not None else {"end": "done"})

        try:
            future = self._engine.submit(self._server.generate, memory.path, send_line, gone)
        except Refused as refusal:
            memory.close()
            yield json.dumps(error_line(refusal)) + "\n"
            return
        future.add_done_callback(end)
        try:
            while True:
                line = await lines.get()
                yield json.dumps(line) + "\n"
                if "end" in line:
                    return
        finally:
            gone.set()
            future.cancel()  # where it has not begun


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("application/json")


def _length(request: Request) -> int:
    """Return the length of the body, which h11 enforces."""
    return int(request.headers.get("content-length", "0"))


async def _received(request: Request) -> SharedMemory:
    """The body, in shared memory, so that it is read like that of this machine's trainer."""
    memory, beginning, size = SharedMemory(0), b"", _length(request)
    try:
        async for piece in request.stream():
            memory.write(piece)
            if len(beginning) <= LENGTH:
                beginning += piece[: LENGTH + 1]
                check_beginning(beginning, size)
    except BaseException:
        memory.close()
        raise
    return memory
