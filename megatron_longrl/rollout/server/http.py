"""The routes of a rollout server; see service.py."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from megatron_longrl.rollout.memory.shared import SharedMemory, is_shared_path
from megatron_longrl.rollout.server.guard import Guard, Refused, largest_body
from megatron_longrl.rollout.server.service import EngineThread, Line, RolloutServer, error_line


def serve(
    server: RolloutServer, engine: EngineThread, listening: socket.socket, token: str
) -> None:
    """Answer on a socket, in a thread of its own.

    Args:
        token: of those who may ask.
    """
    config = uvicorn.Config(
        Guard(build_app(server, engine), token),
        log_level="warning",
        lifespan="off",
        access_log=False,
        server_header=False,
    )
    run = uvicorn.Server(config).run
    threading.Thread(target=run, args=([listening],), name="http", daemon=True).start()


def build_app(server: RolloutServer, engine: EngineThread) -> FastAPI:
    """The routes. Whatever concerns the engine waits for its thread; /health does not."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    buckets: list[SharedMemory] = []

    async def run(function: Any, *args: Any) -> JSONResponse:
        try:
            await asyncio.wrap_future(engine.submit(function, *args))
        except Exception as error:
            return JSONResponse(error_line(error), status_code=500)
        return JSONResponse({})

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse(server.describe())

    @app.post("/shared")
    async def shared(request: Request) -> JSONResponse:
        asked = await request.json()
        told = await asyncio.to_thread(_says, str(asked["file"]), str(asked["text"]))
        return JSONResponse({"shared": told})

    @app.post("/generate")
    async def generate(request: Request) -> StreamingResponse:
        memory: SharedMemory | None = None
        if request.headers["content-type"] == "application/json":
            path = (await request.json())["file"]
            if not isinstance(path, str) or not is_shared_path(path):
                raise ValueError("the file is no shared memory")
        else:
            memory = await _received(request)
            path = memory.path
        return StreamingResponse(_lines(server, engine, path, memory), media_type="text/plain")

    @app.post("/bucket")
    async def bucket(request: Request) -> JSONResponse:
        if not buckets:
            raise ValueError("init_weight_transfer_engine comes first")
        with buckets[-1].map() as whole:
            position = 0
            async for piece in request.stream():
                if position + len(piece) > buckets[-1].nbytes:
                    raise Refused(413, f"the bucket has {buckets[-1].nbytes} bytes")
                whole[position : position + len(piece)] = piece
                position += len(piece)
        return JSONResponse({})

    @app.post("/reset_prefix_cache")
    async def reset_prefix_cache() -> JSONResponse:
        return await run(server.forget_prompts)

    @app.post("/init_weight_transfer_engine")
    async def init(request: Request) -> JSONResponse:
        info = (await request.json())["init_info"]
        size = info.get("nbytes", 0)
        if type(size) is not int or not 0 <= size <= largest_body():
            raise Refused(413, f"a bucket has at most {largest_body()} bytes")
        if "nbytes" in info and "path" not in info:
            buckets[:] = [SharedMemory(info["nbytes"])]
            info["path"] = buckets[-1].path
        return await run(server.init_weight_transfer_engine, info)

    @app.post("/start_weight_update")
    async def start() -> JSONResponse:
        return await run(server.start_weight_update)

    @app.post("/update_weights")
    async def update(request: Request) -> JSONResponse:
        return await run(server.update_weights, (await request.json())["update_info"])

    @app.post("/finish_weight_update")
    async def finish(request: Request) -> JSONResponse:
        return await run(server.finish_weight_update, (await request.json())["weight_version"])

    return app


async def _lines(
    server: RolloutServer, engine: EngineThread, path: str, memory: SharedMemory | None
) -> AsyncIterator[str]:
    """The answer to /generate; a client that hangs up ends the generation."""
    lines: asyncio.Queue[Line] = asyncio.Queue()
    loop, gone = asyncio.get_running_loop(), threading.Event()

    def tell(line: Line) -> None:
        loop.call_soon_threadsafe(lines.put_nowait, line)

    def end(future: Any) -> None:
        error = future.exception()
        tell(error_line(error) if error is not None else {"end": "done"})
        if memory is not None:
            memory.close()

    engine.submit(server.generate, path, tell, gone).add_done_callback(end)
    try:
        while True:
            line = await lines.get()
            yield json.dumps(line) + "\n"
            if "end" in line:
                return
    finally:
        gone.set()


async def _received(request: Request) -> SharedMemory:
    """The body, in shared memory, so that it is read like a file of this machine's trainer."""
    memory = SharedMemory(0)
    async for piece in request.stream():
        memory.write(piece)
    return memory


def _says(path: str, text: str) -> bool:
    """Whether a file in shared memory begins with a text. Nothing that could be waited for, as a
    pipe is, is read."""
    if not is_shared_path(path):
        return False
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = os.fstat(file)
        fits = stat.S_ISREG(status.st_mode) and status.st_size == len(text.encode())
        return fits and os.pread(file, status.st_size, 0) == text.encode()
    except OSError:
        return False
    finally:
        os.close(file)
