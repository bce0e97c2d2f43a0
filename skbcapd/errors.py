"""All errors that skbcapd raises.

    SkbcapdError                 base class; exit code 1
    ├── UsageError               the command line is wrong; exit code 2
    ├── ConfigError              the config file is wrong; exit code 2; has all problems
    ├── BtfError                 the kernel's type information is missing or not as expected
    ├── KernelError              the kernel rejects what a capture needs: program, hook, map, capability
    ├── SegmentError             the shared memory has content that the kernel program cannot have written
    ├── FileError                a capture file or directory cannot be used
    └── FleetError               an index, the table of a fleet, or its storage cannot be used
        └── UnreachableError     a storage on another host does not answer, or with an error

A message says place, what was found and what was expected; the hint says what to do.
Lost packets are counters, never exceptions. Only `__main__` turns an error into an exit code.
"""

from __future__ import annotations

from dataclasses import dataclass


class SkbcapdError(Exception):
    """Base class: a message, and a hint on how to solve the problem.

    Args:
        message: place, found, expected; one line.
        hint: what the reader can do; one line, may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  (hint) {self.hint}" if self.hint else self.message


class UsageError(SkbcapdError):
    """The command line is wrong."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem in a config file: place, key, found, expected, hint."""

    path: str
    line: int
    key: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}: " if self.line else f"{self.path}: "
        key = f"{self.key}: " if self.key else ""
        hint = f" (hint: {self.hint})" if self.hint else ""
        return f"{place}{key}{self.message}{hint}"


class ConfigError(SkbcapdError):
    """The config file cannot be used; `problems` has all problems, in the order of the file."""

    exit_code = 2

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class BtfError(SkbcapdError):
    """The kernel's BTF is missing, unreadable, or lacks a type that capture needs."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(
            message, hint or "boot another kernel of your distribution, and report this one: its BTF is not as expected"
        )


class KernelError(SkbcapdError):
    """The kernel rejects, or does not have, what a capture needs."""


class SegmentError(SkbcapdError):
    """The shared memory has content that the kernel program cannot have written."""


class FileError(SkbcapdError):
    """A capture file or its directory cannot be used."""


class FleetError(SkbcapdError):
    """An index, the table of a fleet, or its storage cannot be used."""


class UnreachableError(FleetError):
    """A storage on another host does not answer, or with an error: one more try of another file is of no use."""
