"""Parameters and multiply-adds, counted from the network itself."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core as jax_core


@functools.cache
def parameters(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Number of trainable parameters of `model` for images of (height, width, channels).

    Weights, biases, and batch norm's scale and shift; not its running statistics.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), _images(image))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


@functools.cache
def multiply_adds(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Multiply-adds (MAdds) of one image's forward pass in evaluation.

    Counts the convolutions and matrix products of the traced program, as the papers do: nothing
    for batch norm, activations, additions or pooling.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), _images(image))
    program = jax.make_jaxpr(lambda variables, x: model.apply(variables, x, train=False))(
        shapes, _images(image)
    )
    return _count(program.jaxpr)


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
