"""Data sets by name, and the batches that a run sees of them."""

from etils import epy

with epy.lazy_api_imports(globals()):  # decoding a picture does not wait for TensorFlow
    from mnv2.data.base import Dataset as Dataset
    from mnv2.data.datasets import open_dataset as open_dataset
    from mnv2.data.datasets import shape_if_missing as shape_if_missing
    from mnv2.data.folder_tree import FOLDER_PREFIX as FOLDER_PREFIX
    from mnv2.data.pipeline import Batch as Batch
    from mnv2.data.pipeline import Order as Order
    from mnv2.data.pipeline import Rows as Rows
    from mnv2.data.pipeline import check_batch_size as check_batch_size
    from mnv2.data.pipeline import check_labels as check_labels
    from mnv2.data.pipeline import eval_batches as eval_batches
    from mnv2.data.pipeline import fits_on_device as fits_on_device
    from mnv2.data.pipeline import train_batches as train_batches
