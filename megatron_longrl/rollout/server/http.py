"""The routes of a rollout server; see server.py."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from megatron_longrl.rollout.memory.shared import SharedMemory, is_shared_path
from megatron_longrl.rollout.server.service import EngineThread, Line, RolloutServer, error_line


def serve(server: RolloutServer, engine: EngineThread, listening: socket.socket) -> None:
    """Answer on a socket, in a thread of its own."""
    config = uvicorn.Config(
        build_app(server, engine), log_level="warning", lifespan="off", access_log=False
    )
    run = uvicorn.Server(config).run
    threading.Thread(target=run, args=([listening],), name="http", daemon=True).start()


def build_app(server: RolloutServer, engine: EngineThread) -> FastAPI:
    """The routes. Whatever concerns the engine waits for its thread; /health does not."""
    app = FastAPI()
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
        return JSONResponse({"shared": _says(asked["file"], asked["text"])})

    @app.post("/generate")
    async def generate(request: Request) -> StreamingResponse:
        memory: SharedMemory | None = None
        if request.headers["content-type"] == "application/json":
            path = (await request.json())["file"]
            if not is_shared_path(path):
                raise ValueError(f"{path} is no shared memory")
        else:
            memory = await _received(request)
            path = memory.path
        return StreamingResponse(_lines(server, engine, path, memory), media_type="text/plain")

    @app.post("/bucket")
    async def bucket(request: Request) -> JSONResponse:
        with buckets[-1].map() as whole:
            position = 0
            async for piece in request.stream():
                whole[position : position + len(piece)] = piece
                position += len(piece)
        return JSONResponse({})

    @app.post("/reset_prefix_cache")
    async def reset_prefix_cache() -> JSONResponse:
        return await run(server.forget_prompts)

    @app.post("/init_weight_transfer_engine")
    async def init(request: Request) -> JSONResponse:
        info = (await request.json())["init_info"]
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
    try:
        return is_shared_path(path) and Path(path).read_text() == text
    except (OSError, ValueError):
        return False
