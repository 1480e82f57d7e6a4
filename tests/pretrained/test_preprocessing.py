"""What files tell about preprocessing is described; ImageNet classes have names."""

import pytest

from mnv2.pretrained import Preprocessing, imagenet
from mnv2.pretrained.preprocessing import METHODS, size_in_name
from mnv2.pretrained.torch import TORCHVISION_2
from mnv2.runtime.errors import UserError


def test_another_way_to_resize_brings_its_own_crop():
    ours, theirs = Preprocessing(), TORCHVISION_2
    assert [ours.with_method(m).crop for m in METHODS] == [0.875] * 4 + [1.0] * 4
    assert theirs.with_method("bicubic").crop == theirs.crop
    assert ours.with_method("pillow").with_method("slim").crop == 0.875
    with pytest.raises(UserError, match=r"unknown --resize 'pilow': did you mean 'pillow'\?"):
        ours.with_method("pilow")


def test_the_view_and_the_scaling_are_described_in_a_line_each():
    assumed = Preprocessing("pillow", 1.0, (0.1, 0.2, 0.3), (0.5,), assumed=True)
    assert "whole picture stretched to 96 x 64" in assumed.describe_view((96, 64))
    assert "mean 0.1, 0.2, 0.3, std 0.5 (assumed" in assumed.describe_pixels()
    assert "central 87.5 % stretched to 28 x 28" in Preprocessing().describe_view((28, 28))
    assert "as the weights say" in Preprocessing().describe_pixels()


def test_the_names_of_published_files_tell_the_size_of_pictures():
    for name, size in (
        ("mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96.h5", 96),
        ("mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.4_224_no_top.h5", 224),
        ("mobilenet_2_5_128_tf.h5", 128),
        ("mobilenet_7_5_160_tf_no_top.h5", 160),
        ("mobilenet_v2_0.35_192.ckpt", 192),
    ):
        assert size_in_name(name) == (size, size)
    for name in ("model.ckpt-96", "weights_96.h5", "mobilenet_v2_1.0_2240.h5", "mobilenet_v2.h5"):
        assert size_in_name(name) is None


def test_the_imagenet_classes_have_their_usual_numbers():
    names = imagenet.class_names(1000)
    assert [names[i] for i in (0, 207, 281, 999)] == [
        "tench", "golden retriever", "tabby", "toilet tissue",
    ]  # fmt: skip
    assert len(set(names)) == 1000
    assert imagenet.class_names(1001)[1:] == names
    assert imagenet.class_names(10) is None
    assert list(imagenet.synsets()) == sorted(imagenet.synsets())
