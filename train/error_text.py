"""What is said of an error in one line: the cause, without the parser's account of how it tried to read a value."""

import re
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import signature

from data.hidden_secrets import scrubbed
from train import settings

_KEY = re.compile(r"Parser key \"([^\"]*)\":\s*")
_CLASS = re.compile(r"Problem with given class_path '([^']*)':\s*")


def error_sentence(error: BaseException) -> str:
    """Say in one line what went wrong.

    Addresses are shown without logins and tokens.

    Args:
        error: What was raised: by the parser, by a class that it made, or in a reading process, before whose error
            torch puts the traceback.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if text.startswith("Caught "):
        text = text.rpartition(f"{type(error).__name__}: ")[2]
    return scrubbed(" ".join(_innermost(text).split()))


def _innermost(text: str) -> str:
    """The first of the errors that the parser met at the deepest place; other texts as they are."""
    keys, classes = _KEY.findall(text), _CLASS.findall(text)
    if refused := re.search(r"(?:Subcommand|Group) '([^']*)' does not accept option '([^']*)'", text):
        return _unknown_option(refused[2], refused[1])
    if "\n" not in text and not keys:
        return text
    reasons = re.split(r"\n\s*(?:- |Given value type)", text.rpartition("Errors:")[2].strip().removeprefix("- "))
    reason = next(filter(_CLASS.match, reasons), reasons[0])  # what was meant for a class is no text
    reason = _CLASS.sub("", _KEY.sub("", reason)).strip()
    name = ".".join(keys)
    if refused := re.fullmatch(r"Option '([^']*)' is not accepted", reason):
        return _unknown_option(refused[1], classes[-1] if classes else name)
    if reason.startswith("Not a valid subclass"):
        return f"`{name}` must have `class_path` and `init_args`, and nothing beside. Look how its lines are indented."
    reason = re.sub(r"<class '([\w.]+)'>", r"\1", reason).replace("typing.", "")
    if wrong := re.fullmatch(r"Expected an? (.*)\. Got value: (.*)", reason, re.DOTALL):
        return f"`{name}`={wrong[2]} must be {wrong[1]}."
    given = "".join(f"={path}" for path in classes[-1:])
    return reason if "`" in reason or not name else f"`{name}`{given}: {reason}"


def _unknown_option(option: str, class_path: str) -> str:
    """That a class has no such option, and which are near."""
    module, _, name = class_path.rpartition(".")
    try:
        known = list(signature(getattr(import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError):  # a command, or a group of settings
        known = [row.name for kind in vars(settings).values() if is_dataclass(kind) for row in fields(kind)]
    near = get_close_matches(option, known, 1) or get_close_matches(option.rpartition(".")[2], known, 1)
    which = f"; did you mean `{near[0]}`?" if near else f"; it has {', '.join(known)}." if module else "."
    return f"`{class_path}` has no option `{option}`{which}"
