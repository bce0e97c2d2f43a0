"""The apt sources of the machine, in both formats of apt."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.kernels import KernelUnavailableError, Source, find_source


def write(directory: Path, name: str, text: str) -> None:
    """Write a file of apt sources below `directory`."""
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_deb822(tmp_path: Path) -> None:
    """A deb822 file gives mirror and key; comments, disabled stanzas and the security archive are
    skipped.
    """
    write(
        tmp_path,
        "sources.list.d/debian.sources",
        "Types: deb\nURIs: http://security.example/s\nSuites: trixie-security\nComponents: main\n\n"
        "Enabled: no\nTypes: deb\nURIs: http://off.example/\nSuites: trixie\nComponents: main\n\n"
        "Types: deb deb-src\n# a comment inside\nURIs: http://mirror.example/debian/\n"
        "Suites: trixie trixie-updates\nComponents: main contrib\nSigned-By: /usr/share/keyrings/k.gpg\n",
    )
    assert find_source(tmp_path) == Source("http://mirror.example/debian/", "/usr/share/keyrings/k.gpg")


def test_embedded_key(tmp_path: Path) -> None:
    """A key in the deb822 field itself is copied with its continuation lines."""
    key = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQ\n -----END PGP PUBLIC KEY BLOCK-----"
    write(
        tmp_path,
        "sources.list.d/a.sources",
        f"Types: deb\nURIs: http://m.example/\nSuites: bookworm\nComponents: main\nSigned-By:{key}\n",
    )
    assert find_source(tmp_path) == Source("http://m.example/", key)


def test_one_line(tmp_path: Path) -> None:
    """The one-line format gives mirror and key; comments, source packages and other archives are
    skipped.
    """
    write(
        tmp_path,
        "sources.list",
        "# deb http://commented.example bookworm main\n"
        "deb-src http://source.example bookworm main\n"
        "deb http://other.example/x stable/amd64 main\n"
        "deb [arch=amd64 signed-by=/k.gpg] https://mirror.example/debian bookworm main non-free-firmware # yes\n",
    )
    assert find_source(tmp_path) == Source("https://mirror.example/debian", "/k.gpg")


def test_no_source(tmp_path: Path) -> None:
    """Without a source of the main archive the error names the searched directory."""
    with pytest.raises(KernelUnavailableError, match=str(tmp_path)):
        find_source(tmp_path)
