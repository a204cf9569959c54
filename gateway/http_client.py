"""HTTP client of every request that the gateway sends: to the identity provider and to receivers of webhooks.

The client is stateless: it stores no cookies or authentication state, and follows no redirects. It connects to loopback
addresses directly. For every other host the environment may name a proxy.
"""

import os
import ssl
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.request import getproxies

import httpx2

from gateway.settings import Settings, SettingsError

LOOPBACK = ("*localhost", "127.0.0.0/8", "[::1]", "[::ffff:127.0.0.0]/104")
"""httpx2 patterns for the hosts of this machine; `*localhost` includes its subdomains (RFC 6761, 6.3)."""

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
"""Names in lower case; upper case is accepted too. `NO_PROXY` needs no check: invalid entries are ignored."""

MAX_PORT = 65535


def http_client(*, over_tls: bool = True, **options: Any) -> httpx2.AsyncClient:
    """Return a stateless client without a timeout. The caller sets the deadline of each exchange.

    Args:
        over_tls: Whether any URL is `https://`. If not, the system's certificates are not loaded, which takes 20 ms.
        options: Further arguments of `httpx2.AsyncClient`, such as `headers` and `limits`.

    """
    return httpx2.AsyncClient(
        verify=True if over_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        follow_redirects=False,
        # The policy accepts no cookies. An endpoint that sets more and more cookies would answer 431 to a request
        # that returns them.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        mounts=dict.fromkeys((f"all://{host}" for host in LOOPBACK), None),
        **{"timeout": None, **options},
    )


def refuse_unusable_proxies(settings: Settings) -> None:
    """Return if the proxies in the environment are usable. Raises `SettingsError`, which names the variable.

    A gateway that sends no HTTP requests does not check them.
    """
    if settings.development and not settings.every_webhook:
        return
    in_force = getproxies()
    if "*" in in_force.pop("no", "").replace(" ", "").split(","):
        return
    problems = [
        f"{name}: {problem}"
        for name, value in sorted(os.environ.items())
        # If both spellings are set, only one is in force.
        if name.lower() in PROXY_VARIABLES and value and in_force.get(name.lower().removesuffix("_proxy")) == value
        if (problem := _problem_with(value))
    ]
    if problems:
        raise SettingsError("\n".join(problems))


def _problem_with(proxy: str) -> str | None:
    # The message never quotes the value: it may contain a password.
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
