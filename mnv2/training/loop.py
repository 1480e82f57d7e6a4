"""One run, top to bottom: trains a network on a data set, evaluates it, and writes the result."""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
from clu import parameter_overview

from mnv2.analysis import complexity
from mnv2.pretrained import native
from mnv2.runtime.errors import NotFinite, UserError, is_store_error, reason
from mnv2.runtime.files import AnyPath, write_json, write_text
from mnv2.runtime.interruption import Stopped, Stopper
from mnv2.runtime.layout import CHECKPOINTS, PARAMETERS, RESULT
from mnv2.runtime.processes import broadcast_from_primary, is_writer, say
from mnv2.runtime.terminal import StatusLine
from mnv2.training.checkpoint import Checkpoints, Timing
from mnv2.training.classes import EXAMPLES, check_classes_of_run
from mnv2.training.config import Settings
from mnv2.training.evaluation import evaluate
from mnv2.training.feed import DeviceFeed, HostFeed, create_feed
from mnv2.training.log import MetricsLog
from mnv2.training.progress import Show, Stopwatch, progress
from mnv2.training.setup import Setup, initial_state, set_up
from mnv2.training.state import TrainState
from mnv2.training.step import (
    StepMetrics,
    first_not_finite,
    joined,
    parameter_norms,
    shard,
    summarize,
    unstack,
)

MOST_SKIPPED = 10  # steps in a row, with on_nan = skip, after which a run stops
RESUMES = "the same command resumes from the newest checkpoint"


class Due(NamedTuple):
    """What is to be done after a step, and the number of steps until something is due again."""

    reports: bool
    validates: bool
    saves: bool
    steps_left: int

    @classmethod
    def at(cls, step: int, setup: Setup, settings: Settings) -> "Due":
        """Returns what is due after `step` steps.

        At the end, validation is the final evaluation if it is the final split.
        """
        total, eval_every, checkpoint_every = setup.durations
        if not setup.dataset.validation:
            eval_every = 0
        intervals = [every for every in (settings.log_every, eval_every, checkpoint_every) if every]
        steps_left = min(total - step, *(every - step % every for every in intervals))
        if step == total:
            validates = bool(eval_every) and settings.final_split != "validation"
            return cls(True, validates, True, 0)
        validates, saves = (bool(n) and not step % n for n in (eval_every, checkpoint_every))
        reports = validates or saves or not step % settings.log_every
        return cls(reports, validates, saves, steps_left)


class Trace:
    """Writes a trace of ten steps of this process to `folder`, to see what the devices do.

    The first step compiles and the second one warms up. Without a folder it does nothing. A run
    with fewer steps is traced to its end.
    """

    FIRST, STEPS = 3, 10

    def __init__(self, folder: AnyPath | None):
        self._folder, self._steps, self._traces = folder, 0, False

    @property
    def waits(self) -> bool:
        """Tells whether steps must come one by one, because some are still to be traced."""
        return self._folder is not None and self._steps < self.FIRST - 1 + self.STEPS

    def after_step(self, state: Any) -> None:
        """Counts a step, and starts or ends the trace once the devices have computed `state`."""
        if self._folder is None:
            return
        self._steps += 1
        if self._steps == self.FIRST - 1:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._traces = True
        elif self._steps == self.FIRST - 1 + self.STEPS:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends the trace if it has begun."""
        if self._traces:
            jax.profiler.stop_trace()
            self._traces = False
            say(f"trace of {self._steps - self.FIRST + 1} steps: xprof --logdir {self._folder}")


@contextlib.contextmanager
def _explained_os_errors() -> Iterator[None]:
    """Turns an error of the file system into a UserError that says how to resume."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        of_file = isinstance(error, OSError) and error.errno is not None
        if not (of_file or is_store_error(error)):
            raise  # not about a file, such as a lost connection to another process
        name = getattr(error, "filename", None) or "a file"
        raise UserError(f"cannot read or write {name}: {reason(error)}; {RESUMES}") from error


