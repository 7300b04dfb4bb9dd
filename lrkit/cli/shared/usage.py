"""Wrong use of a verb, which the command-line library tells in four lines, as one sentence."""

from typing import Any

import typer
from pydantic import ValidationError

from lrkit.errors import UserError, did_you_mean, one_line

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""What the library raises for every wrong use; where it keeps the class changed between its releases."""


def is_misuse(error: BaseException) -> bool:
    """Was the verb used wrongly? `lrkit` without a verb is not: it shows the help."""
    return isinstance(error, USAGE_ERROR) and type(error).__name__ != "NoArgsIsHelpError"


def misuse(error: Any) -> UserError:
    """What was given; what the verb takes."""
    context, option, param = error.ctx, getattr(error, "option_name", None), getattr(error, "param", None)
    said = one_line(error.format_message()).rstrip(".")
    said = said[:1].lower() + said[1:]
    if type(error).__name__ == "BadOptionUsage":
        if "requires" in said:
            return UserError(f"{option} was given without a value; write one behind it")
        return UserError(f"{option} takes no value; write it alone")
    if context is None:
        return UserError(f"{said}; `lrkit --help` shows how it is used")
    verb = context.command_path
    form = " ".join([verb, *context.command.collect_usage_pieces(context)])
    if option is not None:
        options = [name for each in context.command.params if each.param_type_name == "option" for name in each.opts]
        near = did_you_mean(option, options) or f"; `{verb} --help` lists those that it has"
        return UserError(f"{verb} has no option {one_line(option)}{near}")
    if param is None:
        return UserError(f"{verb}: {said}; use it as in {form}")
    option_or_name = (param.metavar if param.param_type_name == "argument" else None) or param.opts[0]
    if type(error).__name__ == "MissingParameter":
        return UserError(f"{verb}: {option_or_name} is missing; use it as in {form}")
    return UserError(f"{verb}: {option_or_name}: {_refused(error)}; `{verb} --help` says what it takes")


def _refused(error: Any) -> str:
    """The value that was given, and why it is none."""
    cause: Any = error.__cause__ or error.__context__
    message, seen = error.message, ""
    if isinstance(cause, ValidationError):
        first = cause.errors(include_url=False)[0]
        message, seen = first["msg"], f"{one_line(str(first['input']), 60)!r}: "
    reason = one_line(message).removeprefix("Value error, ").rstrip(".")
    return f"{'' if seen[:-2] in reason else seen}{reason[:1].lower()}{reason[1:]}"
