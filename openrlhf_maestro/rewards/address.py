"""Where an outside scorer may be: never at a link-local address, where clouds hand out a machine's credentials."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from urllib.parse import urlsplit

from openrlhf_maestro.errors import RunError
from openrlhf_maestro.rewards.service import TransientError


def shown(url: str) -> str:
    """The address without credentials, query and fragment: what may stand in a log."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = f":{parts.port}" if parts.port is not None else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


async def refuse_link_local(name: str, url: str) -> None:
    """Resolve the host of `url`, on behalf of component `name`; to be called before each request.

    Raises:
        RunError: one of the host's addresses is link-local.
        TransientError: the host cannot be resolved.
    """
    parts = urlsplit(url)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise TransientError(f"{shown(url)}: the host cannot be resolved: {error.strerror}") from error
    for *_, address in found:
        if _is_link_local(str(address[0])):
            raise RunError(
                f"reward component {name}: {shown(url)} leads to {address[0]}, a link-local address, which is refused. "
                "Give the address of the scorer itself."
            )


def _is_link_local(text: str) -> bool:
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_link_local
