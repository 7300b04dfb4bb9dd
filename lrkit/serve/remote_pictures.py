"""Pictures by address: refused, unless their host was allowed. Torch-free.

Place in the pipeline: `--pictures-from HOST` -> `Remote`, the `fetch` of `read_request`.

Only https, only the hosts that were named, no redirects: a client must not make the server ask its own network.
"""

import re
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from lrkit.errors import DataError, UserError, one_line, shown
from lrkit.pictures.input import MAX_FILE_BYTES

_SECONDS = 20
_HOST = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


class Remote:
    """Fetches from some hosts."""

    def __init__(self, hosts: Sequence[str] = ()) -> None:
        """`hosts` by name, as "images.example.org"; none: nothing is fetched.

        Raises:
            UserError: that is no name of a host.
        """
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise UserError(f"{shown(host, 80)} is no name of a host; give one such as images.example.org")
        self._hosts = {host.lower() for host in hosts}
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __call__(self, url: str) -> bytes:
        """The bytes behind an address.

        Raises:
            DataError: it may not be fetched, or cannot.
        """
        parts = urlsplit(url)
        if parts.scheme != "https" or (parts.hostname or "") not in self._hosts or parts.port not in (None, 443):
            allowed = f", or https from {', '.join(sorted(self._hosts))}" if self._hosts else ""
            raise DataError(
                f"the picture is {shown(url, 80)}, which this server does not fetch; send a data URL{allowed}"
            )
        try:
            with self._opener.open(url, timeout=_SECONDS) as found:
                content: bytes = found.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:
            raise DataError(
                f"the picture {shown(url, 80)} cannot be fetched ({one_line(error)}); send a data URL"
            ) from None
        if len(content) > MAX_FILE_BYTES:
            raise DataError(f"the picture {shown(url, 80)} is above {MAX_FILE_BYTES:,} bytes; send a smaller one")
        return content


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *given: Any, **more: Any) -> None:
        """None: a redirect becomes an error."""
        return None
