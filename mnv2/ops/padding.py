"""The two padding conventions with which the published MobileNets were trained."""

from mnv2.runtime.errors import check_choice

# Zeros ((above, below), (left, right)) of an image.
Padding = tuple[tuple[int, int], tuple[int, int]]

CONVENTIONS = ("same", "symmetric")


def explicit_padding(
    size: tuple[int, int], kernel_size: int, stride: int, convention: str = "same"
) -> Padding:
    """Returns the zeros to add on each side of an image of `size` (height, width).

    same       TensorFlow's convention: the fewest zeros that give ceil(size / stride) outputs. If
               their number is odd, the extra zero is at the bottom or right, so a stride of 2 on
               an even size pads (0, 1).
    symmetric  PyTorch's convention: kernel_size // 2 zeros on every side

    Both give the same output size if the kernel size is odd. Raises UserError for any other
    convention.
    """
    check_choice(convention, CONVENTIONS, "padding convention")
    if convention == "symmetric":
        return ((kernel_size // 2, kernel_size // 2), (kernel_size // 2, kernel_size // 2))
    rows, columns = (_same(length, kernel_size, stride) for length in size)
    return rows, columns


def _same(length: int, kernel_size: int, stride: int) -> tuple[int, int]:
    outputs = -(-length // stride)
    total = max((outputs - 1) * stride + kernel_size - length, 0)
    return total // 2, total - total // 2
