"""What every data set has, wherever its pictures come from."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow as tf

from mnv2.data.splits import Part
from mnv2.preprocess.host import View
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import AnyPath


@runtime_checkable
class Dataset(Protocol):
    """A classification data set with some of the splits `train`, `validation` and `test`.

    validation   the number of examples that are held out from the end of train
    image_shape  (height, width, channels); None if the size differs from image to image
    parts        where the examples of each split come from
    """

    name: str
    folder: AnyPath
    class_names: list[str]
    image_shape: tuple[int | None, int | None, int]
    parts: dict[str, Part]
    validation: int

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def splits(self) -> list[str]:
        """The splits that there are."""
        return list(self.parts)

    def num_examples(self, split: str) -> int:
        """Returns the number of examples. Raises UserError if there is no such split."""
        ...

    def fits_in_memory(self) -> bool:
        return False

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns all images (n h w c, uint8) and labels (n, int64) of a small data set.

        The images are decoded once. Raises UserError if the data set does not fit in memory.
        """
        raise UserError(f"pictures of {self.name} differ in size")

    def encoded(
        self, split: str, shuffle_seed: int | None = None, part: tuple[int, int] = (0, 1)
    ) -> tf.data.Dataset:
        """Returns examples with `label`, `index` and an encoded image, in the order of the seed.

        The index is a number of the example that is the same in every order.

        `part` is (index, number of parts). The parts have each example once, and their sizes
        differ by at most one.
        """
        ...

    def decode(
        self, example: dict[str, tf.Tensor], view: View | None = None, *seed: Any
    ) -> tf.Tensor:
        """Decodes the image of an encoded example: h w c, uint8; or returns what `view` sees of it.

        `seed` has the numbers of what is random in the view.
        """
        ...

    def first(self, split: str) -> np.ndarray | None:
        """Returns the first picture: h w c, uint8; None if it cannot be read, as its use will say.

        Raises UserError if there is no such split.
        """
        with contextlib.suppress(tf.errors.OpError):
            for example in self.encoded(split).take(1):
                picture: np.ndarray = self.decode(example).numpy()
                return picture
        return None

    def table(self, split: str) -> dict[str, tf.Tensor] | None:
        """Returns all examples, for `decode`; None if they can only be read one after another."""
        return None

    def explain(self, error: Exception) -> str:
        """Explains in one line why reading failed."""
        ...


def decoded(
    read: Callable[[bytes], np.ndarray], encoded: tf.Tensor, view: View | None = None, *seed: Any
) -> tf.Tensor:
    """Returns within a graph what `read` makes of an encoded picture: h w 3, uint8.

    With a view, returns what it sees of the picture, by the same call of Python: the whole picture
    is not copied to TensorFlow.
    """

    def decode(encoded: object, *seed: np.integer) -> np.ndarray:
        # Outside of a graph, it is an array of one object.
        picture = read(np.asarray(encoded, object).item())
        return picture if view is None else _see(view, picture, seed)

    dtype = tf.uint8 if view is None else view.dtype
    image = tf.numpy_function(decode, (encoded, *seed), dtype, stateful=False)
    image.set_shape((None, None, 3) if view is None else view.shape)
    return image


def seen(view: View | None, image: tf.Tensor, *seed: Any) -> tf.Tensor:
    """Returns within a graph what a view sees of a picture; also of a batch that the view keeps."""
    if view is None or view.keeps(tuple(image.shape[-3:])):
        return image

    def see(image: np.ndarray, *seed: np.integer) -> np.ndarray:
        return _see(view, image, seed)

    found = tf.numpy_function(see, (image, *seed), view.dtype, stateful=False)
    return tf.ensure_shape(found, view.shape)


def _see(view: View, picture: np.ndarray, seed: Iterable[np.integer]) -> np.ndarray:
    numbers = [int(number) for number in seed]
    return view(picture, np.random.default_rng(numbers) if numbers else None)
