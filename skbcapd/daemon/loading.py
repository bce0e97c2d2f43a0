"""Loads the kernel program for settings; meanwhile it imports the rest of skbcapd.

In: settings. Out: the loaded program.

The rule: a start takes as long as the compiler and the verifier, and they need neither the event loop nor an output.
So this module imports only what the child that loads the program needs, and commands import `app` after it.
"""

from __future__ import annotations

import importlib
import logging
import signal

from skbcapd.capture.plan import compile_filters
from skbcapd.config.settings import Settings
from skbcapd.filter import packet_filter
from skbcapd.kernel import limits, requirements
from skbcapd.kernel import program as kernel
from skbcapd.kernel.abi import CAPTURE_MAX, Geometry

_LOG = logging.getLogger(__name__)
_REST = ("skbcapd.daemon.app", "skbcapd.pcapng.writer")

HELD_BACK = {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""Signals that end a process without a handler; see `hold_back_signals`."""


def hold_back_signals() -> None:
    """Block the signals that ask a running capture for something, until a Service handles them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)


def load_program(settings: Settings) -> kernel.Program:
    """Load the kernel program; compile it if it is not cached.

    Raises:
        KernelError: this kernel cannot capture, or rejects the program; or a limit of the process
            or its cgroup is too small.
        BtfError: the type information of the kernel is missing or unknown.
    """
    hooks = kernel.choose_hooks(settings.attach, settings.directions, settings.transmit)
    requirements.refuse_hopeless()
    limits.check_descriptors()
    geometry = Geometry.for_buffer(settings.buffer.size)
    if warning := limits.check_memory(geometry, settings.files.ring if settings.files.mode == "ring" else 0):
        _LOG.warning("%s", warning)
    programs = compile_filters(settings)
    filters = packet_filter.source(programs, CAPTURE_MAX) if programs else None
    return kernel.load(
        *(geometry, hooks, settings.attach, settings.transmit, filters, _import_rest),
        dropped=settings.drops,
    )


def _import_rest() -> None:
    """Import what the capture needs, which takes 0.1 s, while the loader works."""
    for name in _REST:
        importlib.import_module(name)
