import jax
import jax.numpy as jnp

from experiments.speed import layers


def test_the_kernels_of_a_step_are_timed_and_belong_to_their_layers():
    def step(a, b, c, images, labels):
        with jax.named_scope("block_1/depthwise/depthwise._convolve"):
            a = jnp.sin(a @ images).sum() + a
        with jax.named_scope("block_1/depthwise/bn"):
            return a, b - b.mean(), c, labels

    arguments = (*[jnp.ones((300, 300))] * 4, jnp.ones(3))
    compiled = jax.jit(step).lower(*arguments).compile()
    found = layers.kernels(compiled.as_text(), layers.traced(compiled, arguments, steps=3))
    kinds = {one.kind for one in found}
    assert {"depthwise convolution", "batch norm after depthwise"} <= kinds
    assert all(one.ms > 0 and one.traffic > 0 for one in found)
    assert "all" in str(layers.table_of(found, 1e9))
