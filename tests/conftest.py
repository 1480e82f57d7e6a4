"""Eight simulated devices for every test, and Fashion-MNIST for those that train.

Compiled programs are kept in .pytest_cache, so that a second run of the suite
is faster.
"""

import contextlib
import gc
import os
from pathlib import Path

os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Most tests compile for longer than they compute: this makes the suite a sixth quicker.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

with contextlib.suppress(ImportError):
    import torchvision  # noqa: F401  loaded after TensorFlow, it brings the process down

# Here, outside of the packages whose annotations are checked, they load from their bytecode.
import flax.linen  # noqa: F401
import ml_collections
import orbax.checkpoint  # noqa: F401
import pytest
import tensorflow_datasets  # noqa: F401

from configs import v2_ablation
from mnv2 import data
from mnv2.data.datasets import TfdsDataset
from mnv2.runtime import files
from mnv2.sweeps.plan import with_arms
from tests import emulator

# A million objects of libraries stay until the end: the search for garbage need not visit them.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

ONE_BLOCK = (1, 0, 0, 0, 0, 0, 0)


@pytest.fixture(scope="session")
def fashion_mnist() -> data.Dataset:
    """The real thing, prepared on first use."""
    return data.open_dataset("fashion_mnist", None, 5000)


@pytest.fixture(scope="session")
def emulated_storage():
    """The address of an emulator of Google Cloud Storage."""
    with emulator.serving() as address:
        yield address


@pytest.fixture
def bucket(emulated_storage, monkeypatch):
    """The address of a bucket in the emulator, which this process and its children then use."""
    for name, value in emulator.environment(emulated_storage).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EPATH_USE_TF", "false")  # restored afterwards
    files._prepare_for_buckets.cache_clear()
    return f"gs://{emulator.BUCKET}"


@pytest.fixture
def tiny_config() -> ml_collections.ConfigDict:
    """The ablation's config, shrunk to a few seconds: a narrow network of one block, 4 steps."""
    config = with_arms(v2_ablation.get_config("quick"))
    config.model.width = 0.1
    config.model.repeats = ONE_BLOCK  # two compile for twice as long, and 17 for ten times
    config.data.validation = 100
    config.eval_batch_size = 64  # the last batch has rows that do not count
    config.duration = "4 steps"
    config.optimization.warmup = "2 steps"
    config.batch_size = 16
    config.log_every = 1
    return config


def leave_test_pictures(monkeypatch, count):
    """Leaves `count` pictures of the test split."""
    whole = TfdsDataset.tfds_range

    def capped(dataset, split):
        name, start, stop = whole(dataset, split)
        return name, start, min(stop, start + count) if split == "test" else stop

    monkeypatch.setattr(TfdsDataset, "tfds_range", capped)


@pytest.fixture
def few_test_pictures(monkeypatch):
    """Leaves 96 pictures of the test split, since most tests are not about their number."""
    leave_test_pictures(monkeypatch, 96)
