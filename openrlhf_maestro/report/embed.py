"""Data and code inside the page: JSON that cannot leave its script element, and the hash that lets one script run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

from markupsafe import Markup

# Inside a script element these could end it, start a comment, or (the last two) end a line of JavaScript.
UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}

# Characters that a browser would drop, or that turn the text around them: shown by their pictures or their names.
_CONTROLS = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_DIRECTIONS = {code: f"⟨U+{code:04X}⟩" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_VISIBLE = _CONTROLS | _DIRECTIONS
_SURROGATE = re.compile("[\ud800-\udfff]")


def visible(text: str, most: int) -> str:
    """The text with its control characters shown, cut after `most` characters with a note of how many were left out."""
    shown = _SURROGATE.sub("\ufffd", text[:most].translate(_VISIBLE))
    return shown + f" … ({len(text) - most:,} more characters)" if len(text) > most else shown


def embedded_json(value: Any) -> Markup:
    """JSON for a script element of type application/json. Raises ValueError for NaN and infinities."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(UNSAFE))


def script_hash(code: str) -> str:
    """The source expression of a Content-Security-Policy that allows this inline script alone."""
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
