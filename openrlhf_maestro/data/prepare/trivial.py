"""References that say too little to be told from a guess: one word, or a bare number."""

from __future__ import annotations

import re

_WRAPPERS = (
    re.compile(r"\\boxed\s*\{(.*)\}", re.DOTALL),
    re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{(.*)\}", re.DOTALL),
    re.compile(r"\$\$(.*)\$\$", re.DOTALL),
    re.compile(r"\$(.*)\$", re.DOTALL),
    re.compile(r"\\\((.*)\\\)", re.DOTALL),
    re.compile(r"\\\[(.*)\\\]", re.DOTALL),
    re.compile(r"\((.*)\)", re.DOTALL),
    re.compile("[\"'\u201c\u2018](.*)[\"'\u201d\u2019]", re.DOTALL),
    re.compile(r"\*\*(.*)\*\*", re.DOTALL),
)
_DIGITS = r"(?:\d{1,3}(?:(?:,|\\,|\{,\})\d{3})+|\d+)?(?:\.\d+)?"
_SIGN = r"(?:[-+−±≈]|\\pm|\\approx)?\s*"
_NUMBER = re.compile(
    rf"{_SIGN}(?:\\?[$€£¥])?\s*{_SIGN}(?=\.?\d){_DIGITS}"
    rf"(?:\s*/\s*{_SIGN}\d+(?:\.\d+)?|e[-+]?\d+|\s*(?:\\times|\\cdot|×|x|\*)\s*10\s*\^\s*\{{?\s*[-+−]?\d+\s*\}}?)?"
    r"\s*(?:\\?%|°|\^\s*\{?\\circ\}?)?",
    re.IGNORECASE,
)
_FRACTION = re.compile(rf"{_SIGN}\\[dt]?frac\s*\{{\s*{_SIGN}\d+\s*\}}\s*\{{\s*\d+\s*\}}")
_WORD = re.compile(r"\\?\w+(?:['\u2019.-]\w+)*")
# Scripts without spaces between words: there a longer text is not one word.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_UNSPACED_WORD = 4


def is_trivial(reference: str) -> bool:
    """Whether `reference` is one word or a bare number, under whatever LaTeX, quotes and full stop.

    Numbers are bare with a sign, thousands, a fraction, a power of ten, a currency, a per cent or a degree sign:
    `\\boxed{5}`, `-3.5`, `1/2`, `$22,338`, `20%`. With a unit or a letter of an option they are not: `42 km`, `C. 3`.
    Formulas (`x=3`, `\\sqrt{2}`) are neither words nor numbers.
    """
    text = _unwrapped(reference.strip())
    if _NUMBER.fullmatch(text) or _FRACTION.fullmatch(text) or not text:
        return True
    return bool(_WORD.fullmatch(text)) and not (_UNSPACED.search(text) and len(text) > _UNSPACED_WORD)


def _unwrapped(text: str) -> str:
    if _NUMBER.fullmatch(text):  # "$5" is an amount, no LaTeX
        return text
    text = text.rstrip(".!;,").strip()
    for wrapper in _WRAPPERS:
        if (match := wrapper.fullmatch(text)) and _balanced(match[1]):
            return _unwrapped(match[1].strip())
    return text


def _balanced(text: str) -> bool:
    """Whether the brackets taken off belonged together: not in `(a) and (b)` or `$x$ and $y$`."""
    depth = {"(": 0, "{": 0}
    for character in text:
        if character in "({":
            depth[character] += 1
        elif character in ")}":
            depth["(" if character == ")" else "{"] -= 1
        if min(depth.values()) < 0:
            return False
    return not any(depth.values()) and "$" not in text.replace("\\$", "")
