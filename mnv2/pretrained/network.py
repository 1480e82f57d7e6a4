"""From named tensors to the network whose they are."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from mnv2.models import create_model, mobilenet_v1, mobilenet_v2
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.runtime.errors import UserError

# Widths that were published first, so that of two which give the same channels they are taken.
WIDTHS = (1.0, 0.75, 0.5, 0.35, 0.25, 1.3, 1.4, *(i / 100 for i in range(10, 201, 5)))

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "swish": jax.nn.silu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}


class Dense(NamedTuple):
    """One layer of a user's head: its weights and what follows it."""

    kernel: np.ndarray
    bias: np.ndarray
    activation: str


@dataclasses.dataclass(frozen=True)
class Tensors:
    """What a file holds.

    `arrays` maps this package's paths, such as `params/block_3/expand/kernel`, to arrays in its
    layouts, and names that it does not know to arrays as they came; `names` says what the file
    calls a path. `fields` are those of the network which the file's family sets. `head` holds
    dense layers over the pooled features other than the network's own classifier.
    """

    network: str
    arrays: Mapping[str, np.ndarray]
    names: Mapping[str, str]
    fields: Mapping[str, Any]
    preprocess: Preprocessing
    image_size: tuple[int, int] = (224, 224)
    head: Sequence[Dense] = ()
    output: str = "softmax"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network with weights, and all that is known of how to use it.

    preprocess    callable on RGB images in [0, 255]; its `view` crops and resizes pictures
    image_size    (height, width) that the weights were trained for
    class_names   one a logit; None where the file does not tell
    output        what turns logits into probabilities: softmax, or sigmoid for classes that do not
                  exclude each other and for one logit that tells two classes apart
    """

    model: nn.Module
    variables: dict[str, Any]
    preprocess: Preprocessing
    image_size: tuple[int, int] = (224, 224)
    class_names: tuple[str, ...] | None = None
    output: str = "softmax"

    @property
    def num_classes(self) -> int:
        """0 for a network without classifier."""
        model: Any = self.model
        return model.layers[-1][0] if isinstance(model, DenseHead) else model.num_classes

    @property
    def channels(self) -> int:
        """Of the images that the network takes: 3, or 1 for gray ones."""
        params = self.variables["params"]
        return params.get("backbone", params)["stem"]["kernel"].shape[2]

    def logits(self, variables: Any, images: ArrayLike) -> Float[Array, "n classes"]:
        """Of images in [0, 255]; one logit that tells two classes apart becomes two, 0 and it."""
        logits: Any = self.model.apply(variables, self.preprocess(images), train=False)
        if self.num_classes == 1:
            return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
        return logits

    def probabilities(self, images: ArrayLike) -> Float[Array, "n classes"]:
        """Of each class, of images in [0, 255]."""
        logits = jax.jit(self.logits)(self.variables, images)
        exclusive = self.output == "softmax" or self.num_classes == 1
        return jax.nn.softmax(logits) if exclusive else jax.nn.sigmoid(logits)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes' names; class 0, class 1, ... where they are not known."""
        count = 2 if self.num_classes == 1 else self.num_classes
        return self.class_names or tuple(f"class {i}" for i in range(count))

    def backbone(self) -> "Pretrained":
        """Without classifier or dense layers: what remains gives the pooled features."""
        model: Any = self.model
        if isinstance(model, DenseHead):
            variables = {kind: values["backbone"] for kind, values in self.variables.items()}
            model = model.backbone
        else:
            params = {k: v for k, v in self.variables["params"].items() if k != "classifier"}
            variables, model = {**self.variables, "params": params}, model.clone(num_classes=0)
        return dataclasses.replace(self, model=model, variables=variables, class_names=None)

    def without_background(self) -> "Pretrained":
        """A network of 1001 classes without the first, slim's background; others unchanged."""
        if self.num_classes != 1001 or isinstance(self.model, DenseHead):
            return self
        classifier = {k: v[..., 1:] for k, v in self.variables["params"]["classifier"].items()}
        params = {**self.variables["params"], "classifier": classifier}
        return dataclasses.replace(
            self,
            model=self.model.clone(num_classes=1000),
            variables={**self.variables, "params": params},
            class_names=self.class_names and self.class_names[1:],
        )


class DenseHead(nn.Module):
    """Several dense layers, (units, activation) each, over a network's pooled features."""

    backbone: nn.Module
    layers: tuple[tuple[int, str], ...]

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n classes"]:
        x: Any = self.backbone(images, train)
        for i, (units, activation) in enumerate(self.layers):
            x = ACTIVATIONS[activation](nn.Dense(units, name=f"dense_{i}")(x))
        return x


def modules(network: str, blocks: int) -> Iterator[str]:
    """Paths of a network's convolutions and of its classifier, in order."""
    yield "stem"
    for i in range(blocks):
        if network == "mobilenet_v1":
            parts: tuple[str, ...] = ("depthwise", "pointwise")
        else:
            parts = ("depthwise", "project") if i == 0 else ("expand", "depthwise", "project")
        yield from (f"block_{i}/{part}" for part in parts)
    if network == "mobilenet_v2":
        yield "last_conv"
    yield "classifier"


class Variables(NamedTuple):
    """What a format calls a layer's variables, with the separator before them."""

    kernel: str
    bias: str
    scale: str
    shift: str
    mean: str
    var: str


