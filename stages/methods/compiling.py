"""What compute.compile does: in training the network compiled by inductor, or losses and gradients as CUDA graphs; in sampling a pass
through the network as a CUDA graph.

B batch, T timesteps.
"""

import dataclasses
import functools
from types import SimpleNamespace

import torch

from stages import randomness
from stages.methods import base

# What changes from step to step of that which a captured method reads, beside what it carries.
INPUTS = ("x", "flipped", "labels", "t", "eps", "counts", "told")
WARM_UP = 3  # runs before a graph is captured, in which cuDNN and cuBLAS choose and allocate


def prepare(training, mode):
    """Has the steps of a round compiled; call it once its weights are loaded.

    training   loop.Training, changed in place
    mode       off, inductor or graph
    """
    if mode == "inductor":
        by_inductor(training.network)
    elif mode == "graph":
        training.captured = Captured(training.method)


def by_inductor(network, backend="inductor"):
    """Compiles the forward pass of a network, and so its backward pass, in place; names and values of the weights stay.

    Dropout draws from torch's generator as the uncompiled network does, so that the results differ by rounding alone. It takes a
    minute or more at the first step, unless the folder TORCHINDUCTOR_CACHE_DIR has it from another process.

    backend   of torch.compile
    """
    import torch._inductor.config

    torch._inductor.config.fallback_random = True
    network.forward = torch.compile(network.forward, backend=backend)


def cuda_graph(body, pool=None):
    """Captures what a function does on the GPU.

    body      function without arguments whose tensors all stay where they are; run a few times first
    pool      memory of a graph that was captured before and is always replayed before this one, which is then shared
    Returns   function that does it again; what `body` returned, whose tensors each replay fills anew; its memory
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            body()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        found = body()
    return graph.replay, found, graph.pool()


def by_graph(network, capture=cuda_graph):
    """Has the passes through a network that samples replayed as CUDA graphs, one for each size of a batch; weights may change in place.

    network   in evaluation mode: forward(x [B,...], t [B], class_labels) -> object with .sample; class_labels is None, [B], or a pair of
              that and [B,A] of a network that is told numbers (diffusion.unet)
    capture   what records a function and can replay it, see `cuda_graph`
    """
    forward, graphs = network.forward, {}

    def replayed(x, t, class_labels=None):
        told = isinstance(class_labels, tuple)
        given = [x, t, *(class_labels if told else [class_labels])]
        if x.shape not in graphs:
            places = [None if value is None else value.clone() for value in given]
            conditions = {} if class_labels is None else {"class_labels": tuple(places[2:]) if told else places[2]}
            kind = x.device.type
            # Weights that autocast has rounded and keeps would be gone when the graph is replayed: it rounds them anew.
            rounding = {"dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}
            with torch.autocast(kind, **rounding, cache_enabled=False):
                graphs[x.shape] = places, *capture(lambda: forward(*places[:2], **conditions).sample)
        places, replay, found, _ = graphs[x.shape]
        for place, value in zip(places, given, strict=True):
            if place is not None:
                place.copy_(value)
        replay()
        return SimpleNamespace(sample=found.clone())

    network.forward = replayed


class Captured:
    """`gradients` of a method as graphs: forward pass, loss, skip decisions and backward pass, started by the host at once; and, for TAA,
    the second pass, one graph for each of `Method.rest_sizes`, of which the smallest that suffices is run. The host waits for the number
    of augmented samples, to know which. (With dropout, what is dropped in the second pass follows its size, and so is not what a step
    without graphs drops.)

    The first step captures them, later ones copy their batch into its place and replay them. The method must do the same on the device at
    each step, whatever the draws: one whose module says COMPILE with graph in it. Draws, clipping, Adam, the EMA and the record stay
    outside.

    method    base.Method
    capture   what records a function and can replay it, see `cuda_graph`
    """

    def __init__(self, method, capture=cuda_graph):
        self.method, self.capture = method, capture
        self.replay = None

    def gradients(self, step):
        """As Method.gradients. The tensors of what it returns, and the gradients, hold until the next call.

        Raises   ValueError: a batch of another shape than the first
        """
        if self.replay is None:
            self._capture(step)
        for name, place in self.places.items():
            value = step.drawn[name] if name in step.drawn else getattr(step, name)
            if place.shape != value.shape:
                raise ValueError(f"{name} is {list(value.shape)}, but the graph was captured with {list(place.shape)}")
            place.copy_(value)
        for name, value in step.carried.items():
            self.step.carried[name].copy_(value)
        torch.manual_seed(randomness.seed_of("dropout", *step.key))  # a capture draws, too
        self.replay()
        step.carried.update({name: value.clone() for name, value in self.step.carried.items()})
        for p, gradient in zip(step.network.parameters(), self.gradient_places, strict=True):
            p.grad = gradient
        losses = self.losses
        if self.rests and (count := int(losses.augmented.sum())):
            replay, rest = next(found for size, found in self.rests.items() if size >= count)
            replay()
            losses = dataclasses.replace(losses, minimised=losses.minimised + rest)
        base.clip(step)
        return losses

    def _capture(self, step):
        given = {name: value for name in INPUTS if (value := getattr(step, name)) is not None} | step.drawn
        self.places = {name: value.clone() for name, value in given.items()}
        carried = {name: value.clone() for name, value in step.carried.items()}
        drawn = {name: self.places[name] for name in step.drawn}
        inputs = {name: place for name, place in self.places.items() if name not in drawn}
        self.step = dataclasses.replace(step, **inputs, drawn=drawn, carried=carried)
        self.replay, self.losses, pool = self.capture(self._first)
        self.gradient_places = [p.grad for p in step.network.parameters()]
        self.rests = {}
        for size in self.method.rest_sizes(len(step.x)):
            *self.rests[size], pool = self.capture(functools.partial(self._rest, size), pool)

    def _first(self):
        for p in self.step.network.parameters():
            p.grad = None  # the gradients are then written, not added to those of the last replay
        carried = dict(self.step.carried)
        losses = self.method.losses(dataclasses.replace(self.step, carried=carried))
        losses.minimised.backward()
        for name, place in self.step.carried.items():
            place.copy_(carried[name])
        return dataclasses.replace(losses, minimised=losses.minimised.detach())

    def _rest(self, size):
        """The second pass; its gradient is added to that of the first."""
        rest = self.method.rest(self.step, self.losses, size)
        rest.backward()
        return rest.detach()
