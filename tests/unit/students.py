"""The solutions of the exercises, by lesson."""

import runpy
from pathlib import Path

from anita_utils import exercises

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SOLUTIONS = {name: runpy.run_path(str(NOTEBOOKS / "solutions" / f"{name}.py")) for name in exercises.LESSONS}
