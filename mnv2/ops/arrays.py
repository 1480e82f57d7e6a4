"""The arrays of the operations, as types with their shapes."""

from jaxtyping import Array, Float

type Images = Float[Array, "n h w c"]
type Vector = Float[Array, " c"]  # a number per channel

# Of a depthwise convolution: its kernel, and its result or the gradient for that.
type Kernel = Float[Array, "k k 1 c"]
type Convolved = Float[Array, "n h2 w2 c"]
type ImagesAndKernel = tuple[Images, Kernel]  # or the gradients for both

# Of a 1x1 convolution, likewise.
type Weights = Float[Array, "1 1 c d"]
type Wide = Float[Array, "n h w d"]
type WideVector = Float[Array, " d"]
