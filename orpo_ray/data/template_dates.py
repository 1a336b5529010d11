"""Templates that write today's date, made to write the same one on every day and server."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING

from orpo_ray.errors import UserError

if TYPE_CHECKING:
    from jinja2.nodes import Call, Template

CLOCK = "strftime_now"
"""The one function of chat templates that reads the clock."""


def reads_the_clock(template: str) -> bool:
    """Whether it calls the server's `strftime_now`, rather than one that it defines itself."""
    parsed = _parsed(template) if CLOCK in template else None
    if parsed is None:
        return False
    from jinja2 import nodes

    return bool(_calls(parsed)) and all(macro.name != CLOCK for macro in parsed.find_all(nodes.Macro))


def with_fixed_date(template: str, date: str) -> str:
    """`template` with a macro `strftime_now` in front that answers its formats for `date` (YYYY-MM-DD); itself where
    it reads no clock. Raises `UserError` for a format that is no literal, since only those can be answered."""
    if not reads_the_clock(template):
        return template
    from jinja2 import nodes

    parsed = _parsed(template)
    assert parsed is not None
    formats: dict[str, str] = {}
    for call in _calls(parsed):
        given = [*call.args, *(argument.value for argument in call.kwargs)]
        if len(given) != 1 or not isinstance(given[0], nodes.Const) or not isinstance(given[0].value, str):
            raise UserError(
                f"the chat template calls {CLOCK} with something else than a text, so its date cannot be fixed; set "
                "data.chat_template to one that writes its formats out"
            )
        formats[given[0].value] = datetime.date.fromisoformat(date).strftime(given[0].value)
    answers = "".join(
        f"{{% if format == {json.dumps(format)} %}}{{{{ {json.dumps(text)} }}}}{{% endif %}}"
        for format, text in formats.items()
    )
    # The empty text keeps a newline that the template begins with, which the end of a block would take.
    return f"{{% macro {CLOCK}(format) %}}{answers}{{% endmacro %}}{{{{ '' }}}}{template}"


def _parsed(template: str) -> Template | None:
    """None where it has an error of syntax, which rendering tells."""
    import jinja2
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        parsed: Template = _compile_jinja_template(template).environment.parse(template)
    except jinja2.TemplateSyntaxError:
        return None
    return parsed


def _calls(parsed: Template) -> list[Call]:
    from jinja2 import nodes

    calls = parsed.find_all(nodes.Call)
    return [call for call in calls if isinstance(call.node, nodes.Name) and call.node.name == CLOCK]
