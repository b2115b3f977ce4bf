"""Names that a user types: an unknown one is an error that names the nearest known one."""

import difflib
from collections.abc import Collection, Iterable

from mjx_qflex.errors import UserError


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Returns the error for a `name` that is no known `kind` ("task", "option of qflex", ...)."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(names)}"
    return UserError(f"unknown {kind} {name!r}; {hint}")


def check_keys(
    where: str, keys: Iterable[str], allowed: Collection[str], needed: Iterable[str] = ()
) -> None:
    """Checks the keys of a table that a user wrote; `where` says which table.

    Raises:
      UserError: a key that is not `allowed`, or one that is `needed` and missing.
    """
    keys = list(keys)
    for key in keys:
        if key not in allowed:
            raise unknown_name(f"key of {where}", key, allowed)
    missing = [key for key in needed if key not in keys]
    if missing:
        raise UserError(f"{where} needs {', '.join(missing)}")
