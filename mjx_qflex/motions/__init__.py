"""Reference motions: shipped or a user's own, for any of the human bodies, looked up by time.

`python -m mjx_qflex.motions --help` shows them on a body as a video, and retargets recordings.
"""

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
