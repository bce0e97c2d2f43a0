"""What a capture should not contain when it is given to others: payload, fields of comments.

In: records. Out: the same records without them. A record keeps its frame's true length.

The rules: what is not known to be a header is payload; a comment that is in no grammar of ours may say anything, so it
is removed as a whole; a field that is removed is also removed from option 8, and from the list of cut fields.

Source: docs/format.md for the grammar of the comment.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from skbcapd.analysis.records import Record, join
from skbcapd.attribution.fields import FIELDS
from skbcapd.frames import headers
from skbcapd.lru import Bounded
from skbcapd.pcapng.blocks import EPB_PROCESSID_THREADID, OPT_COMMENT
from skbcapd.pcapng.comment import COMMENT_MAX, CommentError, comment, parse
from skbcapd.pcapng.reader import walk_options

DROPPABLE = (*FIELDS, "via")
"""Fields that can be removed."""

_KNOWN_MAX = 1 << 14  # comments, none longer than COMMENT_MAX


def without_payload(records: Iterable[Record]) -> Iterator[Record]:
    """Cut each frame behind the last header that is known."""
    for time_ns, interface, stamp, wire_len, frame, options in records:
        end = headers.read(frame, interface.link_type).payload
        yield time_ns, interface, stamp, wire_len, frame[:end], options


class FieldRemover:
    """Removes fields of comments.

    Args:
        names: of DROPPABLE.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._known: Bounded[bytes, bytes | None] = Bounded(_KNOWN_MAX)
        self.foreign = 0
        """Packets whose comment was removed as a whole, as it is none of ours."""

    def apply(self, records: Iterable[Record]) -> Iterator[Record]:
        """The records without these fields."""
        for time_ns, interface, stamp, wire_len, frame, options in records:
            yield time_ns, interface, stamp, wire_len, frame, self._options(options)

    def _options(self, options: bytes) -> bytes:
        pairs = []
        for code, value in walk_options(options, "<"):
            kept: bytes | None = value
            if code == OPT_COMMENT:
                kept = self._comment(value)
            elif code == EPB_PROCESSID_THREADID:
                kept = self._process(value)
            if kept is not None:
                pairs.append((code, kept))
        return join(pairs)

    def _comment(self, text: bytes) -> bytes | None:
        """A comment without the fields; None if nothing is left."""
        if len(text) > 2 * COMMENT_MAX:
            self.foreign += 1
            return None
        if text not in self._known:
            self._known[text] = self._reduced(text)
        found = self._known[text]
        self.foreign += found is None and self._is_foreign(text)
        return found

    @staticmethod
    def _is_foreign(text: bytes) -> bool:
        try:
            parse(text.decode("latin-1"))
        except CommentError:
            return True
        return False

    def _reduced(self, text: bytes) -> bytes | None:
        try:
            fields = [(key, value) for key, value in parse(text.decode("latin-1")) if key not in self._names]
        except CommentError:
            return None
        left = []
        for key, value in fields:
            if key == "cut":
                names = [name for name in value.split(b",") if name.decode("latin-1") not in self._names]
                if names:
                    left.append((key, b",".join(names)))
            else:
                left.append((key, value))
        return comment(left).encode() if left else None

    def _process(self, value: bytes) -> bytes | None:
        """Option 8 without the ids that are removed; None if none is left."""
        if len(value) != 8:
            return None
        tgid, tid = struct.unpack("<II", value)
        tgid, tid = (0 if "tgid" in self._names else tgid), (0 if "pid" in self._names else tid)
        return struct.pack("<II", tgid, tid) if tgid or tid else None
