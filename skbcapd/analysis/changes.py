"""What is changed in packets on their way into another file, as the command line asks for it.

In: arguments, records. Out: changed records, and what there is to say about it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from skbcapd.analysis.offload import ChecksumFiller, Segmenter
from skbcapd.analysis.order import in_order
from skbcapd.analysis.privacy import FieldRemover, without_payload
from skbcapd.analysis.records import Record


class Changes:
    """The changes.

    Args:
        options: the command line; see cli.selecting.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._has_payload = options.payload == "all"
        self._is_sorted = options.sort
        self._segmenter = Segmenter(options.segment) if options.segment else None
        self._filler = ChecksumFiller() if options.fill_checksums else None
        self._remover = FieldRemover(options.drop) if options.drop else None

    def apply(self, records: Iterable[Record]) -> Iterable[Record]:
        """The changed records."""
        if self._is_sorted:
            records = in_order(records)
        if self._segmenter:
            records = self._segmenter.apply(records)
        if self._filler:
            records = self._filler.apply(records)
        if not self._has_payload:
            records = without_payload(records)
        if self._remover:
            records = self._remover.apply(records)
        return records

    def notes(self) -> Iterator[str]:
        """Lines for people, about what was not as they may expect."""
        if self._segmenter and self._segmenter.left:
            yield f"{self._segmenter.left} frames larger than the MTU were not cut: they have no known headers"
        if self._filler and self._filler.left:
            yield f"{self._filler.left} checksums were not computed: the frame is cut, or is neither TCP nor UDP"
        if self._remover and self._remover.foreign:
            yield f"{self._remover.foreign} comments of other programs removed, as their fields are not known"
