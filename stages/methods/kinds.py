"""What the phases ask of a model, whichever kind it is: one of pixels (stages.pixels) or one with captions (stages.text).

Each of the two packages offers the functions `build` and `memory_needed`, of the same arguments. The phases find them by the name
of the package (stages.models), so that none imports a kind that it does not run.

    build(method, model, diffusion, image_shape, num_classes, device)
        method        base.Method, which will train the model
        model         section of params.yaml
        diffusion     section of params.yaml: the noise schedule; {} where the model brings its own
        image_shape   (C, H, W)
        num_classes   of a class-conditional model, else None
        device        for the parts of the model that are not trained; the network itself is built on the CPU
        Returns       Model
        Raises        ValueError: the section describes no such model, or one that images of this shape do not fit

    memory_needed(model, image_shape, precision, batch_size=None, keeps_ema=False, guidance=1)
        precision     fp32 or bf16
        batch_size    of training; None: the stage only samples
        keeps_ema     training keeps averaged weights
        guidance      of sampling: above 1 the network sees each image twice
        Returns       dict of numbers of bytes: weights, with all that goes with them; frozen, the parts that are not trained;
                      image, the activations of one image. None for a kind that has no estimate

B batch, b rows of it, C H W image, N training images, T timesteps.
"""

from collections.abc import Callable
from dataclasses import dataclass

from stages.diffusion import weights as named_weights


@dataclass
class DataSet:
    """What a model with captions is told of the images beside those that it is shown.

    captions          dict: train and heldout, each a list with a list of texts for every image; the first is its caption
    keys              list of N texts: the names of the training images
    fixed_text        the one text that stands in the place of all captions; None: each image has its own
    images            function () -> [N,H,W,C] uint8 array, memory-mapped; called where it is needed only, as reading takes long
    images_checksum   of the file of those images
    """

    captions: dict
    keys: list
    fixed_text: str | None
    images: Callable
    images_checksum: str


class Model:
    """A network with the method that trains it.

    method        base.Method
    network       uninitialised, in training mode, on the CPU: (x, t [B]) -> object with the prediction in .sample
    alpha_bars    [T] float64
    num_classes   of a class-conditional network, else None
    files         the files that all this was read from, in order
    """

    def __init__(self, method, network, alpha_bars, num_classes=None, files=()):
        self.method, self.network, self.alpha_bars = method, network, alpha_bars
        self.num_classes, self.files = num_classes, list(files)

    def first_weights(self, seed):
        """The weights of round 0: dict name -> float32 array."""
        raise NotImplementedError

    def objective(self, settings, data, keep):
        """What the network learns of the training images: objective.Objective.

        settings   section train, with the arm's own
        data       DataSet; None for a model without captions
        keep       function that makes an array once for all stages: stages.run.kept.keep, or another of its arguments
        """
        raise NotImplementedError

    def source(self, settings, data, seed, sampler):
        """The model as a source of images: Source, whose network is in evaluation mode on the device of `build`.

        settings   section sample, with the arm's own and precision
        data       as in `objective`
        sampler    stages.diffusion.sampling: handed in by the phases that sample, as training does not depend on it
        """
        raise NotImplementedError

    def profiled(self, images, labels, captions):
        """The network as stages.measures.loss_profile looks at it. Load its weights and put it on the device first.

        images     [n,C,H,W] float32 in [-1, 1] on the device of `build`
        labels     [n] int64 class of each image on that device; read only where the network is class-conditional
        captions   list of n texts; read only where the model has captions
        Returns    function (x, t, class_labels) -> object with the noise in .sample, or without class_labels where there are none
                   [n,...] float32: what the noise is put on, the images or their latents
                   class_labels of the n images, or None
        """
        raise NotImplementedError


class Source:
    """Something that generates images by their number: the same image for a number, whatever else is generated with it.

    network   what a batch goes through, several times: whoever waits for a batch may listen to its passes
    """

    network = None

    def load(self, kind, weights, source):
        """Takes up weights, with which images are generated from now on.

        kind      raw or ema
        weights   dict name -> float32 array
        source    where they come from, for a message
        Raises    ValueError: they are of another network
        """
        named_weights.load(self.network, weights, source)

    def labels(self, first, last):
        """The classes asked for of images first..last-1: [last - first] int64 array; None without classes."""
        return None

    def records(self, first, last):
        """What images first..last-1 are asked for: a list of dicts that JSON can hold; empty where that is nothing."""
        return []

    def generate(self, start, stop):
        """Images start..stop-1 with the weights loaded last: [stop - start,H,W,C] uint8 array."""
        raise NotImplementedError
