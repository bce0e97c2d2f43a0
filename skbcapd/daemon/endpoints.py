"""The endpoints of a running capture: control socket, metrics port, metrics file.

In: settings, statistics. Out: a server for the event loop, and a file that is replaced every few
seconds.

The rule: an endpoint that cannot be opened is logged, and the capture runs without it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from skbcapd.config.kinds import address
from skbcapd.config.settings import Settings
from skbcapd.daemon.dumps import Dumps
from skbcapd.daemon.metrics import Metrics, Textfile
from skbcapd.daemon.server import Server, control, http
from skbcapd.daemon.statistics import Statistics
from skbcapd.daemon.viewers import Viewers
from skbcapd.errors import FileError

_LOG = logging.getLogger(__name__)


class Endpoints:
    """The endpoints that the settings ask for: control socket, metrics port, metrics file.

    An endpoint that cannot be opened is logged, and the capture runs without it.

    Args:
        settings: settings at the start.
        statistics: what the endpoints show.
        dumps: answers requests for dumps.
        viewers: take the clients that watch; closed here.

    Raises:
        UsageError: metrics are enabled and prometheus_client is not installed.
    """

    def __init__(self, settings: Settings, statistics: Statistics, dumps: Dumps, viewers: Viewers) -> None:
        self.server = Server()
        self._viewers = viewers
        self.server.serve_also(viewers)
        self._statistics = statistics
        self._textfile: Textfile | None = None
        if settings.control.socket != "none":
            with _warned():
                self.server.listen_unix(settings.control.socket, control(statistics.snapshot, dumps, viewers))
        wanted = settings.metrics
        if wanted.listen != "none":
            metrics = Metrics(statistics.snapshot, top=wanted.top)
            with _warned():
                page = http("/metrics", metrics.content_type, metrics.text)
                self.server.listen_tcp(address(wanted.listen), page)
        if wanted.textfile != "none":
            self._text = Metrics(statistics.snapshot, capture=Path(wanted.textfile).stem, top=wanted.top).text
            self._textfile = Textfile(wanted.textfile)

    def tick(self, seconds: int) -> bool:
        """Called after so many seconds; returns whether a client is connected."""
        self._statistics.tick(seconds)
        has_clients = self.server.tick()
        self._viewers.tick()
        if self._textfile:
            self._textfile.tick(self._text, seconds)
        return has_clients or self._viewers.is_watched

    def close(self) -> None:
        """Close all of them."""
        self.server.close()
        self._viewers.close()
        if self._textfile:
            self._textfile.close()


@contextlib.contextmanager
def _warned() -> Iterator[None]:
    try:
        yield
    except FileError as error:
        _LOG.warning("%s; the capture runs without it", error.message)
