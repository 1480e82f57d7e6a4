"""Eight simulated devices for every test, and Fashion-MNIST for those that train."""

import contextlib
import os

with contextlib.suppress(ImportError):
    import torchvision  # noqa: F401  loaded after TensorFlow, it brings the process down

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import ml_collections
import pytest

from configs import v2_ablation
from mnv2 import data


@pytest.fixture(scope="session")
def fashion_mnist() -> data.Dataset:
    """The real thing, prepared on first use."""
    return data.open_dataset("fashion_mnist", None, 5000)


@pytest.fixture
def tiny_config() -> ml_collections.ConfigDict:
    """The ablation's config, shrunk to a few seconds: the same fields, a narrow network."""
    config = v2_ablation.get_config("quick")
    config.model.width = 0.1
    config.data.validation = 59_000
    config.duration = "4 steps"
    config.batch_size = 16
    config.log_every = 1
    return config
