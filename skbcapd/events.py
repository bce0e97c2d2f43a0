"""Kinds of log messages: the MESSAGE_ID of each kind in the journal.

Out: `extra` for a call of `logging`: the MESSAGE_ID, and a field for each value.

The rule not to break: a MESSAGE_ID never changes and never moves to another kind of message: people
filter by it (`journalctl MESSAGE_ID=...`).

Source: systemd.journal-fields(7).
"""

from __future__ import annotations

from enum import Enum


class Event(Enum):
    """A kind of message: its MESSAGE_ID."""

    STARTED = "df8147c4c8f245a4a420a0cc620a7e28"
    STOPPED = "9bc90034b26f494e8dcfd4ff32f0c584"
    DROPPED = "4e1428ab077f4c12a9704ae347954c3a"
    RELOADED = "0d8a9b1f7c5e4f0e9a6b35c1b1f4a7d2"
    NOT_RELOADED = "5b7e2f64a3f84f0b8c1d90e7d63a2c18"
    WARNING = "a1b067a4075a4faab2e7dae46c3fa986"
    NOTICE = "6f0c2d3a94c14f5c8ad05b1e2f7c9b64"
    FAILED = "c67fa5e5dc9b4538849724a2c1ebc9c1"

    def extra(self, **fields: object) -> dict[str, str]:
        """The `extra` of a log record of this kind.

        Args:
            fields: values by name, in lower case; `file` becomes SKBCAPD_FILE in the journal.

        Returns:
            The value for `extra=` of a call of `logging`.
        """
        return {"MESSAGE_ID": self.value} | {f"SKBCAPD_{name.upper()}": str(value) for name, value in fields.items()}
