"""The reference config file and the JSON Schema, written from the table of settings.

In: `settings.ROWS`. Out: the texts of etc/skbcapd.yaml and etc/skbcapd.schema.json; a test compares
the files.
"""

from __future__ import annotations

import json
import textwrap

from skbcapd.config.kinds import ListOf
from skbcapd.config.settings import ROWS, Records, Row, object_schema

_HEADER = """\
# yaml-language-server: $schema=skbcapd.schema.json
# Settings of skbcapd: every key, with its default value. A key that is missing has its default value.
# On the command line, --set KEY=VALUE overrides this file: --set buffer.size=256MiB --set directions=out,in
"""


def reference() -> str:
    """The reference file.

    Returns:
        The text of etc/skbcapd.yaml: every key with its meaning, range and default.
    """
    text, section = _HEADER, ""
    for key, row in ROWS.items():
        prefix, _, name = key.rpartition(".")
        default = f"[{row.default}]" if isinstance(row.kind, ListOf | Records) else row.default or '""'
        indent = "  " if prefix else ""
        if prefix != section:
            text += f"\n{prefix}:"
            section = prefix
        comment = [*row.doc.split("\n"), f"Default {default}; {row.kind.expected}."]
        lines = [
            indent + "# " + line
            for part in comment
            for line in textwrap.wrap(part, 96, subsequent_indent="    " if part.startswith(" ") else "")
        ]
        text += "\n".join(["", *lines, f"{indent}{name}: {default}", ""])
    return text


def schema() -> str:
    """The JSON Schema of the config file, for editors.

    Returns:
        The text of etc/skbcapd.schema.json. `skbcapd check` also checks regular expressions, packet
        filters, and combinations of keys.

    Source: JSON Schema, draft 7, which editors support.
    """
    plain = {key: row for key, row in ROWS.items() if "." not in key}
    sections: dict[str, dict[str, Row]] = {}
    for key, row in ROWS.items():
        section, _, name = key.rpartition(".")
        if section:
            sections.setdefault(section, {})[name] = row
    whole = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "skbcapd.yaml", **object_schema(plain)}
    for section, rows in sections.items():
        whole["properties"][section] = object_schema(rows) | {"type": ["object", "null"]}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
