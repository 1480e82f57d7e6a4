"""Creates the networks by name.

>>> model = create_model("mobilenet_v2", width=0.35, num_classes=10)
>>> variables = model.init(jax.random.key(0), images)
>>> logits = model.apply(variables, images, train=False)
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mnv2.models import mobilenet_v1, mobilenet_v2, resnet
from mnv2.models.blocks import make_divisible as make_divisible
from mnv2.models.checks import checked
from mnv2.models.inference import fold_batch_norm as fold_batch_norm
from mnv2.models.inference import for_inference as for_inference
from mnv2.models.mobilenet_v1 import MobileNetV1 as MobileNetV1
from mnv2.models.mobilenet_v2 import MobileNetV2 as MobileNetV2
from mnv2.models.resnet import ResNet50 as ResNet50
from mnv2.runtime.errors import UserError, check_choice

NETWORKS: dict[str, type[nn.Module]] = {
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v2": MobileNetV2,
    "resnet50": ResNet50,
}

# Names that `create_model` accepts as `strides`, and the numbers that they stand for.
STRIDES: dict[str, dict[str, tuple[int, ...]]] = {
    "mobilenet_v1": {
        "imagenet": mobilenet_v1.IMAGENET_STRIDES,
        "small": mobilenet_v1.SMALL_STRIDES,
    },
    "mobilenet_v2": {
        "imagenet": mobilenet_v2.IMAGENET_STRIDES,
        "small": mobilenet_v2.SMALL_STRIDES,
    },
    "resnet50": {"imagenet": resnet.IMAGENET_STRIDES, "small": resnet.SMALL_STRIDES},
}


GONE = ("quantized", "splits")  # fields of version 0.2.0


def create_model(name: str, **fields: Any) -> nn.Module:
    """Creates the network `mobilenet_v1`, `mobilenet_v2` or `resnet50`.

    `fields` are the fields of its class (MobileNetV1, MobileNetV2, ResNet50), and of Conventions in
    place of its field `conventions`. `strides` may also be
    `imagenet` or `small`, and `dtype` may be a name such as `bfloat16`. Call the network with
    `model.apply(variables, images, train=False)`.

    Raises UserError for an unknown name or field, and for a value with which no network can be
    built: `mnv2/models/checks.py` says which values can be.
    """
    check_choice(name, NETWORKS, "model")
    network: Any = NETWORKS[name]
    defaults = flat_fields(network)
    for field in fields:
        if field in GONE:
            raise UserError(
                f"networks with the field {field} are read by version 0.2.0 of mnv2 only"
            )
        check_choice(field, defaults, f"field of {name}")
    if (strides := _only_name(fields.get("strides"))) is not None:
        check_choice(strides, STRIDES[name], "strides")
        fields["strides"] = STRIDES[name][strides]
    values = checked(fields, defaults)
    conventions = {
        field: values.pop(field) for field in vars(network.conventions) if field in values
    }
    values["conventions"] = dataclasses.replace(network.conventions, **conventions)
    model: nn.Module = network(**values)
    return model


def flat_fields(network: nn.Module | type[nn.Module]) -> dict[str, Any]:
    """Returns what `create_model` takes: the fields of a network, those of its conventions too.

    They have the values of the network, or the defaults of a class.
    """
    names = [field.name for field in dataclasses.fields(network)]
    fields = {name: getattr(network, name) for name in names if name not in ("parent", "name")}
    conventions = fields.pop("conventions")
    return {**fields, **vars(conventions)}


def _only_name(strides: Any) -> str | None:
    """Returns a name that was given as strides, also as the only item, as a command line does."""
    if isinstance(strides, tuple | list) and len(strides) == 1:
        (strides,) = strides
    return strides if isinstance(strides, str) else None


def with_conventions(model: Any, **changes: Any) -> Any:
    """Returns a network with other conventions, such as `dtype`."""
    return model.clone(conventions=dataclasses.replace(model.conventions, **changes))


def name_and_fields(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """Returns the arguments of `create_model` for `model`: its name, and its changed fields.

    Fields with their default value are left out. The device axis is left out too, because it is not
    a property of the network.
    """
    name = next(name for name, network in NETWORKS.items() if network is type(model))
    defaults = flat_fields(type(model))
    fields = {
        field: str(jnp.dtype(value)) if field == "dtype" else value
        for field, value in flat_fields(model).items()
        if field != "axis_name" and value != defaults[field]
    }
    return name, fields


def features(model: nn.Module, variables: Any, images: jax.Array) -> dict[str, jax.Array]:
    """Returns the intermediate tensors of a network by name, in evaluation.

    The names are stem, block_0 ..., pooled and logits. MobileNetV2 also has the expanded tensor of
    each block, block_0_expanded ..., and last_conv.
    """
    logits, state = model.apply(
        variables,
        images,
        train=False,
        mutable=["intermediates"],
        capture_intermediates=lambda module, method: (
            method == "__call__" and module.scope is not None and len(module.scope.path) == 1
        ),
    )
    named = {}
    for name, captured in state["intermediates"].items():
        (value,) = captured["__call__"] if isinstance(captured, dict) else captured
        if isinstance(value, tuple):
            value, named[f"{name}_expanded"] = value
        named[name] = value
    return {**named, "logits": logits}
