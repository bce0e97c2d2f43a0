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
from collections.abc import Mapping
from pathlib import Path

from skbcapd.errors import UsageError

_HERE = Path(__file__).parent
_PLOTLY = "package_data/plotly.min.js"


def plotly() -> str:
    """The text of the charting library.

    Raises:
        UsageError: it is not installed.
    """
    found = importlib.util.find_spec("plotly")
    for place in (found.submodule_search_locations or ()) if found else ():
        path = Path(place) / _PLOTLY
        if path.is_file():
            return path.read_text("utf-8")
    raise UsageError(
        "report: the charting library plotly is not installed; expected its file " + _PLOTLY,
        "pip install 'skbcapd[report]'",
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
