import math

import pytest

from experiments.paper import roofline
from mnv2.analysis import complexity
from mnv2.models import create_model


def layers(name):
    return complexity.layers(create_model(name), (224, 224, 3))


def test_elements_read_and_written_equal_the_expected_counts():
    # These are the elements of the input, kernel and output of every layer. The expected count of
    # MobileNetV2 also includes the ten additions of its shortcuts.
    assert sum(x.activations + x.weights for x in layers("mobilenet_v1")) == 14_396_840
    additions = 2 * (56**2 * 24 + 2 * 28**2 * 32 + 3 * 14**2 * (64 + 96) - 14**2 * 96)
    additions += 2 * 2 * 7**2 * 160
    v2 = sum(x.activations + x.weights for x in layers("mobilenet_v2")) + additions
    assert v2 == pytest.approx(17.35e6, rel=1e-3)


def test_the_slower_of_arithmetic_and_memory_determines_the_time():
    layer = next(x for x in layers("mobilenet_v2") if x.name == "block_1/expand")
    flops, moved = 2 * layer.multiply_adds, 4 * (112**2 * (16 + 96) + 16 * 96)
    assert roofline.traffic(layer) == moved
    assert roofline.intensity(layer) == flops / moved
    fast_memory = roofline.Machine(flops=1e9, bandwidth=1e15)
    slow_memory = roofline.Machine(flops=1e15, bandwidth=1e9)
    assert roofline.layer_seconds(layer, fast_memory) == pytest.approx(flops / 1e9)
    assert roofline.layer_seconds(layer, slow_memory) == pytest.approx(moved / 1e9)
    assert fast_memory.ridge == pytest.approx(1e-6)


def test_unfused_batch_norm_and_activation_read_and_write_the_output_again():
    machine = roofline.Machine(flops=1e15, bandwidth=1e9)
    by_name = {layer.name: layer for layer in layers("mobilenet_v2")}
    for name, passes in (("block_1/expand", 2), ("block_1/project", 1), ("classifier", 0)):
        layer = by_name[name]
        more = roofline.layer_seconds(layer, machine, fused=False)
        more -= roofline.layer_seconds(layer, machine)
        expected = passes * 2 * 4 * math.prod(layer.output) / 1e9
        assert more == pytest.approx(expected, abs=1e-12)


def test_the_images_of_a_batch_share_the_weights():
    layer = layers("mobilenet_v2")[-1]
    one, many = roofline.traffic(layer), roofline.traffic(layer, batch=32)
    assert many - one == 4 * 31 * (1280 + 1000)
    assert roofline.traffic(layer, bytes_per_element=2) == one / 2


def test_the_sign_is_right_for_at_least_twelve_published_machines():
    known = [row for row in roofline.ratios() if row.published is not None]
    assert len(known) == 17
    assert sum(row.agrees for row in known) >= 12
    # The two ends of the scale: one core of a phone, and a large GPU.
    ratios = {row.machine: row for row in known}
    assert ratios["Pixel 1, one core"].predicted < 0.6
    assert ratios["RTX 4090"].predicted > 1.2
    # Published rates are compared as times.
    assert ratios["GTX 1080 Ti"].published == pytest.approx(247 / 180)
