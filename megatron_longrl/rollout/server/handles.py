"""Shared memory on its way to a rollout server: descriptors, not names.

Beside its HTTP port a server has a Unix socket. A trainer of the same machine and user sends it the
descriptor of its memory (``SCM_RIGHTS``, unix(7)), and gets a handle, a random name that requests
carry. So no request can make the server open a file that it has not been given. A handle means
something for as long as the connection on which it was given is open.

The socket's address is abstract (unix(7)): it is no file, and nothing is left of it when a server
is killed. File modes do not protect it, so the kernel's word for the peer's user (``SO_PEERCRED``)
does, on both sides, and the token.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import os
import secrets
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from megatron_longrl.errors import UserError
from megatron_longrl.memory.shared import SharedMemory

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 32
MOST_HANDLES = 16
"""A trainer holds one for weights, and one for each generation that is under way."""
SECONDS = 10.0
"""Seconds within which a connection must have sent its descriptor."""
_SECONDS_BETWEEN_KNOCKS = 0.05
_LARGEST_MESSAGE = 1024
_CREDENTIALS = struct.Struct("3i")
"""Process, user, group (``struct ucred``)."""


@dataclass
class _Connection:
    """A connection that holds one trainer's memory."""

    socket: socket.socket
    began: float = field(default_factory=time.monotonic)
    handle: str = ""
    memory: SharedMemory | None = None


class Handles:
    """The memory that a server has been given, by handles.

    Args:
        token: the token of the clients that may hand over files.
    """

    def __init__(self, token: str) -> None:
        self.address = f"longrl-{secrets.token_hex(16)}"
        """Name of the socket, without the zero byte before it."""
        self._token = token.encode()
        self._largest = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._lock = threading.Lock()
        self._memories: dict[str, SharedMemory] = {}
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind("\0" + self.address)
        self._listening.listen(MOST_CONNECTIONS)
        self._listening.setblocking(False)

    def start(self) -> None:
        """Take descriptors, in a separate thread."""
        threading.Thread(target=self._run, name="handles", daemon=True).start()

    def open(self, handle: object) -> SharedMemory:
        """The memory of a handle, held on its own: it lives on when the handle ends.

        Raises:
            ValueError: there is none.
        """
        with self._lock:
            memory = self._memories.get(handle) if isinstance(handle, str) else None
            if memory is None:
                raise ValueError("the handle is not known: its connection has ended")
            return memory.duplicate()

    def _run(self) -> None:
        connections: dict[int, _Connection] = {}
        with selectors.DefaultSelector() as selector:
            selector.register(self._listening, selectors.EVENT_READ)

            def close(connection: _Connection) -> None:
                selector.unregister(connection.socket)
                del connections[connection.socket.fileno()]
                self._forget(connection)

            while True:
                for key, _ in selector.select(1.0):
                    if key.fileobj is self._listening:
                        for new in self._accepted(connections, close):
                            connections[new.socket.fileno()] = new
                            selector.register(new.socket, selectors.EVENT_READ)
                    elif key.fd in connections and not self._take(connections[key.fd]):
                        close(connections[key.fd])
                late = time.monotonic() - SECONDS
                for connection in [*connections.values()]:
                    if not connection.handle and connection.began < late:
                        close(connection)

    def _accepted(self, connections: dict[int, _Connection], close: Any) -> list[_Connection]:
        """A new connection, of this user; where there are too many, the one that has sent nothing
        for longest has to go."""
        try:
            accepted, _ = self._listening.accept()
        except OSError:
            time.sleep(0.1)  # no descriptors are left: do not ask at once again
            return []
        if _user(accepted) != os.geteuid():
            accepted.close()
            return []
        accepted.setblocking(False)
        if len(connections) >= MOST_CONNECTIONS:
            idle = [connection for connection in connections.values() if not connection.handle]
            if not idle:
                accepted.close()
                return []
            close(min(idle, key=lambda connection: connection.began))
        return [_Connection(accepted)]

    def _take(self, connection: _Connection) -> bool:
        """Read from a connection; whether it stays open."""
        files: list[int] = []
        try:
            message, files, flags, _ = socket.recv_fds(
                connection.socket, _LARGEST_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC
            )
            if not message or connection.handle:
                return False
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError("the message is too long, or brings several descriptors")
            asked = json.loads(message)
            token, nbytes = asked["token"], asked["nbytes"]
            if not hmac.compare_digest(str(token).encode(errors="replace"), self._token):
                raise ValueError("the token is missing or another one")
            if not files:
                raise ValueError("the message brings no descriptor")
            if type(nbytes) is not int:
                raise ValueError("nbytes is no whole number")
            memory = SharedMemory.of_another(files[0], nbytes)
            connection.handle = self._remember(memory)
            connection.memory, files = memory, []
            _tell(connection.socket, handle=connection.handle)
            return True
        except BlockingIOError:  # its number was another's in this round
            return True
        except ConnectionError:
            return False
        except Exception as error:  # whatever a message contains
            reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
            logger.warning("refused memory: %r", reason[:300])
            _tell(connection.socket, error=reason[:300])
            return False
        finally:
            for file in files:
                os.close(file)

    def _remember(self, memory: SharedMemory) -> str:
        with self._lock:
            if len(self._memories) >= MOST_HANDLES:
                raise ValueError(f"there are {MOST_HANDLES} handles already")
            if memory.nbytes + sum(m.nbytes for m in self._memories.values()) > self._largest:
                raise ValueError("the handles would have more bytes than the machine")
            handle = secrets.token_hex(16)
            self._memories[handle] = memory
            return handle

    def _forget(self, connection: _Connection) -> None:
        with self._lock:
            self._memories.pop(connection.handle, None)
        if connection.memory is not None:
            connection.memory.close()
        connection.socket.close()


class SentMemory:
    """Memory that a server may use until :meth:`close`."""

    def __init__(self, connection: socket.socket, handle: str) -> None:
        self._connection = connection
        self.handle = handle

    def close(self) -> None:
        """End the handle. Idempotent."""
        self._connection.close()


def reach(address: str, seconds: float) -> socket.socket | None:
    """A connection to a server's socket; None where it is on another machine, or of another
    user.

    Args:
        address: :attr:`Handles.address`.
        seconds: the time that any operation on it may take.

    Raises:
        OSError: it does not answer.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(seconds)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                connection.connect("\0" + address)
                break
            except BlockingIOError:  # many wait to be accepted
                if time.monotonic() > deadline:
                    raise
                time.sleep(_SECONDS_BETWEEN_KNOCKS)
        if _user(connection) == os.geteuid():
            return connection
    except ConnectionRefusedError:
        pass
    except BaseException:
        connection.close()
        raise
    connection.close()
    return None


def send(connection: socket.socket, token: str, memory: SharedMemory) -> SentMemory:
    """Give a server memory, over a connection of :func:`reach`, which is used up.

    Raises:
        UserError: the server refuses it.
        OSError: it does not answer.
    """
    try:
        message = json.dumps({"token": token, "nbytes": memory.nbytes}).encode()
        socket.send_fds(connection, [message], [memory.fileno()])
        received = connection.recv(_LARGEST_MESSAGE)
        if not received:
            raise ConnectionResetError("the server has closed the connection")
        answer = json.loads(received)
        if "error" in answer:
            raise UserError(f"the rollout server takes no shared memory: {answer['error']}")
        return SentMemory(connection, answer["handle"])
    except BaseException:
        connection.close()
        raise


def _user(connection: socket.socket) -> int:
    """Return the user of the process at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(credentials)[1]
    return user


def _tell(connection: socket.socket, **values: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads
        connection.send(json.dumps(values).encode())
