"""What the network of a Stable Diffusion model learns of an image: the noise, or v, on a sample of its latent, given a caption.

The frozen parts' outputs on what comes again and again, the images as they are and their first captions, are made once for all arms
and shards, and kept.

B batch, b rows of it, N images of the training set, L tokens, D width of the text encoder, c h w latent, T timesteps.
"""

import sys
from types import SimpleNamespace

import numpy as np
import torch

from stages import randomness
from stages.diffusion import ddpm
from stages.methods.objective import Objective
from stages.text import prediction
from stages.text.model import files_of

AT_ONCE = 16  # images or captions that go through a frozen part together; changes results in the last digits


class Latents(Objective):
    """The objective of a model with captions.

    frozen       text.model.Frozen
    captions     list of N lists of texts
    latent_shape (c, h, w)
    moments      [N,F,2c,h,w] float32 array: the VAE's posterior of every training image, and of its mirror image where F is 2
    table        (dict caption -> row, [rows,L,D] float32 array): embeddings that are there already
    num_cut      how many of the captions that training shows are cut, as they have too many tokens
    """

    def __init__(self, frozen, captions, latent_shape, moments, table, num_cut):
        self.frozen, self.captions, self.latent_shape, self.num_cut = frozen, captions, latent_shape, num_cut
        self.kept_moments, (self.rows, self.kept_embeddings) = moments, table

    def noise_shape(self, x):
        return (len(x), *self.latent_shape)

    def numbers(self):
        return {"captions_cut": self.num_cut} if self.num_cut else {}

    def prompts(self, ids, settings, key):
        """A caption of each image: the first, or any of them; none at all (an empty text) with probability caption_dropout.

        See Objective.prompts.
        """
        generator = randomness.numpy_generator("caption", *key)
        texts = []
        for i in ids.tolist():
            place, dropped = int(generator.integers(len(self.captions[i]))), generator.random()
            text = self.captions[i][place if settings.get("caption") == "random_of_all" else 0]
            texts.append("" if dropped < settings.get("caption_dropout", 0.0) else text)
        return texts

    def embedded(self, prompts):
        """Embeddings of prompts, those that are not kept made anew: list of B texts to [B,L,D] float32 on the device."""
        kept = [self.rows.get(prompt) for prompt in prompts]
        new = sorted({prompt for prompt, row in zip(prompts, kept, strict=True) if row is None})
        fresh = dict(zip(new, self.frozen.embeddings(new), strict=True)) if new else {}
        return torch.stack(
            [
                fresh[prompt]
                if row is None
                else torch.from_numpy(self.kept_embeddings[row].copy()).to(self.frozen.device)
                for prompt, row in zip(prompts, kept, strict=True)
            ]
        )

    def sample_losses(self, step, images, rows):
        """See Objective.sample_losses."""
        x_t, wanted = self.noised(step, images, rows)
        return self.squared_error(self.predicted(step, x_t, self.condition(step), rows), wanted)

    def noised(self, step, images=None, rows=slice(None)):
        """What the network is shown, and what it is to say of it: x_t and target, both [b,c,h,w]."""
        x_0, t, eps = self.latents_of(step, images, rows), step.t[rows], step.eps[rows]
        x_t = ddpm.noised(x_0, t, eps, step.alpha_bar)
        return x_t, prediction.target(self.frozen.prediction_type, x_0, t, eps, step.alpha_bar)

    def predicted(self, step, x_t, condition, rows=slice(None)):
        """What the network says of x_t [b,c,h,w], given the condition [B,L,D] of the whole batch: [b,c,h,w] float32."""
        return ddpm.predicted(step.network, x_t, step.t[rows], step.settings["precision"], condition=condition[rows])

    def squared_error(self, found, wanted):
        """[b,c,h,w] twice to [b] float32: mean over all but the batch."""
        return (found - wanted).square().mean(dim=(1, 2, 3))

    def noise_difference(self, one, other, step):
        """Difference of the noises that two predictions of the same x_t stand for, of a whole batch: [B,c,h,w]."""
        signal = step.alpha_bar[step.t].view(-1, 1, 1, 1)
        return prediction.noise_difference(self.frozen.prediction_type, one, other, signal)

    def condition(self, step):
        """Embeddings of the prompts of a step, [B,L,D]; made once, and then step.condition."""
        if step.condition is None:
            step.condition = self.embedded(step.prompts)
        return step.condition

    def latents_of(self, step, images, rows):
        """Latents of samples of the batch, or of other images in their place: one draw of the posterior a step and sample."""
        device = self.frozen.device
        if images is None:
            places = torch.arange(len(step.ids))[rows if isinstance(rows, slice) else rows.cpu()]
            mirrored = step.flipped.cpu()[places].numpy().astype(np.int64)
            moments = torch.from_numpy(self.kept_moments[step.ids[places].numpy(), mirrored]).to(device)
        else:
            moments = self.frozen.moments(images)
        generator = randomness.torch_generator(device, "posterior", *step.key)
        noise = torch.randn(self.noise_shape(step.ids), generator=generator, device=device)
        return self.frozen.latents(moments, noise[rows])


