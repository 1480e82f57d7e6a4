"""Do the settings of a run fit each other and its data? `training.checks` checks each alone."""

from mnv2 import data
from mnv2.data.augment.policies import strengths
from mnv2.data.preprocess import COVERED
from mnv2.pretrained.preprocessing import CROPPING
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note_once
from mnv2.training.durations import to_steps
from mnv2.training.settings import Settings, defaults

CROPS = ("inception", "resized_crop")
# The usual values of fields that act only with another one: those of configs/defaults.py.
USUAL = {
    **{
        field: defaults()[field]
        for field in (
            *("data.crop_area", "data.crop_aspect", "data.repeats", "data.eval_crop"),
            *("data.policy_operations", "data.policy_strength"),
            *("data.policy_interpolation", "data.policy_fill"),
            *("mixup", "cutmix", "mix_until", "optimization.warmup_from", "optimization.nesterov"),
            "optimization.norm_weight_decay",
        )
    },
    "data.pad": 4,
    "optimization.decay_rate": 0.98,
    "optimization.decay_every": "1 epochs",
    "optimization.rmsprop_decay": 0.9,
    "optimization.epsilon": 1.0,
}


def check_data(settings: Settings, dataset: data.Dataset) -> None:
    """Raises UserError for settings that do not fit the data set or each other."""
    if settings.data.distortion != "none" and dataset.image_shape[2] == 1:
        raise UserError(
            f"data.distortion {settings.data.distortion} is for colour pictures, and those of "
            f"{dataset.name} are gray: use none"
        )
    if settings.teacher is None and (settings.temperature, settings.label_weight) != (1.0, 0.5):
        raise UserError(
            "temperature and label_weight are for distillation: set --config.teacher FILE"
        )
    if settings.weights is not None and settings.data.normalization != "half":
        raise UserError("data.normalization must be half: the weights say how pixels are scaled")
    held_out = dataset.parts.get("validation")
    if settings.final_split == "validation" and held_out in (None, dataset.parts.get("test")):
        raise UserError(
            "final_split validation needs examples that are not those of the test: set "
            f"data.validation, say to {max(1, dataset.num_examples('train') // 10)}"
        )
    if settings.recalibrate and settings.optimization.classifier_only:
        raise UserError("recalibrate must be 0 with a frozen backbone, whose batch norm is frozen")
    _check_crops(settings, dataset)
    if settings.data.repeats > (examples := dataset.num_examples("train")):
        raise UserError(f"data.repeats must be at most the {examples} training examples")
    _note_lost_pictures(settings, dataset)


def _check_crops(settings: Settings, dataset: data.Dataset) -> None:
    """Raises UserError if no crop of the pictures can be as the settings say."""
    chosen, (height, width, _) = settings.data, dataset.image_shape
    if chosen.augmentation == "inception" and chosen.crop_area[1] <= COVERED:
        raise UserError(
            f"data.crop_area must end above {COVERED} with data.augmentation inception, got "
            f"{chosen.crop_area}: resized_crop takes smaller crops"
        )
    if height is None or width is None:
        return  # pictures of many sizes
    if chosen.augmentation in CROPS:
        low, high = (aspect * height / width for aspect in chosen.crop_aspect)
        largest = 1.0 if low <= 1 <= high else min(high, 1 / low)  # of the picture's area
        if largest < chosen.crop_area[0] or chosen.crop_area[1] * height * width < 1:
            raise UserError(
                f"no crop of a picture of {height} x {width} pixels has data.crop_area "
                f"{chosen.crop_area} and data.crop_aspect {chosen.crop_aspect}"
            )
    size = min(chosen.image_size or height, chosen.image_size or width)
    if chosen.augmentation == "crop_flip" and chosen.pad > size:
        raise UserError(f"data.pad must be at most the size of the pictures, {size}")


def _note_lost_pictures(settings: Settings, dataset: data.Dataset) -> None:
    """Says in a note if a policy can shift pictures out of themselves, as torchvision's can."""
    side = settings.data.image_size or dataset.image_shape[1]
    policy = settings.data.policy
    if policy not in ("none", "auto_imagenet") and side:
        shift = int(strengths("translate_x", policy).max())
        if shift >= side:
            note_once(
                f"data.policy {policy} shifts pictures of {side} pixels by up to {shift}: some "
                "keep their label with nothing left of them but data.policy_fill"
            )


