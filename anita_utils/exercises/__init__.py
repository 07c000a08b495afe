"""Checks for the lessons' exercises: is the answer right, and if not, what went wrong and what to try next.

>>> check("lora_scale", lambda alpha, r, rank_stabilised: alpha / r)
Not yet: lora_scale(16, 64, True) gives 0.25; it should be 2.
Both flavours cannot divide by r: the rank-stabilised one divides by its square root.

One module a lesson holds its exercises: cases worked out by hand, and the usual mistakes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anita_utils import AnitaError
from anita_utils.exercises import (
    lesson01,
    lesson02,
    lesson03,
    lesson04,
    lesson05,
    lesson06,
    lesson07,
    lesson08,
    lesson09,
)
from anita_utils.exercises.checking import Verdict, judge

LESSONS = {
    "01_load_llama3": lesson01.EXERCISES,
    "02_supervised_fine_tuning": lesson02.EXERCISES,
    "03_qlora_italian": lesson03.EXERCISES,
    "04_dpo": lesson04.EXERCISES,
    "05_evaluation": lesson05.EXERCISES,
    "06_ablation": lesson06.EXERCISES,
    "07_zero_shot_italian": lesson07.EXERCISES,
    "08_bias_and_safety": lesson08.EXERCISES,
    "09_forgetting": lesson09.EXERCISES,
}
EXERCISES = {name: exercise for lesson in LESSONS.values() for name, exercise in lesson.items()}


def verdict(name: str, answer: Callable | Any) -> Verdict:
    """What the check of that name says of an answer. AnitaError when there is no such exercise."""
    if name not in EXERCISES:
        raise AnitaError(f"there is no exercise '{name}': choose {', '.join(EXERCISES)}")
    return judge(EXERCISES[name], name, answer)


def check(name: str, answer: Callable | Any) -> None:
    """Print whether the answer to an exercise is right; if not, the mistake and the next step.

    answer: the function itself (not called), or the value where the exercise asks for one.
    """
    print(verdict(name, answer).text)
