"""One framework at one task, in a process of its own, timed on request.

python -m experiments.contenders NAME TASK runs it for `experiments.throughput`, over a pipe: it
says "ready" when it has compiled, then answers each "SECONDS" it reads by a line of JSON, the
seconds of every step that began within them, and its peak resident memory. Frameworks are
imported only by the contender that uses them, so each is optional.
"""

import contextlib
import ctypes
import dataclasses
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.timing import Step, times

READING = ("load", "feed")  # modes that need pictures


@dataclasses.dataclass(frozen=True)
class Task:
    """What is timed, on batches of square images of 1000 classes.

    train   training steps on random images
    infer   inference on random images
    load    reading pictures: JPEG decoding, Inception's crop, flip
    feed    training steps on what is read
    """

    mode: str = "train"
    network: str = "mobilenet_v2"  # or mobilenet_v1
    width: float = 1.0
    size: int = 224
    batch: int = 32
    threads: int = 2
    pictures: str = ""  # folder with train/CLASS/*.jpg, for load and feed

    def __str__(self) -> str:
        network = {"mobilenet_v1": "V1", "mobilenet_v2": "V2"}[self.network]
        what = self.mode if self.mode == "load" else f"{self.mode} {network} {self.width:g}"
        return f"{what}, {self.size} px, batch {self.batch}"

    def images(self) -> np.ndarray:
        shape = (self.batch, self.size, self.size, 3)
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def labels(self) -> np.ndarray:
        return np.random.default_rng(1).integers(0, 1000, self.batch).astype(np.int32)


def mnv2(task: Task) -> Step:
    """This package: the training step of `mnv2.main`, or a network ready for inference."""
    import jax

    from mnv2 import data, models
    from mnv2.training import steps

    if task.mode in READING:
        dataset = data.open_dataset(f"folder:{task.pictures}", None)
        batches = data.train_batches(
            dataset,
            task.batch,
            seed=0,
            size=(task.size, task.size),
            augmentation="inception",
        )
    if task.mode == "load":
        return lambda: next(batches)

    model: Any
    one_image = task.images()[:1]
    if task.mode == "infer":
        model = models.create_model(task.network, width=task.width)
        variables = random_statistics(unoptimised(model.init)(jax.random.key(0), one_image))
        infer = models.for_inference(model, variables)
        images = jax.device_put(task.images())
        return lambda: infer(images).block_until_ready()

    from configs import v2_ablation
    from mnv2.training.devices import AXIS
    from mnv2.training.state import create_state

    config = v2_ablation.get_config()
    config.batch_size, config.ema_decay = task.batch, 0.0
    model = models.create_model(task.network, width=task.width, axis_name=AXIS)
    compiled = steps.compile_steps(model, steps.step_settings(config), 10_000, 1_000_000)
    shape = (task.size, task.size, 3)
    state = compiled.place(create_state(model, compiled.optimizer, shape, seed=0, ema=False))
    random_batch = compiled.shard({"image": task.images(), "label": task.labels()})
    key = jax.random.key(0)

    def step() -> None:
        nonlocal state
        batch = compiled.shard(next(batches)) if task.mode == "feed" else random_batch
        state, sums = compiled.train(state, batch, key)
        jax.block_until_ready((state, sums))

    return step


def flax(task: Task) -> Step:
    """Flax and XLA as they come: nn.Conv with feature_group_count, nn.BatchNorm."""
    import jax
    import optax

    from experiments import stock_flax

    model = stock_flax.MobileNet(task.network, task.width)
    init = unoptimised(lambda image: model.init(jax.random.key(0), image, train=False))
    variables = init(task.images()[:1])
    images = jax.device_put(task.images())
    if task.mode == "infer":
        variables = random_statistics(variables)
        apply = jax.jit(lambda images: model.apply(variables, images, train=False))
        return lambda: apply(images).block_until_ready()

    optimizer = optax.sgd(0.01, momentum=0.9)
    labels = jax.device_put(task.labels())

    def train_step(state):
        params, statistics, opt_state = state

        def loss_of(params):
            logits, changed = model.apply(
                {"params": params, "batch_stats": statistics},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), changed["batch_stats"]

        gradients, statistics = jax.grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), statistics, opt_state

    compiled = jax.jit(train_step, donate_argnums=0)
    params = variables["params"]
    state = (params, variables["batch_stats"], optimizer.init(params))

    def step() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(state))

    return step


def pytorch(task: Task, compiled: bool = False) -> Step:
    """torchvision's (V1: timm's) network in eager mode, channels last."""
    import torch

    torch.set_num_threads(task.threads)
    if task.mode in READING:
        batches = _torch_batches(task)
    if task.mode == "load":
        return lambda: next(batches)
    model = _torch_model(task).to(memory_format=torch.channels_last)
    images = torch.from_numpy(task.images()).permute(0, 3, 1, 2)
    images = images.contiguous(memory_format=torch.channels_last)
    if task.mode == "infer":
        model = torch.compile(model.eval()) if compiled else model.eval()

        def infer() -> None:
            with torch.inference_mode():
                model(images)

        return infer

    labels = torch.from_numpy(task.labels()).long()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=4e-5)
    loss_of = torch.nn.CrossEntropyLoss()
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        x, y = next(batches) if task.mode == "feed" else (images, labels)
        optimizer.zero_grad(set_to_none=True)
        loss_of(forward(x.contiguous(memory_format=torch.channels_last)), y).backward()
        optimizer.step()

    return step


def pytorch_compiled(task: Task) -> Step:
    """The same under torch.compile."""
    return pytorch(task, compiled=True)


