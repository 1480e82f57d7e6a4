import pytest

from mnv2.preprocess.host import View
from mnv2.preprocess.text import parse
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note_once
from mnv2.training.config import from_config
from mnv2.training.setup import _check_view, check_durations, initial_state, set_up


@pytest.fixture(autouse=True)
def nothing_said_yet():
    note_once.cache_clear()


def changed(config, **fields):
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return from_config(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"data__train": "inception_crop(0.8, 1.0, (2.0, 3.0))"},
            "no crop of a picture of 28 x 28 pixels can be as inception_crop says",
        ),
        ({"data__train": "resized_crop(1e-9, 1e-8)"}, "no crop of a picture of 28 x 28 pixels"),
        ({"data__train": "flip|mix"}, "mix mixes nothing"),
        ({"data__train": "pad_crop(29)"}, "pad of pad_crop must be at most the 28 pixels"),
        ({"data__train": "resize(4)|pad_crop(5)"}, "pad of pad_crop must be at most the 4 pixels"),
        ({"data__train": "erase(fill=(1, 2, 3))"}, "data.train: fill of erase .* each channel, 1,"),
        (
            {"data__train": "flip|mix(0.2, until=3)"},
            "until of mix must be like '2 epochs', .*got '3': did you mean '3 steps'?",
        ),
        (
            {"data__train": "center_crop(56)"},
            "^data.train: center_crop cannot cut 56 x 56 out of a picture of 28 x 28",
        ),
        (
            {"data__train": "resize_shorter(crop=1e-9)|fit"},
            "^data.train: resize_shorter would make",
        ),
        ({"data__evaluation": "center_crop(29)"}, "^data.evaluation: center_crop cannot cut 29"),
        ({"data__image_size": 10**5}, "data.image_size must be a whole number, 1 to 4096"),
        ({"data__train": "resize(100000)"}, "size of resize must be a whole number, 1 to 4096"),
        ({"data__repeats": 10**6}, "data.repeats must be at most the"),
        (
            {"data__repeats": 2, "data__train": "flip|mix(0.2)"},
            "at most half of the 2 pictures that each device gets .* mixed with itself",
        ),
        ({"model__dtype": "float16"}, "float16 loses small gradients .*: use bfloat16"),
        (
            {
                **{"accumulate": 2, "bn_group": 1, "data__image_size": 4},
                "model__repeats": (1, 1, 0, 0, 0, 0, 0),
            },
            "batch norm of .* would get one value per channel",
        ),
        (
            {"final_split": "validation", "data__validation": 0},
            "final_split validation needs examples that are not those of the test: set "
            "data.validation, say to 6000$",
        ),
    ],
)
def test_fields_that_do_not_fit_each_other_are_refused(tiny_config, fashion_mnist, fields, message):
    tiny_config.batch_size = 16
    tiny_config.optimization.warmup = "0 steps"
    with pytest.raises(UserError, match=message):
        set_up(changed(tiny_config, **fields))


def test_a_crop_is_refused_if_no_picture_can_be_as_large():
    views = [View(parse(f"resize_shorter(20)|center_crop({size})", "x"), (9, 9), 3)
             for size in (20, (20, 30), 24)]  # fmt: skip
    for view in views[:2]:
        _check_view(view, "data.train", (None, None, 3))
    with pytest.raises(UserError, match="center_crop cannot cut 24 x 24"):
        _check_view(views[2], "data.train", (None, None, 3))


def test_weight_decay_on_nothing_is_refused(tiny_config, fashion_mnist):
    of_run = changed(tiny_config, optimization__weight_decay_on="kernal")
    with pytest.raises(
        UserError,
        match=r"'kernal' matches no parameter that has this weight decay: they are .*kernel",
    ):
        initial_state(set_up(of_run), of_run)
    only_norms = changed(
        tiny_config, optimization__weight_decay_on="bn", optimization__norm_weight_decay=0.1
    )
    with pytest.raises(UserError, match=r"'bn' matches no parameter that has this weight decay"):
        initial_state(set_up(only_norms), only_norms)
    without = changed(tiny_config, optimization__weight_decay=0.0)
    initial_state(set_up(without), without)


def test_an_error_of_the_network_says_that_it_is_of_the_model(tiny_config, fashion_mnist):
    for field, value in {"width": 0.0, "bottleneck": "relu7", "dropout": 1.5}.items():
        before = tiny_config.model[field]
        with pytest.raises(UserError, match=rf"model: .*{field}"):
            set_up(changed(tiny_config, **{f"model__{field}": value}))
        tiny_config.model[field] = before


def test_a_rate_that_hardly_changes_is_said(tiny_config, capsys):
    of_run = changed(
        tiny_config, optimization__rate_every="1 epochs", optimization__warmup_from=0.01
    )
    check_durations(of_run, total=500, warmup=10, rate_every=400)
    check_durations(of_run, total=300, warmup=0, rate_every=400)
    said = capsys.readouterr().err
    assert "the warm-up lasts 400 steps and not 10" in said
    assert "the learning rate never changes in this run of 300 steps" in said


@pytest.mark.parametrize(("side", "said"), [(28, "by up to 32"), (33, None)])
def test_a_policy_that_shifts_pictures_out_of_themselves_is_noted(
    tiny_config, fashion_mnist, capsys, side, said
):
    set_up(changed(tiny_config, data__train="trivial_augment_wide", data__image_size=side))
    lines = capsys.readouterr().err
    assert said in lines if said else "shifts" not in lines