def profiled(frozen, network, images, captions):
    """A model with captions as loss_profile.losses looks at one: the loss is that of the noise, whatever the network predicts.

    images     [n,C,H,W] float32 in [-1, 1] on the device
    captions   list of n texts
    Returns    function (x_t, t, class_labels [b,L,D]) -> object with the noise in .sample
               [n,c,h,w] float32 mean of each latent; [n,L,D] float32 embeddings
    """
    x_0, embeddings = [], []
    for start in range(0, len(captions), AT_ONCE):
        moments = frozen.moments(images[start : start + AT_ONCE])
        x_0.append(frozen.latents(moments, torch.zeros_like(moments.chunk(2, dim=1)[0])))
        embeddings.append(frozen.embeddings(captions[start : start + AT_ONCE]))

    def predict(x, t, class_labels):
        found = network(x, t, encoder_hidden_states=class_labels).sample.float()
        signal = frozen.alpha_bars.to(x)[t].view(-1, 1, 1, 1)
        return SimpleNamespace(sample=prediction.as_noise(frozen.prediction_type, found, x, signal))

    return predict, torch.cat(x_0), torch.cat(embeddings)


def build(frozen, latent_shape, settings, data, keep):
    """The objective for a training set, with what can be kept made or read back.

    latent_shape   (c, h, w)
    settings       section train: flip, and caption where it is not first
    data           kinds.DataSet
    keep           function: stages.run.kept.keep, or another of its arguments
    Raises         ValueError: training is to draw from all captions of an image, and an image has a single one
    """
    captions = data.captions["train"] if data.fixed_text is None else [[data.fixed_text]] * len(data.captions["train"])
    any_caption = settings.get("caption") == "random_of_all"
    if any_caption and (poor := sum(len(texts) < 2 for texts in captions)):
        raise ValueError(
            f"train.caption is random_of_all, but {poor} of {len(captions)} training images have a single caption: give each at least "
            "two, or set it to first (params.yaml)"
        )
    distinct = sorted({"", *(texts[0] for texts in captions)})
    every = sorted({text for texts in captions for text in texts})
    return Latents(
        frozen,
        captions,
        latent_shape,
        _kept_moments(frozen, settings["flip"], data, keep),
        ({text: row for row, text in enumerate(distinct)}, _kept_embeddings(frozen, distinct, every, keep)),
        frozen.num_cut(every if any_caption else distinct),
    )


def _kept_moments(frozen, flip, data, keep):
    """The VAE's posterior of every training image, and of its mirror image where `flip`: [N,F,2c,h,w] float32 array."""

    def rows():
        pixels = data.images()
        for start in range(0, len(pixels), AT_ONCE):
            images = torch.from_numpy(pixels[start : start + AT_ONCE].copy()).permute(0, 3, 1, 2).to(frozen.device)
            images = ddpm.normalise(images)
            both = [frozen.moments(images), *([frozen.moments(images.flip(-1))] if flip else [])]
            yield torch.stack(both, dim=1).cpu().numpy()

    made_of = [torch.__version__, AT_ONCE, str(frozen.device), flip, data.images_checksum]
    return keep("latents", made_of, files_of(frozen.folder, "vae"), len(data.captions["train"]), rows)


def _kept_embeddings(frozen, distinct, every, keep):
    """The embeddings of distinct captions: [rows,L,D] float32 array.

    every   all captions that training may show, of which it is told how many are cut
    """

    def rows():
        if cut := frozen.num_cut(every):  # told here, as this is done once for all arms and rounds
            print(
                f"{cut} of {len(every)} captions of training images have more than {frozen.num_tokens} tokens: the "
                "rest of them is cut off",
                file=sys.stderr,
            )
        for start in range(0, len(distinct), AT_ONCE):
            yield frozen.embeddings(distinct[start : start + AT_ONCE]).cpu().numpy()

    made_of = [torch.__version__, AT_ONCE, str(frozen.device), distinct]
    return keep("embeddings", made_of, files_of(frozen.folder, "tokenizer", "text_encoder"), len(distinct), rows)
