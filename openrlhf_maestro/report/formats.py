"""Numbers as a reader wants them: few digits, a unit, a dash where there is no number."""

from __future__ import annotations

import math

NONE = "–"
THIN_SPACE = "\u202f"


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits; powers of ten only below 0.001 and from a million on."""
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    mantissa, exponent = f"{abs(value):.{digits - 1}e}".split("e")
    power = int(exponent)
    if -3 <= power < 6:
        text = f"{abs(value):,.{max(0, digits - 1 - power)}f}".replace(",", THIN_SPACE)
    else:
        text = f"{mantissa}e{power}"
    return f"−{text}" if value < 0 else text


def signed(value: float, digits: int = 3) -> str:
    """Like `number`, with a plus sign where it is positive."""
    return f"+{number(value, digits)}" if value > 0 else number(value, digits)


def percent(share: float, decimals: int = 1) -> str:
    """A share of 1 as a percentage."""
    return NONE if math.isnan(share) else f"{100 * share:.{decimals}f}{THIN_SPACE}%"


def points(difference: float) -> str:
    """A difference of two shares in percentage points, signed."""
    if math.isnan(difference):
        return NONE
    rounded = round(100 * difference, 1)
    sign = "+" if rounded > 0 else "−" if rounded < 0 else "±"
    return f"{sign}{abs(rounded):.1f}"


def seconds(value: float) -> str:
    """A duration in seconds, in minutes or hours where that reads better."""
    if math.isnan(value):
        return NONE
    if value < 120:
        return f"{number(value)}{THIN_SPACE}s"
    if value < 7200:
        return f"{number(value / 60)}{THIN_SPACE}min"
    return f"{number(value / 3600)}{THIN_SPACE}h"


def milliseconds(value: float) -> str:
    """A short duration, given in milliseconds."""
    return NONE if math.isnan(value) else f"{number(value)}{THIN_SPACE}ms"
