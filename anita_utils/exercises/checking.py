"""How an answer is judged: called on cases worked out by hand, and compared with what the usual mistakes compute.

>>> judge(Exercise([((2,), 4)], [(lambda x: x * 3, "That is the triple.")], "Add x to itself.", "Doubled."), "f", abs)
Verdict(right=False, text='Not yet: f(2) gives 2; it should be 4.\\nAdd x to itself.')
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from numbers import Real
from typing import Any


@dataclass(frozen=True)
class Between:
    """A figure that chance moves a little: any number from low to high."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"between {self.low:g} and {self.high:g}"


@dataclass(frozen=True)
class Exercise:
    """cases: arguments and the right result, a value or Betweens; a case without arguments asks for a plain value.

    mistakes: what somebody computes who made the mistake (a function of the same arguments), and what to tell them.
    hint: the next step for any other wrong answer. right: what a right answer shows.
    tolerance: absolute; the usual one lets results pass that were rounded to three decimals.
    """

    cases: list[tuple[tuple, Any]]
    mistakes: list[tuple[Callable, str]]
    hint: str
    right: str
    tolerance: float = 6e-4


@dataclass(frozen=True)
class Verdict:
    """right: None when nothing has been written yet. text: what the student reads."""

    right: bool | None
    text: str


def judge(exercise: Exercise, name: str, answer: Callable | Any) -> Verdict:
    """The verdict on an answer. The arguments are copied for every call, so that no answer can spoil them."""
    wants_function = any(arguments for arguments, _ in exercise.cases)
    if not unfilled(answer) and callable(answer) != wants_function:
        wanted = f"the function itself: check({name!r}, {name})" if wants_function else "the value, not a function"
        return Verdict(False, f"Not yet: hand over {wanted}.")
    results = []
    for arguments, _ in exercise.cases:
        try:
            results.append(plain(answer(*deepcopy(arguments)) if callable(answer) else answer))
        except Exception as error:  # whatever the student's code does wrong
            stopped = f"Not yet: {call(name, arguments)} stops with {type(error).__name__}: {error}."
            return Verdict(False, f"{stopped}\n{exercise.hint}")
    if any(unfilled(result) for result in results):
        return Verdict(None, f"Not done yet: replace the dots in {name}.")
    wrong = [
        (arguments, result, wanted)
        for (arguments, wanted), result in zip(exercise.cases, results, strict=True)
        if not same(result, wanted, exercise.tolerance)
    ]
    if not wrong:
        return Verdict(True, f"Right: {exercise.right}")
    arguments, result, wanted = wrong[0]
    if wants_function:
        found = f"{call(name, arguments)} gives {written(result)}; it should be {written(wanted)}."
        if written(result) == written(wanted):  # both were cut before they differ
            found += f" {difference(result, wanted, exercise.tolerance)}"
    else:
        found = f"{name} is {written(result)}."  # to tell what it should be would be the solution
    return Verdict(False, f"Not yet: {found}\n{explanation(exercise, results)}")


def explanation(exercise: Exercise, results: list) -> str:
    """The message of the mistake that computes these very results; the hint when none does."""
    if all(result is None for result in results):
        return "The function returns nothing: does it end with `return`?"
    for compute, message in exercise.mistakes:
        made = [plain(compute(*deepcopy(arguments))) for arguments, _ in exercise.cases]
        if all(same(result, value, exercise.tolerance) for result, value in zip(results, made, strict=True)):
            return message
    return exercise.hint


def difference(result: Any, wanted: Any, tolerance: float) -> str:
    """Where two lists that begin alike differ first."""
    if not isinstance(wanted, list | tuple):
        return "They differ in digits that are not shown."
    if len(result) != len(wanted):
        return f"It has {len(result)} entries, not {len(wanted)}."
    pairs = enumerate(zip(result, wanted, strict=True))
    place, (made, right) = next((n, pair) for n, pair in pairs if not same(*pair, tolerance))
    return f"Place {place}, counted from 0, holds {written(made)}; it should be {written(right)}."


def unfilled(result: Any) -> bool:
    """Whether a result still is, or holds, the skeleton's dots."""
    return result is ... or (isinstance(result, list | tuple) and any(unfilled(part) for part in result))


def plain(value: Any) -> Any:
    """Arrays and tensors as lists and numbers; everything else as it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def same(result: Any, wanted: Any, tolerance: float) -> bool:
    """Whether a result is the wanted one: text exactly, numbers within the tolerance, lists item by item."""
    if isinstance(wanted, list | tuple):
        fits = isinstance(result, list | tuple) and len(result) == len(wanted)
        return fits and all(same(*pair, tolerance) for pair in zip(result, wanted, strict=True))
    if not isinstance(wanted, Real | Between):
        return result == wanted
    if not isinstance(result, Real):
        return False
    if isinstance(wanted, Between):
        return wanted.low <= result <= wanted.high
    return math.isclose(result, wanted, rel_tol=1e-6, abs_tol=tolerance)


def call(name: str, arguments: tuple) -> str:
    """The call as the student would write it; long arguments are cut."""
    return f"{name}({', '.join(written(argument) for argument in arguments)})" if arguments else name


def written(value: Any) -> str:
    """A value in few characters: four digits of a fraction, the beginning of a long list."""
    value = plain(value)
    if isinstance(value, bool | str) or value is None:
        return repr(value)
    if isinstance(value, Between):
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, list):
        return f"[{', '.join(written(part) for part in value[:8])}{', …' * (len(value) > 8)}]"
    return reprlib.repr(value)
