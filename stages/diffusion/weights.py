"""The weights of a network as named arrays, and back."""


def as_arrays(network):
    """The weights of a network: dict name -> array, float32 as all networks here are, on the CPU."""
    return {name: parameter.detach().cpu().numpy() for name, parameter in network.named_parameters()}


def load(network, weights, source):
    """Puts named weights into a network.

    weights   dict name -> float32 array
    source    where they come from, for the message
    Raises    ValueError: names or shapes are those of another architecture; the network is then as it was
    """
    import torch

    own = dict(network.named_parameters())
    buffers = [name for name, _ in network.named_buffers()]
    assert not buffers, f"the network has buffers {buffers}, which averaging does not know"
    for name in sorted(own.keys() | weights.keys()):
        found = weights[name].shape if name in weights else "nothing"
        expected = tuple(own[name].shape) if name in own else "nothing"
        if found != expected:
            raise ValueError(
                f"{source} holds the weights of another network: {name} is {found}, expected {expected}; "
                "set model in params.yaml back, or rerun the phase that wrote it"
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.from_numpy(weights[name]))
