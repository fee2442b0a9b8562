"""The errors a user can act on. Everything else is a defect of ours and shows its traceback."""

import re


def without_credentials(text: str) -> str:
    """Text in which no address shows the name and password that may stand before its host."""
    return re.sub(r"//[^/\s]*@", "//***@", text)


def first_line(error: object) -> str:
    """The first line of an error's text, without credentials; the error's name where it has no text."""
    return without_credentials(next(iter(str(error).strip().splitlines()), type(error).__name__))[:300].rstrip(".")


class LancetError(Exception):
    """A run that cannot go on, with the reason and the remedy in the message."""

    exit_code = 1


class InputError(LancetError):
    """Something the user gave does not fit: the message names the input, the place and the remedy."""

    exit_code = 2


class Unreachable(InputError):
    """A server or database that does not answer. Another try may do."""


class IntegrityError(LancetError):
    """Stored bytes are not those their manifest promises."""


def error_named(name: str, message: str) -> LancetError:
    """One of these errors, by the name of its class."""
    kinds: list[type[LancetError]] = [LancetError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return next((kind for kind in kinds if kind.__name__ == name), LancetError)(message)
