"""How an outside scorer is called: never at a link-local address, where clouds hand out a machine's credentials."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx

from openrlhf_maestro.errors import RunError
from openrlhf_maestro.rewards.service import TransientError


def client_options() -> dict[str, Any]:
    """Of an httpx client: no redirects, no proxy, no ~/.netrc. So what was checked is what is asked."""
    # The context is made here because it follows SSL_CERT_FILE, and a client that trusts no variables would not.
    return {"follow_redirects": False, "trust_env": False, "verify": httpx.create_ssl_context()}


async def refuse_link_local(owner: str, url: str) -> None:
    """Resolve the host of `url`, on behalf of `owner`; to be called before each request.

    Raises:
        RunError: one of the host's addresses is link-local, or the host is no name at all.
        TransientError: the host cannot be resolved.
    """
    parts = urlsplit(url)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise TransientError(f"{url}: the host cannot be resolved: {error.strerror}") from error
    except UnicodeError as error:
        raise RunError(f"{owner}: {url}: the host is no name that can be resolved: {error}.") from error
    for *_, address in found:
        if _is_link_local(str(address[0])):
            raise RunError(
                f"{owner}: {url} leads to {address[0]}, a link-local address, which is refused. "
                "Give the address of the scorer itself."
            )


def _is_link_local(text: str) -> bool:
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_link_local
