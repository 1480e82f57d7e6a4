"""The step of each framework at a task, ready to be timed.

Each framework is imported only by its own function, so each is optional.
"""

import importlib.util
import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.common.timing import Step
from experiments.speed.frameworks.tasks import AUGMENTATIONS, READING, Task
from mnv2.runtime.errors import check_choice


def mnv2(task: Task) -> Step:
    """This project: the training step of `mnv2.main`, or `models.for_inference`."""
    from experiments.speed.frameworks import our_steps
    from mnv2 import data
    from mnv2.preprocess import PICTURES, Pipeline, parse
    from mnv2.preprocess.host import View
    from mnv2.training.seen import on_device

    batches = None
    if task.mode in READING:
        dataset = data.open_dataset(f"folder:{task.pictures}", None)
        pipeline = parse(AUGMENTATIONS[task.augmentation], "augmentation")
        view = View(pipeline, (task.size, task.size), 3, rounds=True)
        batches = data.train_batches(dataset, task.batch, seed=0, view=view)
    if batches is not None and task.mode == "load":
        changes = Pipeline(pipeline.of(PICTURES))
        return lambda: on_device(changes, next(batches)["image"], 0)
    if task.mode == "infer":
        return our_steps.inference(task)
    return our_steps.training(task, batches)


def flax(task: Task) -> Step:
    """Plain Flax: nn.Conv with feature_group_count, and nn.BatchNorm."""
    import jax
    import jax.numpy as jnp

    from experiments.common.networks import random_statistics, unoptimised
    from experiments.speed.frameworks.stock_flax import StockNetwork, sgd_step

    model = StockNetwork(task.network, task.width, dtype=jnp.dtype(task.dtype))
    init = unoptimised(lambda image: model.init(jax.random.key(0), image, train=False))
    variables = init(task.images()[:1])
    images = jax.device_put(task.images())
    if task.mode == "infer":
        variables = random_statistics(variables)
        apply = jax.jit(lambda images: model.apply(variables, images, train=False))
        return lambda: apply(images).block_until_ready()

    labels = jax.device_put(task.labels())
    optimizer, train_step = sgd_step(model, learning_rate=0.01)
    compiled = jax.jit(train_step, donate_argnums=(0, 1, 2))
    params = variables["params"]
    state = (params, variables["batch_stats"], optimizer.init(params))

    def step() -> None:
        nonlocal state
        *new, loss = compiled(*state, images, labels)
        state = tuple(new)
        jax.block_until_ready((state, loss))

    return step


def pytorch(task: Task, compiled: bool = False) -> Step:
    """PyTorch in eager mode, channels last: torchvision's V2 and ResNet-50, timm's V1.

    On a GPU it chooses the fastest convolutions, and multiplies float32 as TF32, as JAX does.
    """
    import torch

    torch.set_num_threads(task.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True
    bfloat16 = torch.autocast(device, torch.bfloat16, enabled=task.dtype == "bfloat16")
    if task.mode in READING:
        batches = _torch_batches(task)
    if task.mode == "load":
        return lambda: next(batches)
    model = _torch_model(task).to(device, memory_format=torch.channels_last)
    images = torch.from_numpy(task.images()).permute(0, 3, 1, 2).to(device)
    images = images.contiguous(memory_format=torch.channels_last)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    if task.mode == "infer":
        model = torch.compile(model.eval()) if compiled else model.eval()

        def infer() -> None:
            with torch.inference_mode(), bfloat16:
                model(images)
            wait()

        return infer

    labels = torch.from_numpy(task.labels()).long().to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=4e-5)
    loss_of = torch.nn.CrossEntropyLoss()
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        x, y = next(batches) if task.mode == "feed" else (images, labels)
        x, y = x.to(device, memory_format=torch.channels_last), y.to(device)
        optimizer.zero_grad(set_to_none=True)
        with bfloat16:
            loss = loss_of(forward(x), y)
        loss.backward()
        optimizer.step()
        wait()

    return step


def keras(task: Task) -> Step:
    """keras.applications on TensorFlow, with train_on_batch and predict_on_batch."""
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


type Export = Callable[[Task], tuple[bytes, np.ndarray]]  # a file of a network, and its input


def _onnxruntime(export: Export, task: Task) -> Step:
    content, images = export(task)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: np.ascontiguousarray(images)}
    return lambda: session.run(None, given)


def _openvino(export: Export, task: Task) -> Step:
    content, images = export(task)
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": task.threads,
    }
    core = openvino.Core()
    request: Any = core.compile_model(core.read_model(content), "CPU", settings)
    request = request.create_infer_request()
    given = openvino.Tensor(np.ascontiguousarray(images))
    return lambda: request.infer({0: given})


def _litert(export: Export, task: Task) -> Step:
    content, images = export(task)
    from ai_edge_litert.interpreter import Interpreter

    from mnv2.deployment.exported import quantized

    interpreter = Interpreter(model_content=content, num_threads=task.threads)
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    interpreter.set_tensor(given["index"], quantized(images, given))
    return interpreter.invoke


