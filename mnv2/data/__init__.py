"""Data sets by name, and the batches that a run sees of them."""

import tensorflow as tf

tf.config.set_visible_devices([], "GPU")  # TensorFlow only reads data: accelerators are JAX's

from mnv2.data.datasets import Dataset as Dataset  # noqa: E402
from mnv2.data.datasets import open_dataset as open_dataset  # noqa: E402
from mnv2.data.pipeline import Batch as Batch  # noqa: E402
from mnv2.data.pipeline import eval_batches as eval_batches  # noqa: E402
from mnv2.data.pipeline import train_batches as train_batches  # noqa: E402
from mnv2.data.preprocess import AUGMENTATIONS as AUGMENTATIONS  # noqa: E402
from mnv2.data.preprocess import Pixels as Pixels  # noqa: E402
from mnv2.data.preprocess import eval_image as eval_image  # noqa: E402
