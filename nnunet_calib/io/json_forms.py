"""Read JSON files of any origin, and check that they have the expected form.

A form describes a value:

    str, bool, int, float, dict      of that type; int and float are finite numbers, float takes whole ones too
    None                             null
    SHARE                            a number from 0 to 1, or NaN
    NAME                             the plain name of a file or folder, see `atomic_files.is_plain_name`
    (form, form)                     a value of one of these forms
    [form]                           a list of any length, all of whose values have the form
    [form, form]                     a list of as many values as forms
    {"key": form, "other?": form}    an object with these entries ("?": optional) and any others
    {str: form}                      an object with any keys, all of whose values have the form

`form_of` makes the form of a TypedDict, so that what is typed in the code is what is checked in a file.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from nnunet_calib.io.atomic_files import is_plain_name, open_regular
from nnunet_calib.io.wording import reason

NAME = is_plain_name
_WHOLE = "the content"
_WORDS: dict[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    None: "null",
}
_LARGEST = 2**63
_DEEPEST = 32
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxlevel = 2


def is_share(value: object) -> bool:
    """Return whether a value is from 0 to 1, or NaN, which nnU-Net writes for undefined values."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (0 <= value <= 1 or value != value)  # type: ignore[operator]


SHARE = is_share
_WORDS |= {NAME: "a plain name without folders", SHARE: "a number from 0 to 1 or NaN"}


def form_of(annotation: Any) -> Any:
    """Return the form of a type: of a TypedDict an object with its entries, with "?" behind those that need not be.

    `Annotated[type, form]` has the form that it names.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return arguments[1]
    if is_typeddict(annotation):
        return {
            name if name in annotation.__required_keys__ else f"{name}?": form_of(hint)
            for name, hint in get_type_hints(annotation, include_extras=True).items()
        }
    if origin in (Union, UnionType):
        return tuple(map(form_of, arguments))
    if origin is list:
        return [form_of(arguments[0])]
    if origin is dict:
        return dict if arguments[1] is Any else {str: form_of(arguments[1])}
    return None if annotation is type(None) else annotation


def read_json(file: Path, form: Any = None, write_again: str = "write it again") -> Any:
    """Return the content of a JSON file.

    Args:
        file: path of the file.
        form: form of the content; None accepts anything.
        write_again: advice to the user for a file of another form.

    Raises:
        ValueError: in one sentence that names the file, if it is damaged or of another form.
        FileNotFoundError: if there is no such file.
    """
    try:
        with open_regular(file) as stream:
            content = json.loads(stream.read().decode("utf-8"))
        if _is_deep(content):
            raise ValueError("nested too deeply")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON, found {file} damaged ({reason(error)}): {write_again}") from error
    if form is not None:
        check_form(content, form, file, write_again)
    return content


def _is_deep(content: Any) -> bool:
    """Return whether lists and objects are nested too deeply for Python's recursion."""
    level = [content]
    for _ in range(_DEEPEST):
        level = [
            entry
            for value in level
            if isinstance(value, dict | list)
            for entry in (value.values() if isinstance(value, dict) else value)
        ]
    return bool(level)


def check_form(content: Any, form: Any, file: Path, write_again: str = "write it again") -> None:
    """Raise ValueError, in one sentence, if the content of a file has another form; see `read_json`."""
    if problem := next(problems(content, form), None):
        raise ValueError(f"{problem} in {file}: {write_again}")


def problems(value: Any, form: Any, place: str = _WHOLE) -> Iterator[str]:
    """Yield what is wrong with a value, each time as "expected ... to be ..., found ..."."""
    if isinstance(form, dict) and form and isinstance(value, dict):
        yield from _object_problems(value, form, place)
    elif isinstance(form, list) and isinstance(value, list):
        if len(form) > 1 and len(value) != len(form):
            yield f"expected {place} to be a list of {len(form)}, found {_shown(value)}"
        for number, entry in enumerate(value):
            yield from problems(entry, form[number % len(form)], f"{place}[{number}]")
    elif isinstance(form, tuple):
        if not any(next(problems(value, one), None) is None for one in form):
            # an alternative of the value's kind gives the most precise message
            matching = [one for one in form if isinstance(one, dict | list) and isinstance(value, type(one))]
            yield from problems(value, matching[0], place) if matching else [_wrong(value, form, place)]
    elif not _is(value, form):
        yield _wrong(value, form, place)


def _object_problems(value: dict[str, Any], form: dict[Any, Any], place: str) -> Iterator[str]:
    for key, entry_form in form.items():
        if key is str:
            for name, entry in value.items():
                yield from problems(entry, entry_form, _inside(place, name))
        elif (name := key.removesuffix("?")) in value:
            yield from problems(value[name], entry_form, _inside(place, name))
        elif not key.endswith("?"):
            yield f"expected {_inside(place, key)}, found none"


def _is(value: Any, form: Any) -> bool:
    if form is None:
        return value is None
    if form in (int, float):
        kinds = (int,) if form is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and _is_finite(value)
    if isinstance(form, type):
        return isinstance(value, form)
    return callable(form) and bool(form(value))


def _is_finite(value: float) -> bool:
    return -_LARGEST < value < _LARGEST if isinstance(value, int) else math.isfinite(value)


def _wrong(value: Any, form: Any, place: str) -> str:
    return f"expected {place} to be {_words(form)}, found {_shown(value)}"


def _words(form: Any) -> str:
    if isinstance(form, tuple):
        return " or ".join(_words(one) for one in form)
    if isinstance(form, dict | list):
        return "an object" if isinstance(form, dict) else "a list"
    return _WORDS[form]


def _shown(value: Any) -> str:
    text = _SHORT.repr(value)
    return text if len(text) < 100 else f"{text[:100]}..."


def _inside(place: str, name: str) -> str:
    shown = _shown(name)[1:-1]
    return shown if place == _WHOLE else f"{place}.{shown}"