def check_devices(settings: Settings, count: int) -> None:
    """Raises UserError if `count` devices cannot share a batch as the settings say.

    Mixing, accumulation and batch norm see a device's part of a batch, and not the batch.
    """
    if settings.batch_size % count:
        raise UserError(
            f"batch_size must be a multiple of the {count} devices, got {settings.batch_size}"
        )
    if count % (settings.bn_group or 1):
        raise UserError(
            f"bn_group must divide the number of devices, {count}, got {settings.bn_group}"
        )
    part, repeats = settings.batch_size // count, settings.data.repeats
    if settings.has_mixing and part == 1:
        raise UserError(
            "mixup and cutmix need 2 pictures or more on each device: raise batch_size above "
            f"{settings.batch_size}"
        )
    if settings.has_mixing and repeats > 1 and repeats > part // 2:
        raise UserError(
            f"data.repeats must be at most half of the {part} pictures that each device gets of a "
            f"batch with mixup or cutmix, got {repeats}: a picture would be mixed with itself"
        )
    if part % settings.accumulate:
        raise UserError(
            f"accumulate must divide the {part} images that each device gets of a batch, got "
            f"{settings.accumulate}"
        )


def check_durations(settings: Settings, *, total: int, warmup: int, rate_every: int) -> None:
    """Raises UserError if the parts of a run, in steps, are longer than the run.

    Says in a note if the learning rate will hardly change.
    """
    schedule = settings.optimization
    if warmup > total:
        raise UserError(
            f"optimization.warmup is {warmup} steps and the run only {total}: shorten "
            "the warm-up, as --config.optimization.warmup '0 steps'"
        )
    if warmup and rate_every > 1 and schedule.warmup_from == 0:
        raise UserError(
            f"optimization.rate_every {schedule.rate_every!r} keeps the rate of the "
            "warm-up at 0 for its first interval: set optimization.warmup_from, say to 0.01"
        )
    if len(settings.data.progressive) > total:
        raise UserError(
            f"data.progressive has {len(settings.data.progressive)} sizes and the run only "
            f"{total} steps"
        )
    if rate_every >= total > 1 and schedule.schedule != "constant":
        note_once(
            f"the learning rate never changes in this run of {total} steps: "
            f"optimization.rate_every is {schedule.rate_every!r}"
        )
    elif 1 < warmup < rate_every:
        note_once(
            f"the warm-up lasts {rate_every} steps and not {warmup}: optimization.rate_every is "
            f"{schedule.rate_every!r}"
        )


def note_what_does_nothing(settings: Settings) -> None:
    """Says in a note which fields were set but act only together with another one."""
    acts = _acts(settings)
    values = settings.flat()
    idle = [
        f"{field} acts only with {acts[field][1]}"
        for field, usual in USUAL.items()
        if not acts[field][0] and values[field] != usual
    ]
    if idle:
        note_once(f"without effect: {'; '.join(idle)}")


def _acts(settings: Settings) -> dict[str, tuple[bool, str]]:
    """Returns for each field of USUAL whether it acts, and with what it would."""
    chosen, optimization = settings.data, settings.optimization
    crops = chosen.augmentation in CROPS, f"data.augmentation {' or '.join(CROPS)}"
    policy = chosen.policy != "none", "a data.policy"
    random = chosen.policy == "random", "data.policy random"
    augmented = chosen.augmentation != "none" or policy[0] or chosen.erasing > 0
    warms_up = to_steps(optimization.warmup, examples=1, batch_size=1) > 0
    until = settings.mix_until
    never = until is not None and not to_steps(until, examples=1, batch_size=1)
    mixed = not never, "a mix_until later than 0 steps"
    rmsprop = optimization.optimizer == "rmsprop", "optimization.optimizer rmsprop"
    exponential = optimization.schedule == "exponential", "optimization.schedule exponential"
    return {
        "data.pad": (chosen.augmentation == "crop_flip", "data.augmentation crop_flip"),
        "data.crop_area": crops,
        "data.crop_aspect": crops,
        "data.policy_operations": random,
        "data.policy_strength": random,
        "data.policy_interpolation": policy,
        "data.policy_fill": policy,
        "data.repeats": (augmented, "some augmentation: all versions of a picture are equal"),
        "data.eval_crop": (chosen.eval_method in CROPPING, "a data.eval_method that crops"),
        "mixup": mixed,
        "cutmix": mixed,
        "mix_until": (settings.has_mixing, "mixup or cutmix"),
        "optimization.warmup_from": (warms_up, "optimization.warmup"),
        "optimization.decay_rate": exponential,
        "optimization.decay_every": exponential,
        "optimization.rmsprop_decay": rmsprop,
        "optimization.epsilon": rmsprop,
        "optimization.norm_weight_decay": (
            not optimization.classifier_only,
            "layers that are not frozen",
        ),
        "optimization.nesterov": (optimization.optimizer == "sgd", "optimization.optimizer sgd"),
    }
