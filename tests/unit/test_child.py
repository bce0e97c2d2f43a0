"""A child process that works for the parent."""

from __future__ import annotations

import os
import socket

import pytest

from skbcapd.child import Child


def test_a_child_works_where_it_may_not_be_nice(monkeypatch: pytest.MonkeyPatch) -> None:
    """If system calls are filtered and the child cannot change its priority, it still does its
    work.
    """

    def refused(_increment: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "nice", refused)
    child = Child(lambda channel: channel.sendall(b"done"), socket.SOCK_STREAM, nice=10)
    assert child.channel.recv(10) == b"done"
    assert child.stderr() == ""
    child.close()