def keras(task: Task) -> Step:
    """keras.applications on TensorFlow, by train_on_batch and predict_on_batch."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(task.threads)
    model, images = _keras_model(task), tf.constant(task.images())
    if task.mode == "infer":
        return lambda: model.predict_on_batch(images)
    import keras

    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=4e-5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    labels = tf.constant(task.labels())
    return lambda: model.train_on_batch(images, labels)


def onnxruntime(task: Task) -> Step:
    """torchvision's network through ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = task.threads
    session = ort.InferenceSession(_onnx_model(task), options, providers=["CPUExecutionProvider"])
    images = np.ascontiguousarray(task.images().transpose(0, 3, 1, 2))
    return lambda: session.run(None, {"images": images})


def openvino(task: Task) -> Step:
    """torchvision's network through OpenVINO, in float32."""
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": task.threads,
    }
    core = ov.Core()
    request = core.compile_model(core.read_model(_onnx_model(task)), "CPU", settings)
    request = request.create_infer_request()
    images = ov.Tensor(np.ascontiguousarray(task.images().transpose(0, 3, 1, 2)))
    return lambda: request.infer({0: images})


def litert(task: Task) -> Step:
    """keras.applications converted to TensorFlow Lite, with XNNPACK."""
    import keras
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    image = keras.Input((task.size, task.size, 3), task.batch)
    model = keras.Model(image, _keras_model(task)(image))
    # Not by a concrete function: that leaves batch norm unfolded, and most of it out of XNNPACK.
    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    interpreter = Interpreter(model_content=content, num_threads=task.threads)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], task.images())
    return interpreter.invoke


# What each needs, and the modes it can do.
CONTENDERS: dict[str, tuple[Callable[[Task], Step], tuple[str, ...], tuple[str, ...]]] = {
    "mnv2": (mnv2, (), ("train", "infer", "load", "feed")),
    "Flax": (flax, (), ("train", "infer")),
    "PyTorch": (pytorch, ("torchvision", "timm"), ("train", "infer", "load", "feed")),
    "torch.compile": (pytorch_compiled, ("torchvision", "timm"), ("train", "infer")),
    "Keras": (keras, ("keras",), ("train", "infer")),
    "ONNX Runtime": (onnxruntime, ("onnxruntime", "onnxscript", "torchvision", "timm"), ("infer",)),
    "OpenVINO": (openvino, ("openvino", "onnxscript", "torchvision", "timm"), ("infer",)),
    "LiteRT": (litert, ("ai_edge_litert", "keras"), ("infer",)),
}


def missing(name: str) -> list[str]:
    """The packages that a contender needs and that are not installed."""
    return [package for package in CONTENDERS[name][1] if not importlib.util.find_spec(package)]


def _torch_model(task: Task) -> Any:
    if task.network == "mobilenet_v2":
        import torchvision

        return torchvision.models.mobilenet_v2(width_mult=task.width)
    import timm

    return timm.create_model("mobilenetv1_100", channel_multiplier=task.width)


def _torch_batches(task: Task) -> Iterator[Any]:
    """Batches for ever, as torchvision's users read them: a worker process a thread."""
    import torch
    from torchvision import datasets, transforms

    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(task.size, scale=(0.05, 1)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5,), (0.5,)),
        ]
    )
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(f"{task.pictures}/train", view),
        task.batch,
        shuffle=True,
        drop_last=True,
        num_workers=task.threads,
        persistent_workers=True,
    )
    while True:
        yield from loader


def _keras_model(task: Task) -> Any:
    import keras

    network = {
        "mobilenet_v2": keras.applications.MobileNetV2,
        "mobilenet_v1": keras.applications.MobileNet,
    }[task.network]
    return network((task.size, task.size, 3), task.width, weights=None, classifier_activation=None)


def _onnx_model(task: Task) -> bytes:
    import io

    import torch

    image = torch.zeros(task.batch, 3, task.size, task.size)
    file = io.BytesIO()
    torch.onnx.export(
        _torch_model(task).eval(), (image,), file, input_names=["images"], dynamo=False
    )
    return file.getvalue()


def unoptimised(init: Callable[..., Any]) -> Callable[..., Any]:
    import jax

    # It runs once: compiled without optimisation, in a quarter of the time.
    return jax.jit(init, compiler_options={"xla_backend_optimization_level": 0})


def random_statistics(variables: Any) -> Any:
    """Statistics as a trained network has them: with zeros and ones XLA could skip work."""
    import jax

    random = np.random.default_rng(0)
    return {
        **variables,
        "batch_stats": jax.tree.map(
            lambda x: random.uniform(0.5, 1.5, x.shape).astype(np.float32),
            variables["batch_stats"],
        ),
    }


def reset_peak_memory() -> None:
    with contextlib.suppress(OSError):  # not on every kernel
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Peak resident bytes since the reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _end_with_parent() -> None:
    """Has Linux kill this process when its parent ends: stopped, it would stay for ever."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    name, fields = sys.argv[1:]
    _end_with_parent()
    task = Task(**json.loads(fields))
    # All frameworks see the same processors; XLA takes its number of threads from this.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.threads])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what frameworks print goes to the log
    step = CONTENDERS[name][0](task)
    for _ in range(3):
        step()
    reset_peak_memory()
    answers.write("ready\n")
    for line in sys.stdin:
        seconds = list(times(step, float(line)))
        answers.write(json.dumps({"seconds": seconds, "peak_memory": peak_memory()}) + "\n")


if __name__ == "__main__":
    main()
