"""The tasks at which frameworks are compared."""

import dataclasses

import numpy as np

TRAINING = ("train", "feed")  # modes that train
READING = ("load", "feed")  # modes that read pictures
# Each is Inception's crop and a flip, and what the name says.
AUGMENTATIONS = {
    "inception": "inception_crop|flip",
    "random": "inception_crop|flip|rand_augment",
    "trivial_wide": "inception_crop|flip|trivial_augment_wide",
    "auto_imagenet": "inception_crop|flip|auto_augment",
    "erasing": "inception_crop|flip|erase(1.0, fill=128)",
}
NETWORKS = {"mobilenet_v1": "V1", "mobilenet_v2": "V2", "resnet50": "ResNet-50"}  # and titles


@dataclasses.dataclass(frozen=True)
class Task:
    """One thing to time, on batches of square images of 1000 classes.

    The modes are:
        train: Training steps on random images.
        infer: Inference on random images.
        load: Reading pictures: JPEG decoding, Inception's crop, flip, further augmentation.
        feed: Training steps on pictures that are read.
    """

    mode: str = "train"
    network: str = "mobilenet_v2"  # or another of NETWORKS, which mnv2, Flax and PyTorch know
    width: float = 1.0
    size: int = 224  # pixels
    batch: int = 32
    threads: int = 2
    pictures: str = ""  # a folder with train/CLASS/*.jpg, for the modes load and feed
    augmentation: str = "inception"  # or another of AUGMENTATIONS, for the modes load and feed
    dtype: str = "float32"  # or bfloat16, which mnv2, Flax and PyTorch know

    def __str__(self) -> str:
        network = f"{NETWORKS[self.network]} {self.width:g}"
        what = self.mode if self.mode == "load" else f"{self.mode} {network}"
        return f"{what}, {self.size} px, batch {self.batch}"

    def images(self) -> np.ndarray:
        shape = (self.batch, self.size, self.size, 3)
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def labels(self) -> np.ndarray:
        return np.random.default_rng(1).integers(0, 1000, self.batch).astype(np.int32)
