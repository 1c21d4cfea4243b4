"""A small network in the place of SSCD: unit features of images of any size, saved as TorchScript."""

import warnings

import torch

NUM_FEATURES = 12


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 7, stride=8)
        self.second = torch.nn.Conv2d(8, 16, 3, stride=2)
        self.last = torch.nn.Linear(16 * 9, NUM_FEATURES)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        x = torch.nn.functional.adaptive_avg_pool2d(x, (3, 3)).flatten(1)
        return torch.nn.functional.normalize(self.last(x), dim=1)


def save(path, seed=0):
    """Writes the network with random weights, and returns it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        torch.jit.script(network).save(str(path))
    return network
