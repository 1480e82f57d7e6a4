"""What a saved Keras model does to pixels before its network: a scaling per channel, and a size.

Every layer between the input and the network is understood, known to do nothing in evaluation, or
named in an error.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mnv2.preprocess.host import named_view
from mnv2.pretrained.keras_graph import TENSOR, Layer
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note

# The classes of layers that do nothing in evaluation.
IDENTITY_LAYERS = frozenset(
    (
        *("InputLayer", "Identity", "Dropout", "SpatialDropout2D", "ActivityRegularization"),
        *("GaussianDropout", "GaussianNoise", "AlphaDropout", "AugMix", "RandAugment"),
        *("RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast"),
        *("RandomElasticTransform", "RandomErasing", "RandomFlip", "RandomGaussianBlur"),
        *("RandomGrayscale", "RandomHeight", "RandomHue", "RandomInvert", "RandomPerspective"),
        *("RandomPosterization", "RandomRotation", "RandomSaturation", "RandomSharpness"),
        *("RandomShear", "RandomTranslation", "RandomWidth", "RandomZoom"),
    )
)
# The interpolations of Resizing and UpSampling2D -> the method of Preprocessing.
METHODS = {"bilinear": "tensorflow", "nearest": "nearest"}
# The modules of keras.applications whose preprocess_input maps [0, 255] to [-1, 1], as MobileNet's.
MINUS_ONE_TO_ONE = (
    *("mobilenet", "mobilenet_v2", "inception_v3", "inception_resnet_v2", "nasnet", "resnet_v2"),
    "xception",
)

Affine = tuple[np.ndarray, np.ndarray]  # scale and offset, of one or all channels


@dataclasses.dataclass(frozen=True)
class Pixels:
    """What happens to pixels in [0, 255]: x * scale + offset, and perhaps a resizing.

    scale, offset  for all channels, or one per channel; None if no layer changes the values
    assumed        the meaning of a layer was guessed
    size           (height, width) at the network, if the file tells it
    first          (height, width) at the input, if layers resize from there to `size`
    method         how these layers resize, as in Preprocessing; None if there are none
    """

    scale: np.ndarray | None
    offset: np.ndarray
    assumed: bool
    size: tuple[int, int] | None
    first: tuple[int, int] | None
    method: str | None

    def preprocessing(self, default: Preprocessing) -> Preprocessing:
        """Returns `default` with what the layers do instead of it."""
        result = default
        if self.method:
            view = named_view(self.method, first=self.first)
            result = dataclasses.replace(result, view=view)
        if self.scale is None:
            return result
        std = 1 / (255 * self.scale)
        mean = -self.offset * std
        return dataclasses.replace(
            result, mean=tuple(mean.tolist()), std=tuple(std.tolist()), assumed=self.assumed
        )


def read(
    layers: Sequence[Layer], stem: Layer, tensors: dict[str, np.ndarray], source: str
) -> Pixels:
    """Combines the layers from the input of a model to `stem`, the first one of the network.

    The variables of these layers are removed from `tensors`.

    Raises UserError if one is not understood.
    """
    scale, offset, found, assumed = np.ones(1), np.zeros(1), False, False
    size, first, method = None, None, None
    for layer in layers:
        size = _fixed_size(layer) or size
        if layer.kind in IDENTITY_LAYERS or _does_nothing(layer):
            continue
        if layer.kind in ("Resizing", "UpSampling2D") and method is None:
            target, method = _resizing(layer, size, source)
            first, size = size, target
            continue
        a, b = _affine(layer, tensors, source)
        scale, offset, found = scale * a, offset * a + b, True
        if layer.kind == "Lambda" and not _application(layer.config):
            note(
                f"{source}: took {layer} for MobileNet's preprocess_input, since the file tells "
                "only its name"
            )
            assumed = True
    if not (np.isfinite(scale) & np.isfinite(offset)).all() or not scale.all():
        raise UserError(
            f"{source}: the layers before the network multiply pixels by {scale.tolist()} and add "
            f"{offset.tolist()}: no picture would be left"
        )
    scale, offset = np.broadcast_arrays(scale, offset)
    # The size of the stem's own model, for a model that takes pictures of any size.
    size = size or _fixed_size(stem)
    return Pixels(scale if found else None, offset, assumed, size, first, method)


def batch_norm(layer: Layer, tensors: dict[str, np.ndarray]) -> Affine:
    """Returns a BatchNormalization in evaluation; removes its variables from `tensors`."""
    config = layer.config
    mean, variance = (
        tensors.pop(f"{layer.name}/{name}").astype(np.float64)
        for name in ("moving_mean", "moving_variance")
    )
    gamma = tensors.pop(f"{layer.name}/gamma") if config.get("scale", True) else np.ones(1)
    beta = tensors.pop(f"{layer.name}/beta") if config.get("center", True) else np.zeros(1)
    factor = gamma / np.sqrt(variance + config["epsilon"])
    return factor, beta - mean * factor


def not_understood(layer: Layer, source: str) -> UserError:
    return UserError(
        f"{source}: {layer} before the network is not understood: save the model from the layer "
        "after it on, and give its scaling with --mean and --std"
    )


def _affine(layer: Layer, tensors: dict[str, np.ndarray], source: str) -> Affine:
    """Returns what a layer multiplies by and adds."""
    config, operation = layer.config, OPERATIONS.get(layer.kind.lower())
    try:
        if layer.kind == "Rescaling":
            return _constant(config["scale"]), _constant(config["offset"])
        if layer.kind == "Normalization":
            return _normalization(layer, tensors)
        if layer.kind == "BatchNormalization":
            return batch_norm(layer, tensors)
        if layer.kind == "Lambda" and _is_preprocess_input(config):
            return np.full(1, 1 / 127.5), np.full(1, -1.0)
        if layer.kind.lower() in ("negative", "neg"):
            return np.full(1, -1.0), np.zeros(1)
        if operation and len(layer.operands) == 2:
            first, second = layer.operands
            if first is TENSOR:
                return operation(_constant(second), False)
            return operation(_constant(first), True)
    except (KeyError, TypeError, ValueError):
        pass  # a constant or variable that is missing, or not one per channel
    raise not_understood(layer, source)


def _divide(constant: np.ndarray, reversed: bool) -> Affine:
    if reversed:
        raise ValueError("a constant divided by a tensor is not affine")
    return 1 / constant, np.zeros(1)


def _subtract(constant: np.ndarray, reversed: bool) -> Affine:
    return (np.full(1, -1.0), constant) if reversed else (np.ones(1), -constant)


def _add(constant: np.ndarray, reversed: bool) -> Affine:
    return np.ones(1), constant


def _multiply(constant: np.ndarray, reversed: bool) -> Affine:
    return constant, np.zeros(1)


# The names that versions of Keras and TensorFlow give to operations with a constant. The second
# argument tells whether the constant is the first operand.
OPERATIONS: Mapping[str, Callable[[np.ndarray, bool], Affine]] = {
    **dict.fromkeys(("truedivide", "truediv", "divide", "realdiv"), _divide),
    **dict.fromkeys(("subtract", "sub"), _subtract),
    **dict.fromkeys(("add", "addv2"), _add),
    **dict.fromkeys(("multiply", "mul"), _multiply),
}


def _constant(value: Any) -> np.ndarray:
    """Returns a constant as one number, or one per channel. Raises ValueError for anything else."""
    if isinstance(value, dict):  # a tensor or an array, as Keras 3 writes it
        value = value["config"]["value"]
    array = np.asarray(value, np.float64)
    if array.size not in (1, 3) or (array.ndim and array.shape[-1] != array.size):
        raise ValueError(f"neither one number nor one per channel: {array.shape}")
    return array.reshape(-1)


def _normalization(layer: Layer, tensors: dict[str, np.ndarray]) -> Affine:
    mean, variance = layer.config.get("mean"), layer.config.get("variance")
    stored = {key: tensors.pop(f"{layer.name}/{key}", None) for key in ("mean", "variance")}
    tensors.pop(f"{layer.name}/count", None)
    if mean is None or variance is None:
        mean, variance = stored["mean"], stored["variance"]
    mean, variance = _constant(mean), _constant(variance)
    deviation = np.maximum(np.sqrt(variance), 1e-7)  # Keras' smallest deviation
    if layer.config.get("invert"):
        return deviation, mean
    return 1 / deviation, -mean / deviation


def _function_name(config: Mapping[str, Any]) -> str:
    """Returns the name of the function of a Lambda without arguments; empty for other ones."""
    function = config["function"]
    if isinstance(function, dict):
        function = function["config"]
    return function if isinstance(function, str) and not config.get("arguments") else ""


def _is_preprocess_input(config: Mapping[str, Any]) -> bool:
    """Tells whether a Lambda is MobileNet's preprocess_input, as far as the file tells."""
    known = _application(config)
    return _function_name(config) == "preprocess_input" and known in ("", *MINUS_ONE_TO_ONE)


