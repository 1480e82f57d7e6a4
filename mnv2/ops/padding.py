"""The two padding conventions that published MobileNets were trained with."""

from mnv2.runtime.errors import check_choice

Padding = tuple[tuple[int, int], tuple[int, int]]

CONVENTIONS = ("same", "symmetric")


def explicit_padding(
    size: tuple[int, int], kernel: int, stride: int, convention: str = "same"
) -> Padding:
    """Rows and columns of zeros before and after an image of `size` (height, width).

    `same` is TensorFlow's: as little as gives ceil(size / stride) outputs, the odd one at the
    bottom and right, so a stride of 2 on an even size pads (0, 1). `symmetric` is PyTorch's:
    kernel // 2 on every side. Both give the same output size for odd kernels.
    """
    check_choice(convention, CONVENTIONS, "padding convention")
    if convention == "symmetric":
        return ((kernel // 2, kernel // 2), (kernel // 2, kernel // 2))
    rows, columns = (_same(length, kernel, stride) for length in size)
    return rows, columns


def _same(length: int, kernel: int, stride: int) -> tuple[int, int]:
    outputs = -(-length // stride)
    total = max((outputs - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2
