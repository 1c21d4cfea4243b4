"""The Inception network of FID: images in, features and logits out, under four ways of bringing the images to it.

Legend: N images, B batch, H W C height, width and channels of an image.

The network is torch-fidelity's (TensorFlow's of 2015-12-05, ported), and all protocols use the same weights:

torch_fidelity   torch-fidelity's own input: TensorFlow 1's bilinear resize to 299, then (x - 128) / 128
pytorch_fid      what pytorch-fid does, and with it the authors' code: x / 255, torch's bilinear resize to 299 with
                 align_corners=False, then 2 x - 1
clean            what clean-fid does (Parmar et al. 2022): Pillow's bicubic resize to 299 of each channel in fp32, which filters
                 where it shrinks, then (x - 128) / 128
dcr              what the text-conditioned half of the paper has from the code of Somepalli et al.: Pillow's bilinear resize of the
                 short side to 299, centre crop, to [-1, 1], and then 2 x - 1 once more, a mistake, so that pixels lie in [-3, 1]

The first two differ slightly, and clean from them where images shrink; dcr's values compare with its own kind only. Each protocol
needs its own features of the training images. All is fp32, on a GPU too.
"""

import io

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.transforms import functional as transforms

SIDE_PX = FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE  # 299
NUM_FEATURES = 2048  # of the last pooling layer
NUM_CLASSES = 1008  # of TensorFlow's network


def build(weights, source):
    """The network with these weights, ready for use, on the CPU.

    weights   dict of name -> array; num_batches_tracked, which only training reads, may be absent
    source    where they come from, for the message
    Raises    ValueError: a weight is missing, too many or of another shape

    torch-fidelity reads its weights itself, from a file and with a pickle that may run code. It gets a file in memory that
    was written here and holds these arrays alone.
    """
    file = io.BytesIO()
    torch.save({name: torch.from_numpy(np.array(value)) for name, value in weights.items()}, file)
    file.seek(0)
    features = ["2048", "logits_unbiased"]
    try:
        return FeatureExtractorInceptionV3("inception", features, feature_extractor_weights_path=file)
    except RuntimeError as error:
        first = " ".join(str(error).splitlines()[1].split())
        raise ValueError(
            f"{source} does not hold the Inception network of FID, but another one: {first[:120]}; expected the file that "
            "pytorch-fid and torch-fidelity publish as ...inception-2015-12-05-6726825d.pth"
        ) from None


def features(network, images, protocol, batch_size, progress=None):
    """Features and logits of images.

    network    from `build`, on the device to compute on
    images     [N, H, W, C] uint8 array, may be memory-mapped; any size, C = 1 (repeated to three channels) or 3
    protocol   torch_fidelity, pytorch_fid, clean or dcr
    batch_size images at a time; float sums depend on it in the last digits
    progress   None or a callable (images done, N), called after each batch
    Returns    features [N, 2048] and logits [N, 1008] without the bias, as TensorFlow's Inception score has them; float32
    Raises     ValueError: not uint8, not four axes, or another number of channels
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"images are {images.dtype} {images.shape}, expected uint8 [N, H, W, 1 or 3]")
    make_input = INPUTS[protocol]
    device = next(network.parameters()).device
    found = np.empty((len(images), NUM_FEATURES), np.float32)
    logits = np.empty((len(images), NUM_CLASSES), np.float32)
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.no_grad(), exact:
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.array(images[start : start + batch_size])).to(device)
            batch = batch.permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
            outputs = network(batch) if make_input is None else _layers(network, make_input(batch))
            stop = start + len(batch)
            found[start:stop], logits[start:stop] = (output.cpu().numpy() for output in outputs)
            if progress is not None:
                progress(stop, len(images))
    return found, logits


def pytorch_fid_input(images):
    """What pytorch-fid feeds the network: [B, 3, H, W] uint8 -> [B, 3, 299, 299] float32 in [-1, 1]."""
    resized = functional.interpolate(images / 255, size=(SIDE_PX, SIDE_PX), mode="bilinear", align_corners=False)
    return 2 * resized - 1


def clean_input(images):
    """What clean-fid feeds the network: [B, 3, H, W] uint8 -> [B, 3, 299, 299] float32 in [-1, 0.992]."""
    resized = [
        np.stack(
            [
                np.asarray(Image.fromarray(channel).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC))
                for channel in image
            ]
        )
        for image in images.float().cpu().numpy()
    ]
    return (torch.from_numpy(np.stack(resized)).clip(0, 255).to(images.device) - 128) / 128


def dcr_input(images):
    """What the code of Somepalli et al. feeds the network: [B, 3, H, W] uint8 -> [B, 3, 299, 299] float32 in [-3, 1]."""
    pictures = []
    for image in images.cpu().numpy():
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        picture = transforms.resize(picture, SIDE_PX, transforms.InterpolationMode.BILINEAR)
        pictures.append(transforms.to_tensor(transforms.center_crop(picture, SIDE_PX)))
    once = 2 * torch.stack(pictures).to(images.device) - 1
    return 2 * once - 1


# What the layers are fed under each protocol; None: torch-fidelity's forward pass has its own resize.
INPUTS = {"torch_fidelity": None, "pytorch_fid": pytorch_fid_input, "clean": clean_input, "dcr": dcr_input}


def _layers(network, x):
    """torch-fidelity's forward pass after its own resize: all layers in their order, but for the last, fc."""
    for layer in list(network.children())[:-1]:
        x = layer(x)
    x = x.flatten(1)
    return x, x.mm(network.fc.weight.T)
