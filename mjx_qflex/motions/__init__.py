"""Reference motions: shipped or a user's own, for any of the human bodies, looked up by time.

`python -m mjx_qflex.motions --help` shows them on a body as a video, and retargets recordings.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mjx_qflex.motions.library import names, of_body
    from mjx_qflex.motions.reference import (
        FREE_SUFFIXES,
        Landmarks,
        Motion,
        from_columns,
        landmarks,
        load,
        read_columns,
        write_columns,
    )

__all__ = [
    "FREE_SUFFIXES",
    "Landmarks",
    "Motion",
    "from_columns",
    "landmarks",
    "load",
    "names",
    "of_body",
    "read_columns",
    "write_columns",
]


def __getattr__(name: str) -> Any:
    """Loads MuJoCo once a name is asked for: the command here is to speak before."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "library" if name in ("names", "of_body") else "reference"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
