import pytest
from flax.traverse_util import flatten_dict

from configs import cifar10, finetune, imagenet, recipes, v2_ablation
from mnv2.analysis import complexity
from mnv2.models import STRIDES, create_model, name_and_fields
from mnv2.models.shapes import variable_shapes
from mnv2.sweeps.plan import resolve, with_arms
from mnv2.training.config import from_config, note_what_does_nothing
from mnv2.training.optimizer import create_optimizer, create_schedule, weight_decays
from mnv2.training.setup import fields_of, network_of
from tests.deployment.networks import SHORT

IMAGE = {"fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3), "imagenet2012": (224, 224, 3)}
# In multiply-adds, within 3 %; and in parameters.
EQUAL = ("linear", "separable", "separable_shortcut", "hourglass", "mobilenet_v1")
SAME_SIZE = ("linear", "separable_same_size", "hourglass_same_size")
CLASSES = {"fashion_mnist": 10, "cifar10": 10, "imagenet2012": 1000}


@pytest.mark.parametrize("preset", v2_ablation.PRESETS)
def test_every_arm_of_every_preset_builds(preset):
    config = with_arms(v2_ablation.get_config(preset))
    cost, size = {}, {}  # of the arms that are compared at equal cost, and at equal size
    for arm, _ in config.arms:
        resolved = resolve(config, arm)
        fields = dict(resolved.model)
        name = fields.pop("name")
        fields = fields_of(name, fields)
        model = create_model(name, num_classes=CLASSES[resolved.data.name], **fields)
        if arm in EQUAL:
            cost[arm] = complexity.multiply_adds(model, IMAGE[resolved.data.name])
        if arm in SAME_SIZE:
            size[arm] = complexity.parameters(model, IMAGE[resolved.data.name])
        optimization = from_config(resolved).optimization
        schedule = create_schedule(optimization, total_steps=100, examples=1000, batch_size=10)
        create_optimizer(optimization, schedule)
        _check_decayed(model, optimization, preset)
    for block in cost:
        assert cost[block] == pytest.approx(cost["linear"], rel=0.03)
    for block in size:
        assert size[block] == pytest.approx(size["linear"], rel=0.03)
    for _, _, arms in config.panels:
        assert set(arms) <= dict(config.arms).keys()
        assert len(arms) > 1
    assert config.baseline in dict(config.arms)


def _check_decayed(model, optimization, preset):
    """Every kernel is decayed, except depthwise ones for ImageNet as in slim; nothing else is."""
    strides = STRIDES[name_and_fields(model)[0]]["small"]
    few = {"repeats": SHORT} if hasattr(model, "repeats") else {}
    same_names = model.clone(width=1.0, num_classes=10, strides=strides, **few)  # for many arms
    shapes = variable_shapes(same_names, 3)["params"]
    decays = flatten_dict(weight_decays(shapes, optimization), sep="/")
    for name, decay in decays.items():
        depthwise = preset == "imagenet" and "depthwise" in name
        assert (decay > 0) == (name.endswith("/kernel") and not depthwise), name
    assert decays["classifier/kernel"] == optimization.weight_decay


def test_the_arms_are_the_papers_ablations():
    arms = dict(with_arms(v2_ablation.get_config("full")).arms)
    assert list(arms)[:4] == ["linear", "relu6", "expansion_shortcut", "no_shortcut"]
    assert [arm for arm in arms if arm.startswith("t_")] == ["t_1", "t_2", "t_4", "t_8", "t_10"]
    widths = [arm for arm in arms if arm.startswith("width_")]
    assert widths == ["width_0.25", "width_0.5", "width_0.75", "width_1", "width_1.4"]


def test_what_the_command_line_says_holds_for_every_arm(capsys, fashion_mnist):
    config = v2_ablation.get_config()
    config.seeds = 10
    config.model.width = 0.5
    config.model.repeats = SHORT
    changed = with_arms(config)
    arms = dict(changed.arms)
    assert {resolve(changed, arm).seeds for arm in arms} == {10}
    assert "left out, because they are the baseline linear: width_0.5" in capsys.readouterr().err
    assert "width_0.5" not in arms
    assert all("width_0.5" not in of for _, _, of in changed.panels)
    assert {arms[f"width_{w:g}"]["model.width"] for w in (0.25, 0.75, 1)} == {0.25, 0.75, 1}
    networks = {
        arm: network_of(from_config(resolve(changed, arm)))  # traced already
        for arm in ("linear", "separable", "hourglass")
    }
    cost = {arm: complexity.multiply_adds(*network) for arm, network in networks.items()}
    # A network of four blocks has few costs to choose from.
    assert cost["separable"] == pytest.approx(cost["linear"], rel=0.15)
    assert cost["hourglass"] == pytest.approx(cost["linear"], rel=0.15)


def test_the_usual_widths_of_equal_cost_are_those_that_a_search_finds():
    widths = dict(zip(v2_ablation.EQUAL_COST, v2_ablation.WIDTHS[""], strict=True))
    config = with_arms(v2_ablation.get_config())
    found = v2_ablation._width_of_equal_cost(config, "separable", widths["separable"])
    assert found == widths["separable"]


def test_linear_and_relu6_have_at_least_five_seeds_by_default():
    config = with_arms(v2_ablation.get_config())
    assert [resolve(config, arm).seeds for arm in ("linear", "relu6")] == [5, 5]


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="unknown preset 'ful': choose one of quick, hour, full"):
        v2_ablation.get_config("ful")
    with pytest.raises(ValueError, match="unknown preset 'x': choose one of frozen, compare"):
        finetune.get_config("x")


