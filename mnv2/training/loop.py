"""One run, top to bottom: trains a network on a data set, evaluates it, and writes the result."""

import contextlib
import functools
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from mnv2.analysis import complexity
from mnv2.pretrained import native
from mnv2.runtime.errors import NotFinite, UserError, is_store_error, reason
from mnv2.runtime.files import AnyPath, write_json
from mnv2.runtime.interruption import Stopped, Stopper
from mnv2.runtime.layout import CHECKPOINTS, RESULT
from mnv2.runtime.processes import is_writer, of_first
from mnv2.runtime.terminal import StatusLine
from mnv2.runtime.throughput import Stopwatch
from mnv2.training import metrics
from mnv2.training.checkpoint import Checkpoints, Timing
from mnv2.training.classes import EXAMPLES, check_classes_of_run
from mnv2.training.devices import Devices
from mnv2.training.evaluation import evaluate
from mnv2.training.feed import feed
from mnv2.training.log import MetricsLog
from mnv2.training.progress import Progress, Show, progress
from mnv2.training.recalibrate import recalibrated
from mnv2.training.settings import Settings
from mnv2.training.setup import Setup, set_up
from mnv2.training.start import initial_state
from mnv2.training.state import TrainState
from mnv2.training.together import Member
from mnv2.training.tracing import Trace

TRAINING = "training"  # what a run does after its first step
_STARTING = threading.Lock()
MOST_SKIPPED = 10  # steps in a row, with on_nan = skip, after which a run stops


