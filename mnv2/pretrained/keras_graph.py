"""Reads the JSON in which Keras 2 and 3 describe a saved model, as one graph of layers.

Nested models are dissolved. Nothing in the JSON is run.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mnv2.runtime.errors import UserError

TENSOR = object()  # stands, among the operands of a layer, for the output of another layer


@dataclasses.dataclass(eq=False)
class Layer:
    """One layer of a saved model, or one operation on tensors.

    kind       its class; for an operation of Keras 2 (TFOpLambda), the name of the function
    inputs     the layers whose outputs it takes
    operands   its arguments in order, with TENSOR for each output of another layer
    calls      how often the model uses it
    folder     where a `.weights.h5` file keeps its variables
    """

    kind: str
    name: str
    config: Mapping[str, Any]
    inputs: list["Layer"]
    operands: list[Any]
    calls: int
    folder: str

    def __str__(self) -> str:
        return f"layer {self.name!r} ({self.kind})"


class Graph(NamedTuple):
    """All layers of a model, each after those whose outputs it takes, and the last one."""

    layers: Sequence[Layer]
    output: Layer


def read(text: str | bytes) -> Graph:
    """Reads the JSON of a model.

    Raises UserError if it does not list the layers of the model, others if it is damaged.
    """
    model = json.loads(text)
    config = _with_layers(model["config"])
    if "layers" not in config:
        raise UserError(
            f"the file does not list the layers of its model of the class {model['class_name']}: "
            "save the network in it as a functional or sequential model"
        )
    layers: list[Layer] = []
    output = _read_model(config, [], "", layers)
    return Graph(layers, output)


def _read_model(
    config: Mapping[str, Any], inputs: Sequence[Layer], folder: str, layers: list[Layer]
) -> Layer:
    """Appends the layers of a model with the given `inputs` to `layers`; returns the last one."""
    outputs: dict[str, Layer] = {}
    used = collections.Counter[str]()
    previous = list(inputs)
    is_sequential = "output_layers" not in config
    for entry in config["layers"]:
        kind, inner = entry["class_name"], _with_layers(entry["config"])
        name = entry.get("name") or inner.get("name") or f"{kind} {len(outputs) + 1}"
        path = f"{folder}layers/{numbered(_snake_case(kind), used)}"
        nodes = entry.get("inbound_nodes") or []
        names, operands = _arguments(nodes[0]) if nodes else ([], [])
        before = [outputs[other] for other in names]
        if is_sequential:
            before, operands = previous, [TENSOR]
        elif kind == "InputLayer" and inputs:
            before = [inputs[_layer_names(config["input_layers"]).index(name)]]
        if "layers" in inner:
            last = _read_model(inner, before, path + "/", layers)
        else:
            if kind == "TFOpLambda":
                kind = inner["function"].rpartition(".")[2]
            last = Layer(kind, name, inner, before, operands, len(nodes), path)
            layers.append(last)
        outputs[name], previous = last, [last]
    if is_sequential:
        return previous[0]
    ends = _layer_names(config["output_layers"])
    if len(ends) != 1:
        raise UserError(f"a model with {len(ends)} outputs is not supported: save it with one")
    return outputs[ends[0]]


def numbered(kind: str, used: collections.Counter[str]) -> str:
    """Returns Keras' name of the next of several things of a kind: conv2d, conv2d_1, ..."""
    number = used[kind]
    used[kind] += 1
    return f"{kind}_{number}" if number else kind


def _with_layers(config: Any) -> dict[str, Any]:
    """Returns the settings of a model; old versions write a sequential one as a list of layers."""
    return {"layers": config} if isinstance(config, list) else config


def _layer_names(ends: Any) -> list[str]:
    """Returns the names in `input_layers` or `output_layers`: [name, 0, 0], or a list of these."""
    if isinstance(ends, dict):
        ends = list(ends.values())
    return [end[0] for end in ([ends] if isinstance(ends[0], str) else ends)]


def _arguments(node: Any) -> tuple[list[str], list[Any]]:
    """Returns the layers that a call takes tensors from, and all its arguments in order."""
    if isinstance(node, dict):  # Keras 3
        arguments = [*node["args"], *node["kwargs"].values()]
        values = [TENSOR if list(_tensors_in(x)) else x for x in node["args"]]
        return [found for argument in arguments for found in _tensors_in(argument)], values
    if node and isinstance(node[0], str):  # Keras 2, a single input
        node = [node]
    names: list[str] = []
    operands: list[Any] = []
    for name, _, _, *keywords in node:
        if name == "_CONSTANT_VALUE":
            operands.append(node[0][2])
        else:
            names.append(name)
            operands.append(TENSOR)
        for key, value in (keywords[0] if keywords else {}).items():
            if isinstance(value, list) and len(value) >= 3 and isinstance(value[0], str):
                names.append(value[0])
                operands.append(TENSOR)
            elif key == "y":
                operands.append(value)
    return names, operands


def _tensors_in(argument: Any) -> Iterator[str]:
    """Yields the names of the layers whose outputs are in an argument of Keras 3."""
    if isinstance(argument, dict):
        if argument.get("class_name") == "__keras_tensor__":
            yield argument["config"]["keras_history"][0]
        else:
            argument = list(argument.values())
    if isinstance(argument, list):
        for item in argument:
            yield from _tensors_in(item)


def _snake_case(name: str) -> str:
    """Converts the name of a class as Keras does for the folders of its variables."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
