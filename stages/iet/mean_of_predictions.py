"""K networks that were trained apart, as one: what it says is the mean of what they say.

Each image of the training set was seen by one of them, so it changes the mean by one K-th of what it changes that one. Vyas, Kakade and Barak
2023 (arXiv 2302.10870, CP-Delta) sample from the normalised geometric mean of models of disjoint data; of Gaussian steps with one variance that is
a Gaussian step whose mean is the mean of theirs. DDIM is no Gaussian step, so their bound does not carry over to it.

B batch, C H W image.
"""

import copy
from types import SimpleNamespace

import torch


class MeanOfPredictions(torch.nn.Module):
    """Called as one of its members is; their parameters are members.<k>.<name>.

    network       of which all members are copies, until their weights are loaded
    num_members   K
    """

    def __init__(self, network, num_members):
        super().__init__()
        self.members = torch.nn.ModuleList([copy.deepcopy(network) for _ in range(num_members)])

    def forward(self, *arguments, **named):
        """.sample [B,C,H,W]: the mean over the members, summed in their order."""
        total = self.members[0](*arguments, **named).sample
        for member in self.members[1:]:
            total = total + member(*arguments, **named).sample
        return SimpleNamespace(sample=total / len(self.members))
