"""Signatures of classes whose `__init__` Equinox writes, from the documented fields."""

import re

import griffe


def default(value):
    """The default of a field, out of `eqx.field(default=...)` where it is in one."""
    for argument in getattr(value, "arguments", []):
        if getattr(argument, "name", None) == "default":
            return argument.value
    return value


class Constructors(griffe.Extension):
    def on_class(self, *, cls, **_):
        text = cls.docstring.value if cls.docstring else ""
        if "**Arguments:**" not in text or "__init__" in cls.members:
            return
        kind = griffe.ParameterKind.positional_or_keyword
        parameters = [
            griffe.Parameter(one.name, kind=kind, default=default(one.value))
            for one in cls.attributes.values()
            if re.search(rf"^- .*`{one.name}`.*:", text, re.MULTILINE)
        ]
        parameters.insert(0, griffe.Parameter("self", kind=kind))
        init = griffe.Function("__init__", parameters=griffe.Parameters(*parameters))
        cls.set_member("__init__", init)
