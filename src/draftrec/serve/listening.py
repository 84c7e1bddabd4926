"""Sockets that listen: made so that a taken port is one sentence, told as addresses."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from draftrec.errors import DraftrecError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, at an IPv6 address too. Raises DraftrecError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
        # Head and body of an answer are two small packets, and connections inherit this: otherwise
        # the second one waits for the client's (delayed) acknowledgement of the first, some 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        reason = reason.partition(" (while")[0].lower()
        raise DraftrecError(
            f"port {port} of {host} cannot be had ({reason}); choose another --port or --host"
        ) from error


def address(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Can nobody but this machine reach it? A name may resolve to anything."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
