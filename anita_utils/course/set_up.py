"""What is silenced in a lesson, and how do its tables and figures look? `%run -m anita_utils.course.set_up` sets it.

Silenced are the libraries' remarks and deprecation notices, their progress bars, and a warning that ipywidgets is
missing; nothing else, and errors never.
"""

from __future__ import annotations

import logging
import os
import warnings

from anita_utils import IDLE_THREADS


def quieten() -> None:
    """Silences the libraries' remarks and progress bars: one line of progress is enough."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="IProgress")
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for an optional kernel


def set_up() -> None:
    """Makes a session ready for a lesson. Prints nothing."""
    for name, value in IDLE_THREADS.items():  # before torch is imported
        os.environ.setdefault(name, value)
    quieten()
    logging.disable(logging.WARNING)

    import pandas

    from anita_utils import plots

    pandas.set_option("display.max_colwidth", None, "display.precision", 3, "display.max_rows", 100)
    plots.style()


if __name__ == "__main__":
    set_up()
