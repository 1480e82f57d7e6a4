"""Reads MobileNet and MobileNetV2 from checkpoints of TensorFlow's slim, `model.ckpt-N`.

If a checkpoint has moving averages of its trained variables, they are read instead of the
variables, since the authors evaluated with them. There are 1001 classes; the first is background.
"""

from pathlib import Path

import numpy as np

from mnv2.pretrained.infer import FileContents
from mnv2.pretrained.names import NUM_BLOCKS, VariableSuffixes, tensor_names, translate
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.runtime.errors import UserError

SCOPES = {"MobilenetV1/": "mobilenet_v1", "MobilenetV2/": "mobilenet_v2"}
FIELDS = {
    "mobilenet_v1": {"padding": "same", "bn_epsilon": 1e-3, "bn_momentum": 0.9997},
    "mobilenet_v2": {"padding": "same", "bn_epsilon": 1e-3, "bn_momentum": 0.997},
}
VARIABLE_SUFFIXES = VariableSuffixes(
    "/weights", "/biases", "/gamma", "/beta", "/moving_mean", "/moving_variance"
)
AVERAGE_SUFFIX = "/ExponentialMovingAverage"
OPTIMIZER_SUFFIXES = ("/RMSProp", "/RMSProp_1", "/Momentum", "/Adam", "/Adam_1")
SLIM = Preprocessing("slim", 0.875, (0.5,), (0.5,))


def find_prefix(path: Path) -> Path | None:
    """Finds the common prefix of a checkpoint's files.

    `path` is the prefix itself, one of the files, or their folder. In a folder of several
    checkpoints the newest one is found. Returns None if there is no checkpoint.
    """
    if path.suffix in (".index", ".meta") or ".data-" in path.name:
        path = path.with_name(path.name.rpartition(".")[0])
    if path.is_dir():
        indices = sorted(path.glob("*.index"), key=lambda index: index.stat().st_mtime)
        return indices[-1].with_suffix("") if indices else None
    return path if path.with_name(path.name + ".index").exists() else None


def read(prefix: Path) -> FileContents:
    """Reads a checkpoint. Raises UserError if it is damaged or holds another network."""
    tensors = _load(prefix)
    scopes = [scope for scope in SCOPES if scope + _stem_kernel(scope) in tensors]
    if len(scopes) != 1:
        raise UserError(f"{prefix} holds no MobileNet or MobileNetV2 of slim")
    (scope,) = scopes
    network = SCOPES[scope]
    has_classifier = scope + "Logits/Conv2d_1c_1x1/weights" in tensors

    def layer_names(module: str) -> tuple[str, str]:
        layer = scope + (_v1_layer(module) if network == "mobilenet_v1" else _v2_layer(module))
        return layer, f"{layer}/BatchNorm"

    names = tensor_names(
        network, NUM_BLOCKS[network], layer_names, VARIABLE_SUFFIXES, has_classifier
    )
    in_scope = {name: array for name, array in tensors.items() if name.startswith(scope)}
    arrays = translate(in_scope, names, tensorflow_layout)
    return FileContents(network, arrays, names, FIELDS[network], SLIM)


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

    try:
        reader = tf.train.load_checkpoint(str(prefix))
        names = [
            name
            for name in reader.get_variable_to_shape_map()
            if not name.endswith(OPTIMIZER_SUFFIXES)
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
    except (tf.errors.OpError, ValueError, IndexError) as error:
        raise UserError(f"cannot read {prefix}: {str(error).splitlines()[0]}") from error


def _stem_kernel(scope: str) -> str:
    return "Conv2d_0/weights" if scope == "MobilenetV1/" else "Conv/weights"


def _v1_layer(module: str) -> str:
    if module == "stem":
        return "Conv2d_0"
    if module == "classifier":
        return "Logits/Conv2d_1c_1x1"
    block, part = module.removeprefix("block_").split("/")
    return f"Conv2d_{int(block) + 1}_{part}"


def _v2_layer(module: str) -> str:
    outside_blocks = {
        "stem": "Conv",
        "last_conv": "Conv_1",
        "classifier": "Logits/Conv2d_1c_1x1",
    }
    if module in outside_blocks:
        return outside_blocks[module]
    block, part = module.removeprefix("block_").split("/")
    return f"expanded_conv{'' if block == '0' else '_' + block}/{part}"
