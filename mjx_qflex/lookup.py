"""Names that a user types: an unknown one is an error that names the nearest known one."""

import difflib
from collections.abc import Iterable

from mjx_qflex.errors import UserError


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Returns the error for a `name` that is no known `kind` ("task", "option of qflex", ...)."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(names)}"
    return UserError(f"unknown {kind} {name!r}; {hint}")