def _of_pytorch(task: Task) -> tuple[bytes, np.ndarray]:
    """Returns the network of `pytorch` as an ONNX file, and its input."""
    import torch

    images, file = task.images().transpose(0, 3, 1, 2), io.BytesIO()
    example = (torch.zeros(images.shape),)
    model = _torch_model(task).eval()
    torch.onnx.export(model, example, file, input_names=["images"], dynamo=False)
    return file.getvalue(), images


def _of_keras(task: Task) -> tuple[bytes, np.ndarray]:
    """Returns keras.applications' network as a file of TensorFlow Lite, and its input."""
    import keras
    import tensorflow as tf

    image = keras.Input((task.size, task.size, 3), task.batch)
    model = keras.Model(image, _keras_model(task)(image))
    # Converting a concrete function would leave batch norm unfolded, and most of it out of XNNPACK.
    return tf.lite.TFLiteConverter.from_keras_model(model).convert(), task.images()


def _of_mnv2(to: str, task: Task) -> tuple[bytes, np.ndarray]:
    """Returns this project's network as a file for normalised images and logits, and its input."""
    from experiments.common.networks import random_network
    from mnv2.deployment.formats import content
    from mnv2.deployment.program import program_of
    from mnv2.pretrained import Preprocessing, Pretrained

    model, variables = random_network("mobilenet_v2", width=task.width)
    loaded = Pretrained(model, variables, Preprocessing(), (task.size, task.size))
    program = program_of(loaded, pixels=False, batch=task.batch)
    return content(program, to, [task.images()]), task.images()


_to_onnx, _to_litert = partial(_of_mnv2, "onnx"), partial(_of_mnv2, "litert")


class Framework(NamedTuple):
    """A framework: how its step is made, the packages it needs, and its modes."""

    make_step: Callable[[Task], Step]
    packages: tuple[str, ...]
    modes: tuple[str, ...] = ("infer",)


TORCH, ONNX = ("torchvision", "timm"), ("torchvision", "timm", "onnxscript")
ALL, WITHOUT_PICTURES = ("train", "infer", "load", "feed"), ("train", "infer")
CONTENDERS = {
    "mnv2": Framework(mnv2, (), ALL),
    "Flax": Framework(flax, (), WITHOUT_PICTURES),
    "PyTorch": Framework(pytorch, TORCH, ALL),
    "torch.compile": Framework(partial(pytorch, compiled=True), TORCH, WITHOUT_PICTURES),
    "Keras": Framework(keras, ("keras",), WITHOUT_PICTURES),
    "ONNX Runtime": Framework(partial(_onnxruntime, _of_pytorch), ("onnxruntime", *ONNX)),
    "OpenVINO": Framework(partial(_openvino, _of_pytorch), ("openvino", *ONNX)),
    "LiteRT": Framework(partial(_litert, _of_keras), ("ai_edge_litert", "keras")),
    "mnv2 in ONNX Runtime": Framework(partial(_onnxruntime, _to_onnx), ("onnxruntime", "onnx")),
    "mnv2 in OpenVINO": Framework(partial(_openvino, _to_onnx), ("openvino", "onnx")),
    "mnv2 in LiteRT": Framework(
        partial(_litert, _to_litert), ("ai_edge_litert", "litert_converter")
    ),
}


def installed(names: Iterable[str]) -> list[str]:
    """Returns the installed frameworks, and prints the missing packages of the others.

    Raises UserError for a name that does not exist.
    """
    found = []
    for name in names:
        check_choice(name, CONTENDERS, "framework")
        packages = CONTENDERS[name].packages
        lacking = [package for package in packages if not importlib.util.find_spec(package)]
        if lacking:
            missing = ", ".join(lacking)
            print(f"{name} is left out: not installed: {missing} (make throughput installs it)")
        else:
            found.append(name)
    return found


def _torch_model(task: Task) -> Any:
    import timm
    import torchvision

    if task.network == "mobilenet_v1":
        return timm.create_model("mobilenetv1_100", channel_multiplier=task.width)
    if task.network == "resnet50":
        return torchvision.models.resnet50()
    return torchvision.models.mobilenet_v2(width_mult=task.width)


def _torch_batches(task: Task) -> Iterator[Any]:
    """Yields batches without end, read as torchvision users do: one worker process per thread."""
    import torch
    from torchvision import datasets, transforms

    crop = transforms.RandomResizedCrop(task.size, scale=(0.05, 1))
    view = [crop, transforms.RandomHorizontalFlip()]
    if task.augmentation == "random":
        view.append(transforms.RandAugment())
    elif task.augmentation == "trivial_wide":
        view.append(transforms.TrivialAugmentWide())
    elif task.augmentation == "auto_imagenet":
        view.append(transforms.AutoAugment())
    view += [transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))]
    if task.augmentation == "erasing":
        view.append(transforms.RandomErasing(1.0))
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(f"{task.pictures}/train", transforms.Compose(view)),
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

    shape = (task.size, task.size, 3)
    network = keras.applications.MobileNetV2
    return network(shape, task.width, weights=None, classifier_activation=None)
