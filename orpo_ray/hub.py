"""Whether the Hugging Face Hub is in reach, asked before it is asked for anything.

Without a network huggingface_hub tries each of a model's files six times, 23 s a file, and has no setting against that
but its offline mode. In that mode what its cache holds is found, and what it lacks is told, at once.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

_OFFLINE = "HF_HUB_OFFLINE"
_SECONDS = 5.0
"""How long a connection may take."""
_PORTS = {"http": 80, "https": 443}
_own = threading.Event()
"""Set while the offline mode is this module's, which ends it when the network is back, and not a person's."""


def unreachable() -> str:
    """Empty where the Hub, or the proxy before it, takes connections, or a person has set the offline mode.

    Else what is to be said where the cache lacks what is looked for; and until a later call finds the Hub, this
    process, and those it starts, read the cache alone.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE and not _own.is_set():
        return ""
    url = urlsplit(constants.ENDPOINT)
    host = url.hostname or ""
    proxy = None if proxy_bypass(host) else getproxies().get(url.scheme)
    way = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else url
    why = _refused(way.hostname or "", way.port or _PORTS.get(way.scheme, 443))
    _set_offline(bool(why))
    if not why:
        return ""
    over = f" over the proxy {way.hostname}" if proxy else ""
    return f"{host} cannot be reached{over} ({why}), and the cache here lacks it; check the network, or give a folder"


def _refused(host: str, port: int) -> str:
    """Why no connection comes about, or empty. Asked twice: a name server may miss one question."""
    why = ""
    for pause in (0.0, 0.5):
        time.sleep(pause)
        try:
            socket.create_connection((host, port), timeout=_SECONDS).close()
        except OSError as error:
            why = error.strerror or str(error)
        else:
            return ""
    return why


def _set_offline(offline: bool) -> None:
    """In the environment, for what is imported or started later, and in what is imported already."""
    from huggingface_hub import constants

    if offline == _own.is_set():
        return
    if offline:
        _own.set()
        os.environ[_OFFLINE] = "1"
    else:
        _own.clear()
        os.environ.pop(_OFFLINE, None)
    for module in (constants, getattr(sys.modules.get("datasets"), "config", None)):
        if module is not None:
            setattr(module, _OFFLINE, offline)
