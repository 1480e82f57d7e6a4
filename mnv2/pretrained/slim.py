"""Reads MobileNet and MobileNetV2 of TensorFlow's slim: checkpoints and frozen graphs.

Moving averages, with which the authors evaluated, are preferred. There are 1001 classes, of which
the first is the background. A frozen graph, `.pb`, may have a retrained classifier instead.
"""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from mnv2.preprocess.host import named_view
from mnv2.pretrained.infer import FileContents, Usage
from mnv2.pretrained.names import tensor_names, translate
from mnv2.pretrained.preprocessing import Preprocessing, size_in_name, size_to_assume
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note

SCOPES = {"MobilenetV1/": "mobilenet_v1", "MobilenetV2/": "mobilenet_v2"}
FIELDS: dict[str, dict[str, Any]] = {
    "mobilenet_v1": {"padding": "same", "bn_epsilon": 1e-3, "bn_momentum": 0.9997},
    "mobilenet_v2": {"padding": "same", "bn_epsilon": 1e-3, "bn_momentum": 0.997},
}
SUFFIXES = (
    *("/weights", "/biases", "/BatchNorm/gamma", "/BatchNorm/beta"),
    *("/BatchNorm/moving_mean", "/BatchNorm/moving_variance"),
)
TEMPLATES = {
    "mobilenet_v1": {"stem": "MobilenetV1/Conv2d_0", "block": "MobilenetV1/Conv2d_{next}_{part}"},
    "mobilenet_v2": {
        "stem": "MobilenetV2/Conv",
        "block_0": "MobilenetV2/expanded_conv/{part}",
        "block": "MobilenetV2/expanded_conv_{block}/{part}",
        "last_conv": "MobilenetV2/Conv_1",
    },
}
LOGITS = "Logits/Conv2d_1c_1x1"
AVERAGE_SUFFIX = "/ExponentialMovingAverage"
OPTIMIZER_SUFFIXES = ("/RMSProp", "/RMSProp_1", "/Momentum", "/Adam", "/Adam_1")
SLIM = Preprocessing(named_view("slim"), (0.5,), (0.5,), assumed=True)
RETRAINED = "the retrained classifier"  # as the head of TensorFlow's retraining is called here
VARIABLE = re.compile(  # of slim, in any scope, or of such a head
    rf"(?:.*?/)??((?:{'|'.join(SCOPES)}).*/"
    r"(?:weights|depthwise_weights|biases|gamma|beta|moving_mean|moving_variance))"
    r"|(?:.*/)?final_(?:retrain|training)_ops/(weights|biases)/final_\2"
)


def find_prefix(path: Path) -> Path | None:
    """Finds the common prefix of a checkpoint's files, or the file of a frozen graph; None if none.

    `path` is the prefix, one of the files, or their folder, whose newest checkpoint is taken.
    """
    if path.suffix == ".pb" and path.is_file():
        return path
    if path.suffix in (".index", ".meta") or ".data-" in path.name:
        path = path.with_name(path.name.rpartition(".")[0])
    if path.is_dir():
        indices = sorted(path.glob("*.index"), key=lambda index: index.stat().st_mtime)
        if len(indices) > 1:
            others = ", ".join(index.stem for index in indices[-2::-1][:3])
            note(f"{path} holds {len(indices)} checkpoints: read {indices[-1].stem}, not {others}")
        return indices[-1].with_suffix("") if indices else None
    return path if path.with_name(path.name + ".index").exists() else None


