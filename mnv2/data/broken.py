"""Pictures that cannot be decoded: found, named, counted, and refused or left out."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds

from mnv2.runtime.errors import UserError
from mnv2.runtime.files import caches, write_text
from mnv2.runtime.throughput import Progress

ON_BROKEN = ("stop", "skip")
NAMED = 10  # broken pictures in one message
TOGETHER = 256  # examples in memory while they are looked through


class Broken(NamedTuple):
    """An example of a prepared data set that cannot be decoded."""

    name: str  # TFDS's: its file and its place there
    position: int  # in its split
    error: str


def complain(what: str, broken: Mapping[str, str], on_broken: str) -> None:
    """Names broken pictures: raises UserError with `on_broken` stop, prints a warning with skip."""
    named = ", ".join(f"{name} ({error})" for name, error in list(broken.items())[:NAMED])
    more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    problem = f"{len(broken)} of the {what} cannot be read as pictures"
    if on_broken == "stop":
        raise UserError(
            f"{problem}: {named}{more}; repair or remove them, or set data.on_broken to skip"
        )
    print(f"warning: {problem} and are left out: {named}{more}", flush=True)


def error_in(content: bytes, decode: Callable[[tf.Tensor], tf.Tensor]) -> str | None:
    """Why a picture cannot be decoded; None if it can."""
    if not content:
        return "it is empty"
    try:
        decode(tf.constant(content))
    except tf.errors.OpError as error:
        return line(error.message)
    return None


def line(message: str) -> str:
    """An error in a few words, without TensorFlow's names of operations."""
    lines = message.strip().splitlines() or ["no reason given"]
    return lines[0].rpartition("}} ")[2].partition(" [Op:")[0]


def memory(key: str) -> Path:
    """Where it is remembered what was found in a place."""
    return caches() / "pictures" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def look_through(
    builder: tfds.core.DatasetBuilder, splits: Sequence[str]
) -> dict[str, list[Broken]]:
    """Decodes every picture of TFDS's `splits` once; what was found is remembered."""
    written = (builder.data_path / "dataset_info.json").stat().mtime
    place = memory(f"{os.fspath(builder.data_path)} {written} {splits}")
    if place.exists():
        known = json.loads(place.read_text())
        return {split: [Broken(*found) for found in known[split]] for split in splits}
    found = {split: _broken_in(builder, split) for split in splits}
    write_text(place, json.dumps(found))
    return found


def _broken_in(builder: tfds.core.DatasetBuilder, split: str) -> list[Broken]:
    """In the order of the split, decoded on all cores."""
    examples = builder.as_dataset(
        split,
        shuffle_files=False,
        read_config=tfds.ReadConfig(add_tfds_id=True, interleave_cycle_length=1),
        decoders={"image": tfds.decode.SkipDecoding()},
    ).map(lambda example: (example["tfds_id"], example["image"]))
    count = builder.info.splits[split].num_examples
    progress = Progress(f"looking through {split} of {builder.name}", count, 1)
    decode = builder.info.features["image"].decode_example
    broken: list[Broken] = []
    position = 0
    with ThreadPoolExecutor() as pool:
        for names, contents in examples.batch(TOGETHER).as_numpy_iterator():
            for name, error in zip(
                names, pool.map(lambda content: error_in(content, decode), contents), strict=True
            ):
                if error:
                    broken.append(Broken(name.decode(), position, error))
                position += 1
            progress.say(f"{position}/{count}, {len(broken)} broken")
    progress.clear()
    return broken
