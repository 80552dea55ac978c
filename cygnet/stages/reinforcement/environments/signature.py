"""The JSON schema of a tool, read off a Python function."""

from __future__ import annotations

import inspect
import typing
from typing import Any

from cygnet.errors import UserError
from cygnet.stages.reinforcement.functions import load

_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
_JSON_TYPES |= {list: "array", dict: "object"}


def tool_schema(reference: str) -> dict[str, Any]:
    """Return OpenAI's description of a function: its name, first line, parameters.

    Types come from the annotations (str, int, float, bool, list, dict; anything else is left open),
    and a parameter without a default is required.

    Raises:
        UserError: it is no function, or takes arguments without a name.
    """
    function = load(reference)
    if not callable(function):
        raise UserError(f"{reference} is {type(function).__name__}, a function is wanted")
    types = typing.get_type_hints(function)
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(f"{reference}: a tool cannot take {parameter}; name its parameters")
        kind = types.get(parameter.name)
        known = _JSON_TYPES.get(typing.get_origin(kind) or kind) if kind else None
        properties[parameter.name] = {"type": known} if known else {}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    description = (inspect.getdoc(function) or "").strip().partition("\n")[0]
    return {
        "type": "function",
        "function": {
            "name": getattr(function, "__name__", reference.rpartition(":")[2]),
            "description": description,
            "parameters": {"type": "object", "properties": properties, "required": required},
        },
    }