def read(prefix: Path) -> FileContents:
    """Reads a checkpoint or a frozen graph. Raises UserError if it holds another network."""
    tensors, size = _load_graph(prefix) if prefix.suffix == ".pb" else (_load(prefix), None)
    found = [x for x in SCOPES if f"{TEMPLATES[SCOPES[x]]['stem']}/weights" in tensors]
    if len(found) != 1:
        raise UserError("it holds no MobileNet or MobileNetV2 of slim")
    (scope,) = found
    network = SCOPES[scope]
    top = scope + LOGITS
    if is_retrained := f"{RETRAINED}/weights" in tensors:
        tensors = {name: array for name, array in tensors.items() if not name.startswith(top)}
        top = RETRAINED
    classifier = {"classifier": top} if f"{top}/weights" in tensors else {}
    names = tensor_names(network, TEMPLATES[network] | classifier, SUFFIXES)
    own = {name: array for name, array in tensors.items() if name.startswith((scope, RETRAINED))}
    arrays = translate(own, names, tensorflow_layout)
    # Retraining does not crop pictures.
    preprocess = dataclasses.replace(SLIM, view=named_view("slim", 1.0)) if is_retrained else SLIM
    if size is None:  # a checkpoint may have its size in the name of its folder
        size = size_in_name(prefix.parent.name) or size_to_assume(prefix)
    usage = Usage(preprocess, size)
    return FileContents(network, arrays, names, FIELDS[network], usage, own_classes=is_retrained)


def tensorflow_layout(path: str, array: np.ndarray) -> np.ndarray:
    """Converts an array from the layouts of TensorFlow to those of this package.

    Depthwise kernels go from h w c 1 to h w 1 c; the same transposition converts them back. A
    classifier that is a 1x1 convolution becomes a matrix.
    """
    if path.endswith("depthwise/kernel") and array.ndim == 4:
        return array.transpose(0, 1, 3, 2)
    if path == "params/classifier/kernel" and array.ndim == 4:
        return array[0, 0]
    return array


def _load(prefix: Path) -> dict[str, np.ndarray]:
    """Reads the variables of a checkpoint, without optimiser states, averaged if possible."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(prefix))
    names = [
        name for name in reader.get_variable_to_shape_map() if not name.endswith(OPTIMIZER_SUFFIXES)
    ]
    averaged = {
        name.removesuffix(AVERAGE_SUFFIX) for name in names if name.endswith(AVERAGE_SUFFIX)
    }
    return {
        name.removesuffix(AVERAGE_SUFFIX).replace("depthwise_weights", "weights"): np.asarray(
            reader.get_tensor(name)
        )
        for name in names
        if name not in averaged
    }


def _load_graph(path: Path) -> tuple[dict[str, np.ndarray], tuple[int, int] | None]:
    """Reads the constants of a frozen graph by slim's names, and the size of its pictures."""
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    tensors: dict[str, np.ndarray] = {}
    size = None
    for node in graph.node:
        if node.op == "Placeholder" and len(node.attr["shape"].shape.dim) == 4:
            _, height, width, _ = (side.size for side in node.attr["shape"].shape.dim)
            size = size or ((height, width) if min(height, width) > 0 else None)
        if node.op.startswith("FusedBatchNorm"):
            _check_epsilon(node.name, node.attr["epsilon"].f)
        if node.op != "Const" or node.attr["dtype"].type != tf.float32.as_datatype_enum:
            continue
        array = tf.make_ndarray(node.attr["value"].tensor)
        if node.name.endswith("/batchnorm/add/y"):
            _check_epsilon(node.name, float(array))
        if own := VARIABLE.fullmatch(node.name):
            name = own[1] or f"{RETRAINED}/{own[2]}"
            tensors[name.replace("depthwise_weights", "weights")] = array
        elif array.ndim > 1 and array.size > 1:
            raise UserError(
                f"the constant {node.name} of shape {array.shape} belongs to no MobileNet of slim"
            )
    if any(node.op.startswith("FakeQuant") for node in graph.node):
        note(f"{path} simulates numbers of 8 bits: that is left out")
    return tensors, size


def _check_epsilon(name: str, value: float) -> None:
    if not math.isclose(value, FIELDS["mobilenet_v2"]["bn_epsilon"], rel_tol=1e-4):
        raise UserError(f"the batch norm {name} has the epsilon {value:.3g}, not 0.001")