@_explained_os_errors()
def train(
    settings: Settings,
    folder: AnyPath,
    *,
    label: str = "run",
    show: Show | None = None,
    stopper: Stopper | None = None,
    profile: AnyPath | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains one run in `folder`, from the newest checkpoint there or from the beginning.

    Evaluates on validation during training, and at the end on the split that the settings name.
    Writes metrics.jsonl, TensorBoard's events with the `hyperparameters`, checkpoints, a trace of
    some steps to the folder `profile` if it is given, and result.json, which it also returns.
    `show` gets what the run does now; by default it is a line in the terminal.

    Raises Stopped soon after `stopper` has noted a signal; the last step is then saved. Raises
    UserError for settings that describe no run, a loss that is not finite, and a full disk.
    """
    setup, line = set_up(settings), StatusLine(label)
    state, before = initial_state(setup, settings), None
    _describe(folder, setup, state)
    with _opened(settings, setup, folder, profile, stopper or Stopper(), show or line.say) as run:
        state = run.restored(state, hyperparameters or {})
        step = int(state.step)  # the number of steps done; the last may still run on the devices
        first, due = step, Due.at(step, setup, settings)
        try:
            with run.stopper.deferred():
                run.repeat_validation(state, step)
                feed = create_feed(setup, settings, step)
                while step < setup.durations.total:
                    if due.steps_left == 1:  # a report follows: its step is measured
                        before = joined(state.params)
                    compiles = step == first
                    most = 1 if compiles or run.trace.waits else max(1, due.steps_left - 1)
                    rate = run.stopwatch.images_per_second / settings.batch_size
                    with run.compiling(step, feed) if compiles else nullcontext():
                        call = feed.next(most, rate)
                        state, metrics = call.program(state, *call.arguments)
                        if compiles:
                            jax.block_until_ready((state, joined(state.params)))
                    step, due = step + call.steps, Due.at(step + call.steps, setup, settings)
                    run.prepare_next(feed, metrics, call.steps)
                    run.trace.after_step(state)
                    if due.reports:
                        run.report(state, step, due, before)
                    run.stopper.check()
                summary = run.evaluate_once(state, step, settings.final_split)
        except Stopped as stopped:
            raise run.saved(state, step, stopped, label) from None
        finally:
            line.clear()
    return _write_result(folder, run, state, summary)


@contextlib.contextmanager
def _opened(
    settings: Settings,
    setup: Setup,
    folder: AnyPath,
    profile: AnyPath | None,
    stopper: Stopper,
    show: Show,
) -> Iterator["_Run"]:
    """Opens the files of a run. They are closed in any case: a checkpoint on its way arrives."""
    with (
        contextlib.closing(Checkpoints(folder / CHECKPOINTS)) as checkpoints,
        contextlib.closing(MetricsLog(folder)) as log,
        contextlib.closing(Trace(profile)) as trace,
    ):
        stopwatch = Stopwatch(settings.batch_size)
        yield _Run(settings, setup, checkpoints, log, trace, stopwatch, stopper, show, [])


class _Run(NamedTuple):
    """What `train` does around its steps: it restores, measures, evaluates and saves.

    window  the metrics of the calls since the last report, and how many steps each of them had
    """

    settings: Settings
    setup: Setup
    checkpoints: Checkpoints
    log: MetricsLog
    trace: Trace
    stopwatch: Stopwatch
    stopper: Stopper
    show: Show
    window: list[tuple[StepMetrics, int]]

    def restored(self, state: TrainState, hyperparameters: Mapping[str, Any]) -> TrainState:
        """Returns the state of the newest checkpoint, or `state`; the log goes on from there."""
        state, timing = self.checkpoints.restore(state)
        self.stopwatch.seconds, self.stopwatch.steps = timing
        self.log.resume(int(state.step), hyperparameters)
        return state

    @contextlib.contextmanager
    def compiling(self, step: int, feed: HostFeed | DeviceFeed) -> Iterator[None]:
        """Surrounds the first step, for which JAX compiles; times only later ones.

        A signal ends the process while it compiles, so that it needs not wait for minutes: there is
        nothing to save.
        """
        self.log.write_images(step + 1, "train/input", feed.images())
        self.show("compiling")
        with self.stopper.may_die():
            yield
        self.stopwatch.start(step + 1)
        self.show("training")

    def prepare_next(self, feed: HostFeed | DeviceFeed, metrics: StepMetrics, steps: int) -> None:
        """Fetches the next batch while the devices compute what a call of `steps` measures.

        Then waits for the call before it: a signal waits for two calls at most.
        """
        self.window.append((metrics, steps))
        with self.stopwatch.fetching(functools.partial(_ready, metrics)):
            feed.prepare()
        if len(self.window) > 1:
            jax.block_until_ready(self.window[-2][0])

    def report(self, state: TrainState, step: int, due: Due, before: Any) -> None:
        """Writes what was measured since the last report, and saves and evaluates what is due.

        `before` are the parameters before the last step, joined.
        """
        done = unstack(self.window)
        self.window.clear()
        self._check_finite(done, step)
        values = {f"train/{name}": value for name, value in summarize(done).items()}
        loss = values.get("train/loss")
        values["train/learning_rate"] = float(self.setup.steps.schedule(step - 1))
        self.stopwatch.stop(step)
        norms = map(float, parameter_norms(state.params, before))
        for name, norm in zip(("parameter", "update"), norms, strict=True):
            if math.isfinite(norm):  # else the next step or checkpoint says why
                values[f"train/{name}_norm"] = norm
        values["train/images_per_second"] = self.stopwatch.latest_images_per_second
        values["train/waiting_for_input"] = self.stopwatch.waiting
        self.log.write(step, values)
        self.show(progress(step, self.setup.durations.total, loss, self.stopwatch))
        if due.saves:
            self.save(state, step)
        if due.validates:
            self.evaluate(state, step, "validation")
        self.stopwatch.start(step)

    def save(self, state: TrainState, step: int) -> None:
        """Saves a state, after all lines of the log until then."""
        self.log.store()
        timing = Timing(self.stopwatch.seconds, self.stopwatch.steps)
        self.checkpoints.save(step, state, timing)

    def saved(self, state: TrainState, step: int, stopped: Stopped, label: str) -> Stopped:
        """Saves the state after a signal; returns the exception that says so."""
        self.stopwatch.stop(step)
        if step == 0:
            return stopped
        try:
            self.save(state, step)
        except NotFinite as error:
            return Stopped(f"{stopped}; {label}: {error}")
        return Stopped(f"{stopped}; step {step} of {label} is saved in {self.log.folder}")

    def repeat_validation(self, state: TrainState, step: int) -> None:
        """Evaluates on validation if the run was stopped while it did."""
        if step and Due.at(step, self.setup, self.settings).validates:
            self.evaluate_once(state, step, "validation")

    def evaluate_once(self, state: TrainState, step: int, split: str) -> dict[str, float]:
        """Evaluates, unless the log has the result: the process died before it wrote more."""
        if broadcast_from_primary(bool(self.log.evaluation(step, split))):
            return self.log.evaluation(step, split)
        return self.evaluate(state, step, split)

    def evaluate(self, state: TrainState, step: int, split: str) -> dict[str, float]:
        """Evaluates a state, and writes the result to the log.

        Validation also evaluates the parameters that are averaged, beside their averages.
        """
        self.show("evaluating")
        summary = self._summary(state, split)
        values = {f"{split}/{name}": value for name, value in summary.items()}
        if split == "validation" and state.ema is not None:
            raw = self._summary(state.without_averages(), split)
            values |= {f"{split}/raw_{name}": raw[name] for name in ("loss", "accuracy")}
        self.log.write(step, values)
        self.log.store()
        return summary

    def _summary(self, state: TrainState, split: str) -> dict[str, float]:
        return evaluate(
            lambda batch: self.setup.steps.evaluate(state, shard(batch)),
            self.setup.dataset,
            split,
            self.settings.eval_batch_size,
            self.setup.eval_view,
            before_batch=lambda _: self.stopper.check(),
        )

    def _check_finite(self, done: Sequence[StepMetrics], step: int) -> None:
        """Raises NotFinite if a metric is not finite, or if too many steps were skipped."""
        bad = first_not_finite(done)
        skipped = max((int(metrics.skipped_in_a_row or 0) for metrics in done), default=0)
        if bad is None and skipped < MOST_SKIPPED:
            return
        if bad is not None:
            bad_step = step - len(done) + 1 + bad
            where = f"at step {bad_step}"
        else:
            bad_step = step
            where = f"in {skipped} steps in a row up to step {step}"
        raise NotFinite(
            f"the loss or its gradient is not finite {where} "
            f"(learning rate {float(self.setup.steps.schedule(bad_step - 1)):.4g}): lower "
            "optimization.learning_rate or lengthen optimization.warmup, in another --workdir"
            f"{'' if bad is None else ', or leave such steps out with --config.on_nan skip'}; "
            f"{self.checkpoints.newest()}"
        )


def _ready(metrics: StepMetrics) -> bool:
    """Tells whether the devices have computed the metrics of a step."""
    return all(array.is_ready() for array in jax.tree.leaves(metrics))


def _describe(folder: AnyPath, setup: Setup, state: TrainState) -> None:
    """Writes what others need to use the network (pixels, sizes, names), and its parameters.

    Raises UserError if the run was trained on other classes.
    """
    if not is_writer():
        return
    check_classes_of_run(folder, setup.dataset)
    height, width, channels = setup.image_shape
    description = native.description_of(
        setup.model, channels, setup.preprocess, (height, width), setup.dataset.class_names
    )
    examples = {EXAMPLES: setup.dataset.num_examples("train")}
    native.write_description(folder, {**description, **examples})
    table = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    write_text(folder / PARAMETERS, table + "\n")


def _write_result(
    folder: AnyPath, run: _Run, state: TrainState, summary: dict[str, float]
) -> dict[str, Any]:
    """Writes result.json, which says that the run is finished, and returns its content."""
    setup, stopwatch = run.setup, run.stopwatch
    images = stopwatch.steps * stopwatch.batch_size
    result = {
        run.settings.final_split: summary,
        "parameters": complexity.parameters(setup.model, setup.image_shape),
        "multiply_adds": complexity.multiply_adds(setup.model, setup.image_shape),
        "steps": setup.durations.total,
        "images_per_second": images / stopwatch.seconds if stopwatch.seconds else 0.0,
        "train_seconds": stopwatch.seconds,
        "waiting_for_input": stopwatch.waiting,
        "skipped_steps": int(state.skipped),
        # With compilation, if the cache lacks the step; 0 if this process had no step to do.
        "first_step_seconds": stopwatch.first_start_seconds,
    }
    if is_writer():
        write_json(folder / RESULT, result)
    return result
