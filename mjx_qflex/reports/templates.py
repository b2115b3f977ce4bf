"""Pages out of the templates in `templates/`: `.html` ones escape all they are given, `.md` not."""

from typing import Any

import jinja2

from mjx_qflex.runner.metrics import duration, number

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("mjx_qflex.reports"),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def count(of: int, what: str) -> str:
    """Returns "1 run", "2 runs"."""
    return f"{of} {what}" if of == 1 else f"{of} {what}s"


_ENVIRONMENT.filters |= {"number": number, "duration": duration, "count": count}


def render(name: str, **values: Any) -> str:
    """Returns the template `name` filled in; a value that it asks for and lacks is an error."""
    return _ENVIRONMENT.get_template(name).render(values)
