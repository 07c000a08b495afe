"""What watches a training: one line of progress, an alarm when the loss is no number, manifests of checkpoints.

It is a callback under the name WATCH among transformers' integrations, so that `report_to` in the arguments is all that
a trainer needs, here and in the lessons.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

from transformers import TrainerCallback, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from anita_utils import AnitaError
from anita_utils.record import clock
from anita_utils.resuming import trained_seconds, write_manifest

WATCH = "anita"
EVERY = 30  # seconds between two lines where a line cannot be rewritten
SAVE_SECONDS = 240  # a kill loses at most five minutes, the time of a few updates included
LEAST_LOGS = 5  # of a training, where it has so many updates


class Progress:
    """One line that is rewritten, on a terminal and in a notebook; elsewhere a line now and then, and the last."""

    def __init__(self) -> None:
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        self.in_notebook = hasattr(shell, "kernel")
        self.on_terminal = sys.stdout.isatty()
        self.handle = None
        self.shown = time.monotonic()

    def show(self, text: str, last: bool = False) -> None:
        if self.in_notebook:
            self._display(text)
        elif self.on_terminal:
            print(f"\r\x1b[K{text}", end="\n" if last else "", flush=True)
        elif last or time.monotonic() - self.shown >= EVERY:
            self.shown = time.monotonic()
            print(text, flush=True)

    def _display(self, text: str) -> None:
        from IPython.display import display

        if self.handle is None:
            self.handle = display({"text/plain": text}, raw=True, display_id=True)
        else:
            self.handle.update({"text/plain": text}, raw=True)


class Watch(TrainerCallback):
    """Counts time, also across interruptions; shows progress; stops at a loss that is no number; seals checkpoints."""

    def on_train_begin(self, args, state, control, train_dataloader=None, optimizer=None, lr_scheduler=None, **kwargs):
        from anita_utils.stages import token_count

        if args.get_warmup_steps(state.max_steps) >= state.max_steps > 0:  # else the only update would have a rate of 0
            print(f"{args.run_name}: a warm-up of all {state.max_steps:,} updates is cut to {state.max_steps - 1:,}")
            shorter = get_scheduler(args.lr_scheduler_type, optimizer, state.max_steps - 1, state.max_steps)
            lr_scheduler.load_state_dict(shorter.state_dict() | {"lr_lambdas": [None] * len(shorter.lr_lambdas)})
            lr_scheduler.lr_lambdas = shorter.lr_lambdas
        self.began, self.first = time.monotonic(), state.global_step
        self.saved = self.began
        # A short training is logged often enough to have a curve; a log changes nothing of the training
        state.logging_steps = max(1, min(state.logging_steps, state.max_steps // LEAST_LOGS))
        self.before = trained_seconds(checkpoint(args, state)) or 0.0
        self.tokens = token_count(train_dataloader.dataset) * args.num_train_epochs / state.max_steps  # an update
        self.progress = Progress()
        self.loss = next((row["loss"] for row in reversed(state.log_history) if "loss" in row), math.nan)

    def on_step_end(self, args, state, control, **kwargs):
        """Saves by time as well as by updates, and with a log, so that the checkpoint holds all losses up to it."""
        now = time.monotonic()
        an_update = (now - self.began) / (state.global_step - self.first)
        to_the_next_log = an_update * min(state.logging_steps, state.max_steps - state.global_step)
        if control.should_log and now - self.saved + to_the_next_log > SAVE_SECONDS:
            control.should_save = True
        if now - self.saved > SAVE_SECONDS:  # so slow that a log would come too late
            control.should_save = True
        if control.should_save and state.global_step < state.max_steps:
            control.should_log = True
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = logs.get("loss", logs.get("train_loss"))  # the latter once, at the end: the mean of all
        if loss is not None and not math.isfinite(loss):
            raise AnitaError(
                f"stage '{args.run_name}': the loss is {loss} at update {state.global_step}: lower the learning "
                f"rate ({args.learning_rate:g}) or raise the warm-up; nothing is kept from after the last checkpoint"
            )
        if "loss" not in logs:
            return
        self.loss = loss
        an_update = (time.monotonic() - self.began) / (state.global_step - self.first)
        left = an_update * (state.max_steps - state.global_step)
        self.progress.show(f"{self.line(args, state)}, {clock(left)} left")

    def on_save(self, args, state, control, **kwargs):
        self.saved = time.monotonic()
        if state.is_world_process_zero:
            write_manifest(checkpoint(args, state), self.before + time.monotonic() - self.began)

    def on_train_end(self, args, state, control, **kwargs):
        self.progress.show(f"{self.line(args, state)}, done in {clock(time.monotonic() - self.began)}", last=True)

    def line(self, args, state) -> str:
        """Step, loss and useful tokens a second."""
        speed = (state.global_step - self.first) * self.tokens / (time.monotonic() - self.began)
        done = f"{args.run_name}: {state.global_step:,}/{state.max_steps:,} updates"
        return f"{done}, loss {self.loss:.3f}, {speed:,.0f} tokens/s"


def checkpoint(args, state) -> Path:
    """The folder of the checkpoint that belongs to this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


INTEGRATION_TO_CALLBACK[WATCH] = Watch
