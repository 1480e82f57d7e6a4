import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2.models import NETWORKS, STRIDES, create_model, name_and_fields
from mnv2.runtime.errors import UserError

IMPOSSIBLE = {
    "num_classes": (-1, 2.5, "10", True, None),
    "width": (0, -1.0, float("nan"), float("inf"), "wide", None, True),
    "dropout": (1, 1.5, -0.1, "0.2", float("nan")),
    "bn_momentum": (1.0, -0.1, "0.9"),
    "bn_epsilon": (0, -1e-3, float("inf")),
    "bn_frozen": (1, "yes"),
    "padding": ("valid", 1),
    "dtype": ("int8", "float23", "complex64", int, 5),
    "strides": (2, (), (2, 1), (2, "x"), "tiny", ("tiny",), None),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("field", IMPOSSIBLE)
def test_an_impossible_value_of_any_network_is_named(name, field):
    for value in IMPOSSIBLE[field]:
        with pytest.raises(UserError) as error:
            create_model(name, **{field: value})
        assert field in str(error.value)
        assert str(value if not isinstance(value, tuple | type) else "") in str(error.value)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2", True])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_stride_is_a_whole_number_of_1_or_more(name, bad):
    strides = (*STRIDES[name]["small"][:-1], bad)
    with pytest.raises(UserError, match="strides must be whole numbers of 1 or more, got"):
        create_model(name, strides=strides)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expansion": 0}, "expansion must be greater than 0, got 0"),
        ({"expansion": "6"}, "expansion must be greater than 0, got '6'"),
        ({"repeats": (1, 2)}, r"repeats must be 7 numbers, got \(1, 2\); such as 1, 2, 3, 4"),
        ({"repeats": (1, 2, 3, 4, 3, 3, -1)}, "repeats must be whole numbers, the first"),
        ({"repeats": (0, 2, 3, 4, 3, 3, 1)}, "repeats must be whole numbers, the first of them 1"),
        ({"quantized": "channel"}, "with the field quantized are read by version 0.2.0"),
        ({"strides": (1,) * 6}, "strides must be 8 numbers, .* or imagenet or small"),
        ({"strides": ("imagnet",)}, "unknown strides 'imagnet': did you mean 'imagenet'"),
    ],
)
def test_an_impossible_value_of_mobilenet_v2_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        create_model("mobilenet_v2", **fields)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_name_of_strides_may_come_as_a_command_line_gives_it(name):
    for strides in ("small", ("small",), ["small"]):
        assert create_model(name, strides=strides).strides == STRIDES[name]["small"]


def test_lists_and_numbers_of_numpy_and_jax_are_fine():
    plain = create_model("mobilenet_v2", width=0.5, num_classes=3, strides="small", dropout=0)
    other = create_model(
        "mobilenet_v2",
        width=np.float64(0.5),
        num_classes=np.int64(3),
        strides=np.array(STRIDES["mobilenet_v2"]["small"]),
        dropout=jnp.asarray(0.0),
    )
    assert name_and_fields(other) == name_and_fields(plain)
    assert [type(stride) for stride in other.strides] == [int] * 8


def test_types_in_which_networks_compute_are_accepted_by_name_and_as_types():
    for dtype in ("float32", "bfloat16", "float16"):
        for given in (dtype, jnp.dtype(dtype), getattr(jnp, dtype)):
            assert create_model("mobilenet_v2", dtype=given).conventions.dtype == jnp.dtype(dtype)


def test_float64_is_refused_while_jax_would_silently_compute_in_float32():
    with pytest.raises(UserError, match="dtype float64 needs JAX_ENABLE_X64=1"):
        create_model("mobilenet_v2", dtype="float64")
    with jax.enable_x64(True):
        assert create_model("mobilenet_v2", dtype="float64").conventions.dtype == jnp.float64