@pytest.mark.parametrize("preset", finetune.PRESETS)
def test_fine_tuning_presets_resolve(preset):
    config = finetune.get_config(preset)
    rates = {arm: resolve(config, arm).optimization.backbone_rate for arm in dict(config.arms)}
    expected = {"finetune": 0.1, "frozen": 0.0, "scratch": 1.0}
    assert rates.items() <= expected.items()
    assert config.baseline in rates


@pytest.mark.parametrize("preset", imagenet.RECIPES)
def test_a_recipe_for_imagenet_builds_the_published_network(preset):
    config = imagenet.get_config(preset)
    of_run = from_config(resolve(config, preset))
    fields = dict(of_run.model)
    name = fields.pop("name")
    model = create_model(name, num_classes=1000, **fields_of(name, fields))
    published = {"mobilenet_v2": 3_504_872, "mobilenet_v1": 4_231_976, "resnet50": 25_557_032}
    assert complexity.parameters(model, (224, 224, 3)) == published[name]
    expected = {"mobilenet_v2": 300_774_272, "mobilenet_v1": 568_740_352}
    if name in expected:
        assert complexity.multiply_adds(model, (224, 224, 3)) == expected[name]


def test_the_recipe_for_cifar10_has_the_papers_network():
    of_run = from_config(resolve(cifar10.get_config(), "mobilenet_v2"))
    fields = {name: value for name, value in of_run.model.items() if name != "name"}
    model = create_model("mobilenet_v2", num_classes=10, **fields_of("mobilenet_v2", fields))
    # The source has 2,296,922: five more 1x1 convolutions with batch norm.
    added = ((32, 32), (32, 16), (16, 24), (64, 96), (160, 320))
    more = sum(old * new + 2 * new for old, new in added)
    assert complexity.parameters(model, (32, 32, 3)) == 2_296_922 - more


def test_a_recipe_decays_what_its_source_decays():
    """slim all kernels but depthwise ones, PyTorch everything, torchvision's newer one no norms."""
    names = variable_shapes(create_model("mobilenet_v2", num_classes=1000), 3)["params"]

    def decayed(preset):
        optimization = from_config(imagenet.get_config(preset)).optimization
        decays = flatten_dict(weight_decays(names, optimization), sep="/")
        return {name for name, decay in decays.items() if decay}

    everything = set(flatten_dict(names, sep="/"))
    assert decayed("d_li14") == decayed("torchvision_v1") == everything
    norms = {name for name in everything if name.endswith(("/scale", "bn/bias"))}
    assert everything - decayed("torchvision_v2") == norms
    assert len(norms) == 2 * 52
    slim = decayed("paper")
    assert len(slim) == 53 - 17  # kernels without those of 17 depthwise convolutions
    assert not any("depthwise" in name for name in slim)


@pytest.mark.parametrize(
    ("config", "presets"),
    [
        *((module, module.PRESETS) for module in (finetune, recipes, v2_ablation)),
        *((imagenet, tuple(imagenet.RECIPES)), (cifar10, ("",))),
    ],
)
def test_no_preset_sets_a_field_that_does_nothing(config, presets, capsys):
    for preset in presets:
        of_preset = with_arms(config.get_config(preset) if preset else config.get_config())
        if "weights" in of_preset:
            of_preset.weights = "network.safetensors"
        for arm, _ in of_preset.arms:
            note_what_does_nothing(from_config(resolve(of_preset, arm)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("preset", recipes.PRESETS)
def test_every_arm_of_a_recipe_on_fashion_mnist_is_possible(preset):
    config = recipes.get_config(preset)
    for arm, _ in config.arms:
        from_config(resolve(config, arm))


def test_configs_name_their_presets():
    for module in (imagenet, recipes, cifar10):
        with pytest.raises(ValueError, match="unknown preset 'nothing': "):
            module.get_config("nothing")
