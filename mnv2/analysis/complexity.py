"""Parameters and multiply-adds, counted from the network itself."""

import dataclasses
import functools
import math
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core as jax_core
from flax.traverse_util import flatten_dict


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution or matrix product, with the batch norm and bias that belong to it."""

    name: str  # where its parameters lie, such as block_3/expand
    output: tuple[int, ...]  # of one image: (height, width, channels) or (channels,)
    parameters: int
    multiply_adds: int
    weights: int  # elements of its kernel
    activations: int  # elements of its input and its output, for one image


@functools.cache
def layers(model: nn.Module, image: tuple[int, int, int]) -> tuple[Layer, ...]:
    """The layers of `model` in order, for images of (height, width, channels), in evaluation.

    Multiply-adds (MAdds) are those of convolutions and matrix products in the traced program, as
    the papers count: nothing for batch norm, activations, additions or pooling.
    """
    variables = _variables(model, image[2])
    program = jax.make_jaxpr(lambda variables, x: model.apply(variables, x, train=False))(
        variables, _images(image)
    )
    found = []
    equation: Any
    for equation in program.jaxpr.eqns:
        if cost := _count_equation(equation):
            # MobileNetV2/block_3/expand/expand._convolve/... -> block_3/expand
            names = str(equation.source_info.name_stack).split("/")[1:]
            path = [name for name in names if name.isidentifier()]
            params = functools.reduce(operator.getitem, path, variables["params"])
            output = equation.outvars[0].aval.shape[1:]
            tensors = [x.aval.size for x in equation.invars if getattr(x.aval, "ndim", 0) > 1]
            kernel = math.prod(params["kernel"].shape)
            read_and_written = sum(tensors) - kernel + math.prod(output)
            found.append(
                Layer("/".join(path), output, _size(params), cost, kernel, read_and_written)
            )
    return tuple(found)


def parameters(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Number of trainable parameters: weights, biases, and batch norm's scale and shift."""
    return _size(_variables(model, image[2])["params"])


def weights(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Number of weights of convolutions and classifier alone: what slim's tables count."""
    flat = flatten_dict(_variables(model, image[2])["params"])
    return _size([leaf for path, leaf in flat.items() if path[-1] == "kernel"])


def multiply_adds(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Multiply-adds of one image's forward pass: the sum over `layers`."""
    return sum(layer.multiply_adds for layer in layers(model, image))


@functools.cache
def _variables(model: nn.Module, channels: int) -> Any:
    # They are the same for every size of image.
    return jax.eval_shape(model.init, jax.random.key(0), _images((32, 32, channels)))


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _images(image: tuple[int, int, int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *image), jax.numpy.float32)


def _count(program: jax_core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in program.eqns)


def _count_equation(equation: Any) -> int:
    inner = [_count(program) for program in _subprograms(equation)]
    match equation.primitive.name:
        case "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            # HWIO, where I is the inputs of one group.
            return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel[:3])
        case "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            sizes = (equation.invars[0].aval.shape[axis] for axis in contracted)
            return math.prod(equation.outvars[0].aval.shape) * math.prod(sizes)
        case "cond":
            # A platform's own form of an operation: the convolution counts, and shifted
            # products, which have none, count nothing.
            return max(inner)
        case "scan":
            return equation.params["length"] * sum(inner)
        case _:
            return sum(inner)


def _subprograms(equation: Any) -> list[jax_core.Jaxpr]:
    found: list[Any] = []
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)  # a closed program holds an open one
            if hasattr(item, "eqns"):
                found.append(item)
    return found
