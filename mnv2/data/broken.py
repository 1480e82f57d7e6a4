"""Finds pictures that cannot be decoded, names them, and rejects or skips them."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds

from mnv2.data.decoding import short_message
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import read_cache, write_cache
from mnv2.runtime.terminal import StatusLine, first_few, warn

ON_BROKEN = ("stop", "skip")
MAX_NAMED = 10  # broken pictures in one message
Decode = Callable[[tf.Tensor], tf.Tensor]  # encoded picture -> h w c, uint8
CHUNK_SIZE = 256  # encoded examples in memory while they are checked


class BrokenExample(NamedTuple):
    """An example of a TFDS data set whose picture cannot be decoded."""

    name: str  # its TFDS id: the file, and the position in the file
    position: int  # in its split
    error: str


def raise_or_warn(checked: str, broken: Mapping[str, str], on_broken: str) -> None:
    """Reports broken pictures, given as name -> error.

    `checked` says how many pictures of what were checked, such as `10 files in PATH`. Raises
    UserError if `on_broken` is `stop`; prints a warning if it is `skip`.
    """
    named = first_few([f"{name} ({error})" for name, error in broken.items()], MAX_NAMED)
    problem = f"{len(broken)} of the {checked} cannot be read as pictures"
    if on_broken == "stop":
        raise UserError(f"{problem}: {named}; repair or remove them, or set data.on_broken to skip")
    warn(f"{problem} and are skipped: {named}")


def decoding_error(content: bytes, decode: Decode) -> str | None:
    """Returns why `decode` fails on an encoded picture; None if it succeeds."""
    if not content:
        return "it is empty"
    try:
        decode(tf.constant(content))
    except tf.errors.OpError as error:
        return short_message(error.message)
    except UserError as error:
        return str(error)
    return None


def cache_name(key: str) -> str:
    """Returns the name of the file in which the results for a data set are cached."""
    return (
        f"pictures/{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.json"
    )


def find_broken(
    builder: tfds.core.DatasetBuilder, splits: Sequence[str], decode: Decode
) -> dict[str, list[BrokenExample]]:
    """Decodes every picture of some TFDS splits; returns the broken ones of each split.

    The result is cached until the data set is prepared again.
    """
    written = (builder.data_path / "dataset_info.json").stat().mtime
    cache = cache_name(f"{os.fspath(builder.data_path)} {written} {splits}")
    cached = read_cache(cache)
    if cached.keys() >= set(splits):
        return {split: [BrokenExample(*row) for row in cached[split]] for split in splits}
    broken = {split: _find_broken_in(builder, split, decode) for split in splits}
    write_cache(cache, broken)
    return broken


def stored(
    builder: tfds.core.DatasetBuilder, split: str, config: tfds.ReadConfig, *, shuffle: bool = False
) -> tf.data.Dataset:
    """Returns the examples of a TFDS split, with their pictures as they are stored."""
    skipping = {"image": tfds.decode.SkipDecoding()}
    return builder.as_dataset(split, shuffle_files=shuffle, read_config=config, decoders=skipping)


def _find_broken_in(
    builder: tfds.core.DatasetBuilder, split: str, decode: Decode
) -> list[BrokenExample]:
    """Returns the broken examples in the order of the split; decodes on all cores."""
    config = tfds.ReadConfig(add_tfds_id=True, interleave_cycle_length=1)
    examples = stored(builder, split, config).map(lambda x: (x["tfds_id"], x["image"]))
    count = builder.info.splits[split].num_examples
    status = StatusLine(f"checking the pictures in {split} of {builder.name}")
    broken: list[BrokenExample] = []
    position = 0
    with ThreadPoolExecutor() as pool:
        for names, contents in examples.batch(CHUNK_SIZE).as_numpy_iterator():
            errors = pool.map(lambda content: decoding_error(content, decode), contents)
            for name, error in zip(names, errors, strict=True):
                if error:
                    broken.append(BrokenExample(name.decode(), position, error))
                position += 1
            status.say(f"{position}/{count}, {len(broken)} broken")
    status.clear()
    return broken
