"""Writes a program as an ONNX graph, by an interpreter of its jaxpr.

It knows the operations that the networks of this package consist of in evaluation. Tensors of rank
4 are n c h w in the graph, as ONNX wants them, and n h w c in JAX.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import TensorProto, helper, numpy_helper

from mnv2.deployment.program import IMAGE, METADATA, Program
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import as_line

OPSET = 18
IR_VERSION = 9  # what runtimes of 2023 and later read
NCHW = (0, 3, 1, 2)  # where ONNX's axes of rank 4 are in JAX
WITH_BIAS = {"Conv": "Conv", "MatMul": "Gemm"}  # operations that can add a constant to each channel


class Tensor(NamedTuple):
    """A value that is known only when the graph runs; its shape is JAX's."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


type Value = Tensor | np.ndarray


class Graph:
    """An ONNX graph that grows."""

    def __init__(self) -> None:
        self.nodes: dict[str, onnx.NodeProto] = {}  # by the name of the result
        self.constants: list[onnx.TensorProto] = []
        self.summed: dict[str, int] = {}  # how many elements a sum has, by its name

    def constant(self, array: np.ndarray) -> str:
        """Returns the name of a new constant."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, kind: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Adds an operation; returns the name of its result."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        self.nodes[name] = helper.make_node(kind, names, [name], name=name, **attributes)
        return name

    def needed(self, last: str) -> list[onnx.NodeProto]:
        """Returns the operations that a result depends on, in order."""
        wanted, kept = {last}, []
        for name, node in reversed(self.nodes.items()):
            if name in wanted:
                wanted.update(node.input)
                kept.append(node)
        return kept[::-1]


def to_onnx(program: Program, *, dynamic: bool) -> onnx.ModelProto:
    """Returns the graph of a program. With `dynamic` it takes any number of images.

    Raises UserError for an operation that is not known.
    """
    description, image = program.description, program.image
    closed = jax.make_jaxpr(program.logits)(image)
    graph = Graph()
    # TensorRT transposes numbers and no bytes.
    numbers = graph.add("Cast", IMAGE, to=TensorProto.FLOAT) if description.pixels else IMAGE
    start = Tensor(graph.add("Transpose", numbers, perm=NCHW), image.shape, np.dtype(np.float32))
    (logits,) = _run(graph, closed.jaxpr, closed.consts, [start])
    last = _named(graph, logits)
    if description.pixels:
        last = graph.add(description.activation.title(), last)  # over the last axis
    nodes = graph.needed(last)
    nodes.append(helper.make_node("Identity", [last], [description.output_name], name="output"))
    used = {name for node in nodes for name in node.input}
    constants = [constant for constant in graph.constants if constant.name in used]
    rows = "batch" if dynamic else image.shape[0]
    given = helper.make_tensor_value_info(
        IMAGE, helper.np_dtype_to_tensor_dtype(np.dtype(image.dtype)), (rows, *image.shape[1:])
    )
    result = helper.make_tensor_value_info(
        description.output_name, TensorProto.FLOAT, (rows, description.classes)
    )
    model = helper.make_model(
        helper.make_graph(nodes, "mnv2", [given], [result], constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="mnv2",
    )
    properties = {METADATA: description.to_json()}
    if description.class_names is not None:
        properties["classes"] = "\n".join(map(as_line, description.class_names))
    helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    return model


def _run(graph: Graph, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
    """Adds the operations of a jaxpr to the graph; returns its outputs."""
    known: dict[Any, Value] = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:
        return np.asarray(atom.val) if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        outputs = _apply(graph, equation, [read(atom) for atom in equation.invars])
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Adds one operation of a jaxpr; returns its outputs."""
    kind, parameters = equation.primitive.name, equation.params
    if kind == "jit" and parameters["name"] == "clip" and isinstance(inputs[0], Tensor):
        bounds = [np.asarray(bound, inputs[0].dtype) for bound in inputs[1:]]
        return [_result(equation, graph.add("Clip", inputs[0].name, *bounds))]
    if kind == "cond":  # the choice between platforms: the one that every other platform uses
        default = parameters["branches_platforms"].index(None)
        inner = parameters["branches"][default]
        return _run(graph, inner.jaxpr, inner.consts, inputs[1:])
    for name in ("jaxpr", "call_jaxpr"):
        if inner := parameters.get(name):
            return _run(graph, inner.jaxpr, inner.consts, inputs)
    if not any(isinstance(value, Tensor) for value in inputs):
        outputs = equation.primitive.bind(*inputs, **parameters)
        several = equation.primitive.multiple_results
        return [np.asarray(x) for x in (outputs if several else [outputs])]
    if kind not in RULES:
        raise UserError(f"the network has the operation {kind!r}, which is not written to ONNX")
    return [_result(equation, RULES[kind](graph, equation, *inputs))]


def _result(equation: Any, name: str) -> Tensor:
    (variable,) = equation.outvars
    return Tensor(name, variable.aval.shape, variable.aval.dtype)