@contextlib.contextmanager
def _explained_os_errors() -> Iterator[None]:
    """Turns an error of the file system into a UserError that says how to resume."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno is None and not is_store_error(error):
            raise  # not about a file: the connection to another process is lost
        raise UserError(
            f"cannot read or write {error.filename or 'a file'}: {reason(error)}; "
            "the same command resumes from the newest checkpoint"
        ) from error
    except Exception as error:
        if not is_store_error(error):
            raise
        raise UserError(
            f"cannot read or write on Google Cloud Storage: {reason(error)}; "
            "the same command resumes from the newest checkpoint"
        ) from error


@_explained_os_errors()
def train(
    settings: Settings,
    folder: AnyPath,
    *,
    label: str = "run",
    show: Show | None = None,
    stopper: Stopper | None = None,
    profile: AnyPath | None = None,
    devices: Devices = None,
    member: Member | None = None,
) -> dict[str, Any]:
    """Trains one run in `folder`, from the newest checkpoint there or from the beginning.

    Evaluates on the validation split during training, and once, at the end, on the split that the
    settings name: test, or validation.
    Writes metrics.jsonl and the same for TensorBoard, checkpoints, and at the end result.json,
    which it also returns. Writes a trace of some steps to the folder `profile`, if it is given.
    `show` gets what the run does now; by default it is a line in the terminal. The run computes on
    `devices`, and together with others if it is the `member` of a group, in its own thread.

    Raises Stopped soon after `stopper` has noted a signal; the last step is then saved. Raises
    UserError for settings that describe no run, a loss that is not finite, and a full disk.
    """
    stopper = stopper or Stopper()
    with _STARTING:  # what several runs share is made once
        setup = set_up(settings, devices)
        state = initial_state(setup, settings)
    steps = setup.steps
    total_steps, eval_every, checkpoint_every = setup.durations
    key = jax.random.key(settings.seed)
    if is_writer():
        check_classes_of_run(folder, setup.dataset)
        _write_description(folder, setup)
    shared = devices is not None or member is not None
    with (  # closed in any case, so that a checkpoint on its way to the disk arrives
        contextlib.closing(Checkpoints(folder / CHECKPOINTS, shares_process=shared)) as checkpoints,
        contextlib.closing(MetricsLog(folder)) as log,
        contextlib.closing(Trace(profile)) as trace,
    ):
        state, timing = checkpoints.restore(state)
        step = int(state.step)  # the number of steps done; the last may still run on the devices
        log.resume(step, settings)
        stopwatch, line = Stopwatch(settings.batch_size, *timing), StatusLine(label)

        def say(now: Progress | str) -> None:
            show(now) if show else line.say(str(now))

        def validation_is_due() -> bool:
            if not (eval_every and setup.dataset.validation):
                return False
            if step == total_steps:
                return settings.final_split != "validation"  # otherwise it comes last
            return step % eval_every == 0

        def summary_of(evaluated: TrainState, split: str) -> dict[str, float]:
            return evaluate(
                functools.partial(steps.evaluate, evaluated),
                setup.dataset,
                split,
                settings.eval_batch_size,
                setup.eval_view(),
                before_batch=lambda _: stopper.check(),
                devices=devices,
            )

        def evaluate_on(split: str) -> dict[str, float]:
            """Evaluates the current state, and writes the result to the log.

            Validation also evaluates the parameters that are averaged, beside their averages.
            """
            say("evaluating")
            summary = summary_of(state, split)
            values = {f"{split}/{name}": value for name, value in summary.items()}
            if split == "validation" and state.ema is not None:
                raw = summary_of(state.without_averages(), split)
                values |= {f"{split}/raw_{name}": raw[name] for name in ("loss", "accuracy")}
            log.write(step, values)
            log.store()
            return summary

        window: list[tuple[metrics.Sums, int]] = []  # the steps since the last report
        first_step_seconds, compiled_for = 0.0, None
        try:
            with stopper.deferred():
                if (
                    step
                    and validation_is_due()
                    and not of_first(bool(log.evaluation(step, "validation")))
                ):
                    evaluate_on("validation")  # the run was stopped during this evaluation
                say("compiling")
                began = time.perf_counter()
                batches = feed(setup, settings, step, key, member)
                while step < total_steps:
                    left = _until_due(step, setup, settings)
                    # The last step before a report comes alone: its update is measured.
                    most = 1 if trace.waits or not first_step_seconds else max(1, left - 1)
                    count = batches.count(most, stopwatch.images_per_second / settings.batch_size)
                    if not count:
                        stopper.check()
                    with stopwatch.fetching(idle=lambda: _finished(window)):
                        call = batches.next(count)
                    if left == 1:
                        before = metrics.joined(state.params)
                    compiles = call.shape != compiled_for  # also when pictures begin to grow
                    if compiles:
                        jax.block_until_ready(state)
                        stopwatch.stop(step)
                        log.write_images(step + 1, "train/input", call.images() / 255)
                        # A step overwrites the arrays of its state. After a signal it may still do
                        # so while they are saved: it gets a copy, one more state in memory.
                        copied = jax.tree.map(jnp.copy, state)
                        state, sums = stopper.compile(functools.partial(call.update, copied))
                        del copied
                    else:
                        state, sums = call.update(state)
                    step += call.steps
                    window.append((sums, call.steps))
                    if len(window) > 1:  # a signal waits for two dispatches at most
                        jax.block_until_ready(window[-2][0])
                    if compiles:
                        # Compiled, the copy too: later steps are timed.
                        jax.block_until_ready((state, metrics.joined(state.params)))
                        first_step_seconds = first_step_seconds or time.perf_counter() - began
                        compiled_for = call.shape
                        stopwatch.start(step)
                        say(TRAINING)
                    trace.after_step(state)

                    saves = step == total_steps or (
                        checkpoint_every and step % checkpoint_every == 0
                    )
                    if saves or validation_is_due() or step % settings.log_every == 0:
                        done = metrics.unstack(window)
                        _check_finite(done, step, setup, checkpoints)
                        summary, values = metrics.summarize(done), {}
                        if summary["examples"]:  # none if all steps were skipped
                            for name in ("loss", "accuracy"):
                                values[f"train/{name}"] = summary[name]
                            values["train/gradient_norm"] = metrics.gradient_norm(done)
                        values["train/learning_rate"] = float(steps.schedule(step - 1))
                        if settings.on_nan == "skip":
                            values["train/skipped_steps"] = metrics.skipped(done)
                        window.clear()
                        stopwatch.stop(step)
                        norms = map(float, metrics.parameter_norms(state.params, before))
                        for name, norm in zip(("parameter", "update"), norms, strict=True):
                            if math.isfinite(norm):  # else the next step or checkpoint says why
                                values[f"train/{name}_norm"] = norm
                        if step == total_steps and settings.recalibrate:
                            say("recalibrating")
                            state = recalibrated(state, setup, settings)
                        values["train/images_per_second"] = stopwatch.latest_images_per_second
                        values["train/waiting_for_input"] = stopwatch.waiting
                        log.write(step, values)
                        loss = summary["loss"] if summary["examples"] else None
                        say(progress(step, total_steps, loss, stopwatch))
                        if saves:
                            log.store()
                            checkpoints.save(step, state, _timing(stopwatch))
                        if validation_is_due():
                            evaluate_on("validation")
                        stopwatch.start(step)
                    stopper.check()
                if member is not None:
                    member.leave()
                split = settings.final_split
                # It is there if the process died before it wrote the result.
                if of_first(bool(log.evaluation(step, split))):
                    summary_at_end = log.evaluation(step, split)
                else:
                    summary_at_end = evaluate_on(split)
        except Stopped as stopped:
            line.clear()
            stopwatch.stop(step)
            if step == 0:
                raise
            try:
                log.store()
                checkpoints.save(step, state, _timing(stopwatch))
            except NotFinite as error:
                raise Stopped(f"{stopped}; {label}: {error}") from None
            raise Stopped(f"{stopped}; step {step} of {label} is saved in {folder}") from None

    line.clear()
    result = {
        settings.final_split: summary_at_end,
        "parameters": complexity.parameters(setup.model, setup.image_shape),
        "multiply_adds": complexity.multiply_adds(setup.model, setup.image_shape),
        "steps": total_steps,
        "images_per_second": _rate(stopwatch),
        "train_seconds": stopwatch.seconds,
        "waiting_for_input": stopwatch.waiting,
        "skipped_steps": int(state.skipped),
        "first_step_seconds": first_step_seconds,  # with compilation, if the cache lacks the step
    }
    if is_writer():
        write_json(folder / RESULT, result)
    return result


def _until_due(step: int, setup: Setup, settings: Settings) -> int:
    """Returns the number of steps until the next report, evaluation, checkpoint or the end."""
    total, *intervals = setup.durations
    return min(
        total - step, *(every - step % every for every in (*intervals, settings.log_every) if every)
    )


def _check_finite(
    window: list[metrics.Sums], step: int, setup: Setup, checkpoints: Checkpoints
) -> None:
    """Raises NotFinite if a loss or gradient is not finite, or if too many steps were skipped."""
    bad = metrics.first_not_finite(window)
    skipped = metrics.skipped_in_a_row(window)
    if bad is None and skipped < MOST_SKIPPED:
        return
    if bad is not None:
        bad_step = step - len(window) + 1 + bad
        where = f"at step {bad_step}"
    else:
        bad_step = step
        where = f"in {skipped} steps in a row up to step {step}"
    raise NotFinite(
        f"the loss or its gradient is not finite {where} "
        f"(learning rate {float(setup.steps.schedule(bad_step - 1)):.4g}): lower "
        "optimization.learning_rate or lengthen optimization.warmup, in another --workdir"
        f"{'' if bad is None else ', or leave such steps out with --config.on_nan skip'}; "
        f"{checkpoints.newest()}"
    )


def _timing(stopwatch: Stopwatch) -> Timing:
    """Returns what a checkpoint keeps of a stopwatch."""
    return Timing(stopwatch.seconds, stopwatch.steps)


def _rate(stopwatch: Stopwatch) -> float:
    """Returns images per second over all timed steps of the run; 0 if none was timed."""
    images = stopwatch.steps * stopwatch.batch_size
    return images / stopwatch.seconds if stopwatch.seconds else 0.0


def _write_description(folder: AnyPath, setup: Setup) -> None:
    """Writes what others need to use the network: pixels, sizes, names of classes."""
    height, width, channels = setup.image_shape
    dataset = setup.dataset
    description = native.description_of(
        setup.model, channels, setup.preprocess, (height, width), dataset.class_names
    )
    examples = {EXAMPLES: dataset.num_examples("train")}
    native.write_description(folder, {**description, **examples})


def _finished(window: list[tuple[metrics.Sums, int]]) -> bool:
    """Tells whether the devices have finished the last steps of `window`."""
    return all(x.is_ready() for sums, _ in window[-1:] for x in jax.tree.leaves(sums))
