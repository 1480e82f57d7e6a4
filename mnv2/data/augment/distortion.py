"""slim's distortion of colours, with which the papers' networks were trained.

Source: `distort_color` of slim's inception_preprocessing.py. The authors trained with its fast
mode, which leaves out hue and contrast.
"""

import tensorflow as tf

BRIGHTNESS = 32 / 255  # at most added or subtracted, of a range of 1
SATURATION = CONTRAST = (0.5, 1.5)  # factors
HUE = 0.2  # at most added or subtracted, of a turn of 1

DISTORTIONS = ("none", "fast", "full")
_ORDERS = {
    "fast": (("brightness", "saturation"), *(("saturation", "brightness"),) * 3),
    "full": (
        ("brightness", "saturation", "hue", "contrast"),
        ("saturation", "brightness", "contrast", "hue"),
        ("contrast", "hue", "brightness", "saturation"),
        ("hue", "saturation", "contrast", "brightness"),
    ),
}


def distort(image: tf.Tensor, seed: tf.Tensor, mode: str) -> tf.Tensor:
    """Changes the colours of a picture (h w 3, values of 0 to 255) in one of four orders.

    mode is `none`, `fast` (brightness and saturation) or `full` (hue and contrast too). `seed` (2,)
    decides the order and every amount. Returns float32, of 0 to 255; the image itself for `none`.
    """
    if mode == "none":
        return image
    for_order, *seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 5))
    amounts = dict(zip(("brightness", "saturation", "hue", "contrast"), seeds, strict=True))
    scaled = tf.cast(image, tf.float32) / 255
    order = tf.random.stateless_uniform((), for_order, maxval=4, dtype=tf.int32)

    def in_order(names: tuple[str, ...]) -> tf.Tensor:
        changed = scaled
        for name in names:
            changed = _change(name, changed, amounts[name])
        return changed

    changed = tf.switch_case(
        order, [lambda names=names: in_order(names) for names in _ORDERS[mode]]
    )
    changed.set_shape(image.shape)
    return 255 * tf.clip_by_value(changed, 0, 1)


def _change(name: str, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    def between(low: float, high: float) -> tf.Tensor:
        return tf.random.stateless_uniform((), seed, low, high)

    if name == "brightness":
        return tf.image.adjust_brightness(image, between(-BRIGHTNESS, BRIGHTNESS))
    if name == "saturation":
        return tf.image.adjust_saturation(image, between(*SATURATION))
    if name == "hue":
        return tf.image.adjust_hue(image, between(-HUE, HUE))
    return tf.image.adjust_contrast(image, between(*CONTRAST))
