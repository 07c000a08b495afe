"""What a notebook keeps of a figure: one picture, with words for those who cannot see it."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from IPython.utils.capture import capture_output

from anita_utils import plots


def test_a_figure_is_shown_once_with_its_words():
    select_figure_formats(InteractiveShell.instance(), {"png"})  # what a notebook does at its start
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    with capture_output() as kept:
        plots.show(figure, "A line that climbs.")
    (shown,) = kept.outputs
    assert shown.data["image/png"] and shown.metadata["image/png"]["alt"] == "A line that climbs."
    assert not plt.fignum_exists(figure.number)
