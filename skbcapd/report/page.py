"""Writes the page of a report: one HTML file, which needs no network.

In: what `collect` has collected. Out: HTML with data, styles, our script and the charting library
Plotly. A browser draws the charts.

The rules not to break: the page loads nothing (its Content-Security-Policy forbids it). Data is
JSON in an element that no browser executes, with each `<` escaped; the script inserts it as text,
never as HTML.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from skbcapd.errors import FileError, UsageError
from skbcapd.text_safety import escaped_bytes

_HERE = Path(__file__).parent
_PLOTLY = "package_data/plotly.min.js"


def plotly(file: Path | None = None) -> str:
    """The text of the charting library.

    Args:
        file: plotly.min.js; None: that of the Python package.

    Raises:
        FileError: the file cannot be read.
        UsageError: the package is not installed.
    """
    if file is not None:
        try:
            return file.read_text("utf-8")
        except (OSError, ValueError) as error:
            said = escaped_bytes(os.fsencode(file))
            raise FileError(f"{said}: {getattr(error, 'strerror', 'no UTF-8')}; expected plotly.min.js") from None
    found = importlib.util.find_spec("plotly")
    for place in (found.submodule_search_locations or ()) if found else ():
        path = Path(place) / _PLOTLY
        if path.is_file():
            return path.read_text("utf-8")
    raise UsageError(
        f"report: found no charting library, expected {_PLOTLY} of the Python package plotly",
        f"in a virtual environment: {sys.executable} -m pip install plotly; otherwise: --plotly FILE (docs/report.md)",
    )


def page(title: str, data: Mapping[str, object], library: str) -> str:
    """The page.

    Args:
        title: one line of text.
        data: see `Collector.result`.
        library: text of the charting library.
    """
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "TITLE": title.replace("&", "&amp;").replace("<", "&lt;"),
        "STYLE": (_HERE / "page.css").read_text(),
        "DATA": text,
        "LIBRARY": library.replace("</script", "<\\/script"),
        "SCRIPT": (_HERE / "page.js").read_text(),
    }
    template = (_HERE / "page.html").read_text()
    pieces = template.split("%%")
    # Every second piece is the name of a part.
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))
