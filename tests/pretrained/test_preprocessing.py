"""What files tell about preprocessing is described; ImageNet classes have names."""

import pytest

from mnv2.preprocess.host import VIEWS
from mnv2.pretrained import Preprocessing, imagenet
from mnv2.pretrained.preprocessing import size_in_name
from mnv2.pretrained.torch import TORCHVISION_2
from mnv2.runtime.errors import UserError


def test_another_way_to_resize_brings_its_own_crop():
    ours, torchvision = Preprocessing(), TORCHVISION_2
    assert [ours.with_view(name).crop for name in VIEWS] == [0.875] * 4 + [None] * 4
    assert torchvision.with_view("bicubic").crop == torchvision.crop
    assert ours.with_view("pillow").with_view("slim").crop == 0.875
    assert ours.with_view("resize_shorter(64)|center_crop").view == "resize_shorter(64)|center_crop"
    for text, said in (
        ("pilow", r"unknown view 'pilow': did you mean 'pillow'\?"),
        ("flip|fit", "resize cannot have flip"),
    ):
        with pytest.raises(UserError, match=said):
            ours.with_view(text)


def test_what_files_of_earlier_versions_say_is_a_text_now():
    old = {"method": "bilinear", "crop": 0.9, "mean": [0.1], "std": [0.2], "assumed": True}
    assert Preprocessing.of({**old, "first": None}) == Preprocessing(
        "resize_shorter(crop=0.9)|center_crop", (0.1,), (0.2,), True
    )
    first = Preprocessing.of({**old, "method": "nearest", "crop": 1.0, "first": [96, 64]})
    assert first.view == "resize((96, 64), 'keras')|resize(method='nearest')"
    with pytest.raises(UserError, match="unknown operation zoom"):
        Preprocessing.of({"view": "zoom", "mean": [0.1], "std": [0.2]})


def test_the_view_and_the_scaling_are_described_in_a_line_each():
    assumed = Preprocessing("resize", (0.1, 0.2, 0.3), (0.5,), assumed=True)
    assert assumed.describe_view((96, 64)) == "view: resize, to 96 x 64"
    assert "mean 0.1, 0.2, 0.3, std 0.5 (assumed" in assumed.describe_pixels()
    assert "as the weights say" in Preprocessing().describe_pixels()


def test_the_names_of_published_files_tell_the_size_of_pictures():
    for name, size in (
        ("mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96.h5", 96),
        ("mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.4_224_no_top.h5", 224),
        ("mobilenet_2_5_128_tf.h5", 128),
        ("mobilenet_7_5_160_tf_no_top.h5", 160),
        ("mobilenet_v2_0.35_192.ckpt", 192),
        ("mobilenetv2_112x112-fd66a69d.pth", 112),
    ):
        assert size_in_name(name) == (size, size)
    for name in (
        "model.ckpt-96",
        "weights_96.h5",
        "mobilenet_v2_1.0_2240.h5",
        "mobilenet_v2.h5",
        "12x12.pth",
    ):
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
