"""The HTTP client of every request that the gateway sends: to the identity provider and to receivers of webhooks.

Each request stands alone. Nothing of an answer is kept for the next request: no cookie, no redirect, no authentication
state. Loopback is reached directly; for every other host the environment may name a proxy.
"""

import os
import ssl
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.request import getproxies

import httpx2

from gateway.settings import Settings, SettingsError

LOOPBACK = ("*localhost", "127.0.0.0/8", "[::1]", "[::ffff:127.0.0.0]/104")
"""Patterns of httpx2 for the hosts of this machine; `*localhost` includes the names below it (RFC 6761, 6.3)."""

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
"""In lower case; each counts in upper case too. `NO_PROXY` needs no check: an entry that cannot be read is ignored."""

MAX_PORT = 65535


def http_client(*, over_tls: bool = True, **options: Any) -> httpx2.AsyncClient:
    """Return a client that keeps nothing of an answer. The caller sets the deadline of each exchange.

    Args:
        over_tls: Whether any URL is `https://`. Reading the certificates of the system takes 20 ms.
        options: Further arguments of `httpx2.AsyncClient`, such as `headers` and `limits`.

    """
    return httpx2.AsyncClient(
        verify=True if over_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        follow_redirects=False,
        # A policy that admits no domain. An endpoint that sets ever more cookies would refuse the request that
        # returns them, with 431.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        mounts=dict.fromkeys((f"all://{host}" for host in LOOPBACK), None),
        **{"timeout": None, **options},
    )


def refuse_unusable_proxies(settings: Settings) -> None:
    """Return if the proxies that the environment names can be used. Raises `SettingsError` that names the variable.

    A gateway that sends no HTTP requests ignores them.
    """
    if settings.development and not settings.every_webhook:
        return
    in_force = getproxies()
    if "*" in in_force.pop("no", "").replace(" ", "").split(","):
        return
    problems = [
        f"{name}: {problem}"
        for name, value in sorted(os.environ.items())
        # Of two spellings one is in force.
        if name.lower() in PROXY_VARIABLES and value and in_force.get(name.lower().removesuffix("_proxy")) == value
        if (problem := _problem_with(value))
    ]
    if problems:
        raise SettingsError("\n".join(problems))


def _problem_with(proxy: str) -> str | None:
    # Never the value: it may hold a password.
    try:
        url = httpx2.URL(proxy if "://" in proxy else f"http://{proxy}")
        if not url.host or (url.port or 0) > MAX_PORT:
            return "the proxy must have a host and a port, like http://proxy.example:3128"
        httpx2.AsyncHTTPTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), proxy=url)
    except ImportError:
        return "a SOCKS proxy needs the package socksio; install it, name an http:// proxy, or unset the variable"
    except (ValueError, httpx2.InvalidURL):
        return "the proxy must be an http://, https://, socks5:// or socks5h:// URL; correct or unset the variable"
    return None