def _application(config: Mapping[str, Any]) -> str:
    """Returns the module of keras.applications that a Lambda's function is from; empty for none."""
    function = config["function"]
    module = function.get("module") if isinstance(function, dict) else config.get("module")
    parent, _, name = str(module).rpartition(".")
    return name if parent.endswith("applications") else ""


def _does_nothing(layer: Layer) -> bool:
    """Returns whether a layer with these settings does nothing, or what the network does itself."""
    config = layer.config
    if layer.kind.lower() == "cast":
        return "float" in str(config.get("dtype", "float32"))
    if layer.kind == "Activation":
        return config["activation"] in (None, "linear")
    # Older versions pad before the stem, as the padding `same` does.
    return layer.kind == "ZeroPadding2D" and layer.name in ("Conv1_pad", "conv1_pad")


def _resizing(
    layer: Layer, size: tuple[int, int] | None, source: str
) -> tuple[tuple[int, int], str]:
    """Returns the size that a layer resizes to, and how."""
    config = layer.config
    method = METHODS.get(config["interpolation"])
    if layer.kind == "UpSampling2D":
        if size is None or method is None:
            raise not_understood(layer, source)
        up, across = config["size"]
        return (up * size[0], across * size[1]), method
    if config.get("antialias") and method == "tensorflow":
        method = "pillow"
    if method is None or config.get("crop_to_aspect_ratio") or config.get("pad_to_aspect_ratio"):
        raise not_understood(layer, source)
    return (config["height"], config["width"]), method


def _fixed_size(layer: Layer) -> tuple[int, int] | None:
    """Returns the (height, width) that a layer's settings demand of its input, if they do."""
    shape = layer.config.get("batch_shape") or layer.config.get("batch_input_shape")
    if not shape or len(shape) != 4 or not (shape[1] and shape[2]):
        return None
    return int(shape[1]), int(shape[2])


def map_size(size: tuple[int, int]) -> tuple[int, int]:
    """Returns the (height, width) of the network's last map for images of `size`."""
    return math.ceil(size[0] / 32), math.ceil(size[1] / 32)
