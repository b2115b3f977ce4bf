"""What the values of a recipe may be.

Each check takes a value as TOML gave it and returns what would be right, or None where it is.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from mjx_qflex.errors import UserError

Check = Callable[[Any], str | None]


def text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "a text"


def texts(value: Any) -> str | None:
    right = isinstance(value, list) and all(text(v) is None for v in value)
    return None if right else "a list of names"


def flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def flag_or_texts(value: Any) -> str | None:
    right = flag(value) is None or texts(value) is None
    return None if right else "true, false or a list of names"


def number(value: Any) -> str | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if is_number and math.isfinite(value) else "a number"


def positive(value: Any) -> str | None:
    return None if number(value) is None and value > 0 else "a number above 0"


def not_negative(value: Any) -> str | None:
    return None if number(value) is None and value >= 0 else "a number that is not negative"


def whole(least: int) -> Check:
    """The check of whole numbers from `least` on."""

    def check(value: Any) -> str | None:
        right = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return None if right else f"a whole number from {least} on"

    return check


def interval(value: Any) -> str | None:
    right = isinstance(value, list) and len(value) == 2
    right = right and all(number(v) is None for v in value) and value[0] < value[1]
    return None if right else "two numbers [low, high]"


def pairs(value: Any) -> str | None:
    right = isinstance(value, list)
    right = right and all(texts(pair) is None and len(pair) == 2 for pair in value)
    return None if right else 'a list of pairs of names, as [["pen", "palm"]]'


def table(value: Any) -> str | None:
    return None if isinstance(value, Mapping) else "a table"


def table_of(check: Check) -> Check:
    """The check of tables whose every value passes `check`."""

    def check_all(value: Any) -> str | None:
        if table(value):
            return "a table"
        wanted = next((w for v in value.values() if (w := check(v))), None)
        return wanted and f"a table with {wanted} each"

    return check_all


def require(where: str, content: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
    """Checks the values of those keys of a table that `checks` names.

    Raises:
      UserError: one of them is not what it may be.
    """
    for key, value in content.items():
        wanted = checks[key](value) if key in checks else None
        if wanted:
            raise UserError(f"{where}: {key} is {_shown(value)}; give {wanted}")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
