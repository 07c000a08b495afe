"""Makes a session ready for a lesson: `%run set_up.py` in its second cell.

It prints nothing unless it installs something. What it silences is said here and
nowhere else: the libraries' remarks and deprecation notices, their progress bars, and a
warning that ipywidgets is missing. Errors are never silenced.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent

warnings.filterwarnings("ignore", message="IProgress")
warnings.filterwarnings("ignore", category=FutureWarning)
# before torch is imported: see IDLE_THREADS in anita_utils
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
if "COLAB_RELEASE_TAG" in os.environ:
    sys.path.insert(0, str(HERE.parent / "scripts"))
    import colab

    colab.prepare()

import datasets  # noqa: E402
import pandas  # noqa: E402
import transformers  # noqa: E402

from anita_utils import plots  # noqa: E402

logging.disable(logging.WARNING)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
datasets.disable_progress_bars()
pandas.set_option("display.max_colwidth", None)
pandas.set_option("display.precision", 3)
pandas.set_option("display.max_rows", 100)
plots.style()
