"""Addresses of rollout servers: HOST:PORT."""

from __future__ import annotations

import socket

from megatron_longrl.errors import UserError


def listen(address: str) -> socket.socket:
    """A socket bound to HOST:PORT; port 0 takes a free one.

    Raises:
        UserError: it is no address of this machine, or taken.
    """
    host, port = split_address(address)
    try:
        return socket.create_server((host, port), backlog=64)
    except OSError as error:
        raise UserError(
            f"cannot listen on {address}: {error.strerror}; give another --rollout-server-address"
        ) from error


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--rollout-server-address {address!r} is not HOST:PORT")
    return host.strip("[]"), int(port)