def table(
    network: str,
    blocks: int,
    layers: Callable[[str], tuple[str, str]],
    variables: Variables,
    top: bool = True,
) -> dict[str, str]:
    """This package's name of every tensor -> a format's.

    `layers` gives the format's names of a module's convolution and batch norm.
    """
    names = {}
    for module in modules(network, blocks):
        layer, batch_norm = layers(module)
        if module != "classifier":
            names[f"params/{module}/kernel"] = layer + variables.kernel
            names[f"params/{module}/bn/scale"] = batch_norm + variables.scale
            names[f"params/{module}/bn/bias"] = batch_norm + variables.shift
            names[f"batch_stats/{module}/bn/mean"] = batch_norm + variables.mean
            names[f"batch_stats/{module}/bn/var"] = batch_norm + variables.var
        elif top:
            names[f"params/{module}/kernel"] = layer + variables.kernel
            names[f"params/{module}/bias"] = layer + variables.bias
    return names


def translate(
    state: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    layout: Callable[[str, np.ndarray], np.ndarray],
) -> dict[str, np.ndarray]:
    """A format's tensors under this package's names; those not in `names` keep their own."""
    ours = {theirs: name for name, theirs in names.items()}
    return {
        ours.get(name, name): layout(ours[name], array) if name in ours else array
        for name, array in state.items()
    }


def assemble(tensors: Tensors, source: str) -> Pretrained:
    """Finds width and classes from shapes. Raises UserError, naming the tensors that are off."""
    arrays = dict(tensors.arrays)
    if len(tensors.head) == 1:
        arrays["params/classifier/kernel"] = tensors.head[0].kernel
        arrays["params/classifier/bias"] = tensors.head[0].bias
    classifier = arrays.get("params/classifier/kernel")
    fields = {
        **tensors.fields,
        **_scaling(tensors, source),
        "num_classes": 0 if classifier is None else classifier.shape[-1],
    }
    model = create_model(tensors.network, **fields)
    stem = arrays.get("params/stem/kernel")
    channels = 3 if stem is None or stem.ndim != 4 else stem.shape[2]
    check(arrays, shapes_of(model, channels), source, tensors.names)
    variables = to_variables(arrays)
    if len(tensors.head) > 1:
        model, variables = _with_head(model, variables, tensors.head)
    return Pretrained(
        model, variables, tensors.preprocess, tensors.image_size, output=tensors.output
    )


def to_variables(arrays: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """A network's variables from arrays by path, in float32."""
    return unflatten_dict(
        {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}, sep="/"
    )


def shapes_of(model: nn.Module, channels: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a network's variables by path."""
    image = jax.ShapeDtypeStruct((1, 96, 96, channels), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return {name: leaf.shape for name, leaf in flatten_dict(variables, sep="/").items()}


def check(
    arrays: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    source: str,
    names: Mapping[str, str],
) -> None:
    """Raises UserError, naming what is missing, too much or misshapen as the file does."""
    for what, paths in (
        ("lacks", sorted(expected.keys() - arrays.keys())),
        ("holds the unknown", sorted(arrays.keys() - expected.keys())),
    ):
        if paths:
            first = ", ".join(names.get(path, path) for path in paths[:3])
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            raise UserError(f"{source} {what} {first}{more}")
    for path, shape in expected.items():
        if arrays[path].shape != shape:
            raise UserError(
                f"{source}: {names.get(path, path)} has shape {arrays[path].shape} "
                f"(h w i o, i o or c), expected {shape}"
            )


def _scaling(tensors: Tensors, source: str) -> dict[str, Any]:
    """Width and rounding that give the file's numbers of channels."""
    part = "project" if tensors.network == "mobilenet_v2" else "pointwise"
    outputs = {}
    for name, array in tensors.arrays.items():
        if match := re.fullmatch(rf"params/block_(\d+)/{part}/kernel", name):
            outputs[int(match[1])] = array.shape[-1]
    blocks = [outputs[i] for i in sorted(outputs)]
    fits = [fit for fit in _scalings(tensors) if fit[1] == blocks]
    if not fits:
        raise UserError(
            f"{source} is no {tensors.network} of any width: its blocks have {blocks} channels"
        )
    ends = [
        tensors.arrays[name].shape[-1] if name in tensors.arrays else None
        for name in ("params/stem/kernel", "params/last_conv/kernel")
    ]
    return min(fits, key=lambda fit: fit[2] != ends)[0]


def _scalings(tensors: Tensors) -> Iterator[tuple[dict[str, Any], list[int], list[int | None]]]:
    """All known scalings: their fields, their blocks' channels, stem's and last convolution's."""
    if tensors.network == "mobilenet_v1":
        for width in WIDTHS:
            stem, *blocks = mobilenet_v1.scaled_channels(width)
            yield {"width": width}, blocks, [stem, None]
        return
    repeats = tensors.fields.get("repeats", mobilenet_v2.REPEATS)
    for rounding in mobilenet_v2.ROUNDINGS:
        for width in WIDTHS:
            channels = mobilenet_v2.scaled_channels(width, rounding)
            rows = zip(channels.rows, repeats, strict=True)
            blocks = [row for row, count in rows for _ in range(count)]
            yield (
                {"width": width, "rounding": rounding},
                blocks,
                [channels.stem, channels.last],
            )


def _with_head(
    model: nn.Module, variables: dict[str, Any], head: Sequence[Dense]
) -> tuple[nn.Module, dict[str, Any]]:
    layers = tuple((dense.kernel.shape[1], dense.activation) for dense in head)
    params = {"backbone": variables["params"]}
    for i, dense in enumerate(head):
        params[f"dense_{i}"] = {
            "kernel": jnp.asarray(dense.kernel),
            "bias": jnp.asarray(dense.bias),
        }
    return DenseHead(model, layers), {
        "params": params,
        "batch_stats": {"backbone": variables["batch_stats"]},
    }
