"""Data sets by name, and the batches that a run sees of them."""

import os

# TensorFlow reads data here and nothing else: no greeting, and no accelerator taken from JAX.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

tf.config.set_visible_devices([], "GPU")

from mnv2.data.datasets import Dataset as Dataset  # noqa: E402
from mnv2.data.datasets import open_dataset as open_dataset  # noqa: E402
from mnv2.data.pipeline import Batch as Batch  # noqa: E402
from mnv2.data.pipeline import eval_batches as eval_batches  # noqa: E402
from mnv2.data.pipeline import train_batches as train_batches  # noqa: E402
