"""Compares counts with the published ones.

Keras, torchvision and slim print some of them. All of them follow from table 2.
"""

import pytest

from mnv2.analysis import complexity
from mnv2.models import create_model

# width: (parameters with 1000 classes, MAdds at 224 pixels). All widths of slim, with its rounded
# numbers, are in tests/experiments/paper/test_complexity.py.
MOBILENET_V2 = {
    1.4: (6_108_776, 582_195_824),
    1.0: (3_504_872, 300_774_272),
    0.35: (1_677_128, 59_285_808),
}
MILLIONS = {  # (network, width, pixels): millions of MAdds with 1001 classes
    ("mobilenet_v2", 1.4, 96): 108.4,
    ("mobilenet_v1", 0.75, 224): 325.4,
    ("mobilenet_v1", 0.25, 128): 13.6,
}

IMAGE = (224, 224, 3)


def parameters_of_model_and_layers(model):
    """Checks that the layers contain all parameters and have their paths as names."""
    layers, count = complexity.layers(model, IMAGE), complexity.parameters(model, IMAGE)
    assert sum(layer.parameters for layer in layers) == count
    assert len({layer.name for layer in layers}) == len(layers)
    assert (layers[0].name, layers[-1].name) == ("stem", "classifier")
    return count


@pytest.mark.parametrize("width", MOBILENET_V2)
def test_mobilenet_v2_has_the_published_parameters_and_multiply_adds(width):
    parameters, multiply_adds = MOBILENET_V2[width]
    model = create_model("mobilenet_v2", width=width)
    assert parameters_of_model_and_layers(model) == parameters
    assert complexity.multiply_adds(model, IMAGE) == multiply_adds


@pytest.mark.parametrize(("name", "width", "size"), MILLIONS)
def test_networks_have_the_published_multiply_adds_at_other_resolutions(name, width, size):
    model = create_model(name, width=width, num_classes=1001)
    counted = complexity.multiply_adds(model, (size, size, 3))
    assert counted / 1e6 == pytest.approx(MILLIONS[name, width, size], abs=0.051)


def test_mobilenet_v1_has_the_published_parameters():
    model = create_model("mobilenet_v1", num_classes=1001)
    assert parameters_of_model_and_layers(model) == 4_233_001
    # The code of its authors states 567,716,352 multiply-adds, without the classifier.
    assert complexity.multiply_adds(model, IMAGE) - 1024 * 1001 == 567_716_352


def test_resnet50_has_as_many_parameters_as_in_torchvision():
    assert parameters_of_model_and_layers(create_model("resnet50")) == 25_557_032


def test_a_layer_has_its_output_shape_and_its_costs():
    layers = complexity.layers(create_model("mobilenet_v2"), IMAGE)
    assert len(layers) == 53
    expand, depthwise, project = (layer for layer in layers if layer.name.startswith("block_1/"))
    wide, narrow = 112**2 * 96, 56**2 * 96
    assert expand == complexity.Layer(
        name="block_1/expand",
        output=(112, 112, 96),
        parameters=16 * 96 + 2 * 96,
        multiply_adds=112**2 * 16 * 96,
        weights=16 * 96,
        activations=112**2 * 16 + wide,
    )
    assert depthwise == complexity.Layer(
        name="block_1/depthwise",
        output=(56, 56, 96),
        parameters=9 * 96 + 2 * 96,
        multiply_adds=56**2 * 9 * 96,
        weights=9 * 96,
        activations=wide + narrow,
    )
    assert project == complexity.Layer(
        name="block_1/project",
        output=(56, 56, 24),
        parameters=96 * 24 + 2 * 24,
        multiply_adds=56**2 * 96 * 24,
        weights=96 * 24,
        activations=narrow + 56**2 * 24,
    )


def test_the_multiply_adds_of_a_convolution_are_its_outputs_times_its_kernel():
    # The narrowest MobileNetV1: 8 channels and 4x4 pixels in every layer.
    model = create_model("mobilenet_v1", width=1 / 128, num_classes=2, strides=(1,) * 14)
    expected = 4 * 4 * 9 * 3 * 8 + 13 * 4 * 4 * (9 * 8 + 8 * 8) + 8 * 2
    assert complexity.multiply_adds(model, (4, 4, 3)) == expected
