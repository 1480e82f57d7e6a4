"""Counts parameters and multiply-adds (MAdds) from the network itself."""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core as jax_core
from flax.traverse_util import flatten_dict

from mnv2.models.shapes import variable_shapes
from mnv2.ops import PLAIN, traced_for


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution or matrix product, with the batch norm and bias that belong to it."""

    name: str  # path of its parameters, such as block_3/expand
    output: tuple[int, ...]  # shape for one image: (height, width, channels) or (channels,)
    parameters: int
    multiply_adds: int  # for one image
    weights: int  # number of elements of its kernel
    activations: int  # number of elements of its input and its output, for one image


@functools.cache
def layers(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
    """Returns the layers of `model` in order, in evaluation.

    `image_shape` is (height, width, channels). Multiply-adds (MAdds) are those of convolutions and
    matrix products in the traced program. As in the papers, batch norm, activation functions,
    additions and pooling count as zero.
    """
    variables = variable_shapes(model, image_shape[2])
    with traced_for(PLAIN):
        program = jax.make_jaxpr(lambda variables, x: model.apply(variables, x, train=False))(
            variables, _batch_of_one(image_shape)
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
            weights = math.prod(params["kernel"].shape)
            activations = sum(tensors) - weights + math.prod(output)
            found.append(
                Layer("/".join(path), output, _elements(params), cost, weights, activations)
            )
    return tuple(found)


def parameters(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Counts the trainable parameters: weights, biases, and scale and bias of batch norm."""
    return _elements(variable_shapes(model, image_shape[2])["params"])


def weights(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Counts the weights of convolutions and classifier only, as the tables of slim do."""
    flat = flatten_dict(variable_shapes(model, image_shape[2])["params"])
    return _elements([leaf for path, leaf in flat.items() if path[-1] == "kernel"])


def multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Counts the multiply-adds of the forward pass of one image: the sum over `layers`."""
    return sum(layer.multiply_adds for layer in layers(model, image_shape))


def nearest_width(cost: Callable[[float], int], target: int, start: float) -> float:
    """Returns the width, a multiple of 0.01, at which a network costs what is nearest to `target`.

    `cost` is a function of the width, such as its multiply-adds, and the search begins at `start`.
    Channels are rounded, so the costs at hand differ from each other by some per cent.
    """
    found: dict[int, int] = {}  # cost by hundredths of the width
    low, high, hundredths = 0, 0, max(1, round(100 * start))
    while not high or high - low > 1:
        found[hundredths] = cost(hundredths / 100)
        if found[hundredths] < target:
            low = hundredths
        else:
            high = hundredths
        # The middle between one that is too cheap and one that is not, once both are known.
        hundredths = (low + high) // 2 if high else low + max(1, low // 4)
    return min(found, key=lambda h: abs(found[h] - target)) / 100


def _elements(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _batch_of_one(image_shape: tuple[int, int, int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *image_shape), jax.numpy.float32)


def _count(program: jax_core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in program.eqns)


def _count_equation(equation: Any) -> int:
    inner = [_count(program) for program in _subprograms(equation)]
    match equation.primitive.name:
        case "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            # The kernel is HWIO, and I is the number of input channels of one group.
            return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel[:3])
        case "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            sizes = (equation.invars[0].aval.shape[axis] for axis in contracted)
            return math.prod(equation.outvars[0].aval.shape) * math.prod(sizes)
        case "scan":
            return equation.params["length"] * sum(inner)
        case _:
            return sum(inner)


def _subprograms(equation: Any) -> list[jax_core.Jaxpr]:
    found: list[Any] = []
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)  # a ClosedJaxpr contains a Jaxpr
            if hasattr(item, "eqns"):
                found.append(item)
    return found