def _named(graph: Graph, value: Value, rank: int = 0) -> str:
    """Returns the name of a value; constants of rank 4, or brought to rank `rank`, as n c h w."""
    if isinstance(value, Tensor):
        return value.name
    if value.ndim and value.ndim < rank:
        value = value.reshape((1,) * (rank - value.ndim) + value.shape)
    return graph.constant(value.transpose(NCHW) if value.ndim == 4 else value)


def _elementwise(kind: str) -> Callable[..., str]:
    def rule(graph: Graph, equation: Any, *inputs: Value) -> str:
        rank = max(len(value.shape) for value in inputs)
        return graph.add(kind, *(_named(graph, value, rank) for value in inputs))

    return rule


def _add(graph: Graph, equation: Any, a: Value, b: Value) -> str:
    """Adds an addition; that of a constant to a convolution or product becomes its bias."""
    if isinstance(a, Tensor) and isinstance(b, np.ndarray) and b.shape[-1:] == (b.size,):
        last = graph.nodes.get(a.name)
        if last and last.op_type in WITH_BIAS and len(last.input) == 2 and b.size == a.shape[-1]:
            attributes = {x.name: helper.get_attribute_value(x) for x in last.attribute}
            return graph.add(WITH_BIAS[last.op_type], *last.input, b.reshape(-1), **attributes)
    return _elementwise("Add")(graph, equation, a, b)


def _max(graph: Graph, equation: Any, a: Value, b: Value) -> str:
    for x, bound in ((a, b), (b, a)):
        if isinstance(x, Tensor) and isinstance(bound, np.ndarray) and not bound.any():
            return graph.add("Relu", x.name)
    return _elementwise("Max")(graph, equation, a, b)


def _div(graph: Graph, equation: Any, a: Value, b: Value) -> str:
    """Adds a division; a sum divided by the number of its elements becomes a mean."""
    if isinstance(a, Tensor) and isinstance(b, np.ndarray) and b.ndim == 0:
        last = graph.nodes.get(a.name)
        if last and b == graph.summed.get(a.name):
            return graph.add("ReduceMean", *last.input, keepdims=0)
    return _elementwise("Div")(graph, equation, a, b)


def _conv(graph: Graph, equation: Any, images: Tensor, kernel: np.ndarray) -> str:
    p = equation.params
    (top, bottom), (left, right) = p["padding"]
    return graph.add(
        "Conv",
        images.name,
        kernel.transpose(3, 2, 0, 1),
        strides=p["window_strides"],
        pads=(top, left, bottom, right),
        dilations=p["rhs_dilation"],
        group=p["feature_group_count"],
    )


def _sum(graph: Graph, equation: Any, x: Tensor) -> str:
    axes = equation.params["axes"]
    where = [NCHW.index(axis) for axis in axes] if len(x.shape) == 4 else list(axes)
    name = graph.add("ReduceSum", x.name, np.array(where, np.int64), keepdims=0)
    graph.summed[name] = math.prod(x.shape[axis] for axis in axes)
    return name


def _matmul(graph: Graph, equation: Any, a: Value, b: Value) -> str:
    return graph.add("MatMul", _named(graph, a), _named(graph, b))


def _max_pool(graph: Graph, equation: Any, x: Tensor) -> str:
    p = equation.params
    (top, bottom), (left, right) = p["padding"][1:3]
    return graph.add(
        "MaxPool",
        x.name,
        kernel_shape=p["window_dimensions"][1:3],
        strides=p["window_strides"][1:3],
        pads=(top, left, bottom, right),
    )


def _cast(graph: Graph, equation: Any, x: Tensor) -> str:
    dtype = np.dtype(equation.params["new_dtype"])
    if dtype == x.dtype:  # the pixels, which are numbers already
        return x.name
    return graph.add("Cast", x.name, to=helper.np_dtype_to_tensor_dtype(dtype))


def _select(graph: Graph, equation: Any, which: Value, *cases: Value) -> str:
    false, true = cases
    rank = len(equation.outvars[0].aval.shape)
    return graph.add("Where", *(_named(graph, value, rank) for value in (which, true, false)))


def _expm1(graph: Graph, equation: Any, x: Tensor) -> str:
    return graph.add("Sub", graph.add("Exp", x.name), np.ones((), x.dtype))


def _erfc(graph: Graph, equation: Any, x: Tensor) -> str:
    return graph.add("Sub", np.ones((), x.dtype), graph.add("Erf", x.name))


RULES: dict[str, Callable[..., str]] = {
    "sub": _elementwise("Sub"),
    "mul": _elementwise("Mul"),
    "min": _elementwise("Min"),
    "neg": _elementwise("Neg"),
    "gt": _elementwise("Greater"),
    "tanh": _elementwise("Tanh"),
    "logistic": _elementwise("Sigmoid"),
    "add": _add,
    "max": _max,
    "div": _div,
    "conv_general_dilated": _conv,
    "dot_general": _matmul,
    "reduce_sum": _sum,
    "reduce_window_max": _max_pool,
    "convert_element_type": _cast,
    "select_n": _select,
    "expm1": _expm1,
    "erfc": _erfc,
    "copy": lambda graph, equation, x: x.name,
}
