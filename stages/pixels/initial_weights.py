"""The model of round 0, from which every arm of a seed starts."""

import numpy as np

from stages import randomness


def initial_weights(network, seed):
    """The weights of round 0, as the authors' code has them.

    Xavier-uniform for every convolution and linear layer, zero biases; gain 1e-5 for the second convolution of each
    residual block and for the output convolution, so the network starts at an output of about 0. Normalisation layers
    keep scale 1 and shift 0. Drawn with numpy, in the order of the names: the same numbers on every machine.

    One thing differs from the authors' code: the classes of a class-conditional network. diffusers' UNet adds one row of a table
    [classes, 4 c] to the embedding of the timestep, and that table starts Xavier-uniform as well (standard deviation 0.057 for 100
    classes and c = 128). The authors' starts from N(0, 1), goes through two linear layers of its own and then, in each residual
    block, through another. The page says so beside the published numbers.

    network   from stages.diffusion.unet.build
    Returns   dict name -> float32 array
    """
    generator = randomness.numpy_generator("init", seed)
    weights = {}
    for name, parameter in sorted(network.named_parameters()):
        shape = tuple(parameter.shape)
        if len(shape) < 2:
            is_scale = name.endswith(".weight")  # only normalisation layers have a one-dimensional weight
            weights[name] = np.full(shape, 1.0 if is_scale else 0.0, np.float32)
            continue
        if name == "class_embedding.told.weight":
            # Drawn by none: all other weights are those of arms that are told nothing.
            weights[name] = np.zeros(shape, np.float32)
            continue
        module = name.removesuffix(".weight")
        gain = 1e-5 if module == "conv_out" or module.endswith("conv2") else 1.0
        receptive = int(np.prod(shape[2:]))
        bound = gain * (6 / ((shape[0] + shape[1]) * receptive)) ** 0.5
        weights[name] = generator.uniform(-bound, bound, shape).astype(np.float32)
    return weights
