"""The text-conditional magnitude of many prompts: which are looked at, and how strongly each pulls at the prediction.

G generated images of a prompt, S sampling steps.
"""

import numpy as np

from stages import randomness, text
from stages.text import magnitude_detector

PROTOCOL = "paper"  # of the sampler: magnitudes do not depend on how the last step ends


def chosen(captions, num_prompts, seed):
    """The prompts, each once, in an order that depends on the seed alone: first captions of training images, and of held-out images
    that no training image shares.

    captions      dict: train, heldout, each a list of lists of texts
    num_prompts   of each of the two, at most
    Returns       list of n texts; [n] bool array: a training image has that caption
    """
    groups = [list(dict.fromkeys(texts[0] for texts in captions["train"])), text.unseen(captions)]
    generator = randomness.numpy_generator("detect", seed)
    picked = [[group[i] for i in generator.permutation(len(group))[:num_prompts]] for group in groups]
    return [*picked[0], *picked[1]], np.arange(sum(map(len, picked))) < len(picked[0])


def magnitudes(source, prompts, settings, progress):
    """The magnitudes of prompts under a model: image j of all is generated from noise keyed by (seed, j), G in turn for each prompt.

    source     generation.Source, with its weights loaded
    prompts    list of n texts
    settings   section detect: images_per_prompt, num_steps, guidance, batch_size
    progress   function (images done, images)
    Returns    list of n dicts: raw and rms, each as magnitude_detector.scores has it
    """
    per_prompt, frozen, batch_size = settings["images_per_prompt"], source.frozen, settings["batch_size"]
    guidance, num_steps = settings["guidance"], settings["num_steps"]
    asked = [prompt for prompt in prompts for _ in range(per_prompt)]
    steps = {"raw": [], "rms": []}
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        stop = start + len(batch)
        x_T = source.sampler.starting_noise(start, stop, source.latent_shape, source.seed).to(source.device)
        cond = frozen.embeddings(batch)
        uncond = frozen.embeddings([""]).expand_as(cond)
        with magnitude_detector.Recorder(
            source.network, frozen.prediction_type, source.alpha_bars, guidance
        ) as recorder:
            source.sampled(x_T, cond, uncond, num_steps, guidance, PROTOCOL)
        for kind, found in steps.items():
            found.append(recorder.per_step(kind))
        progress(stop, len(asked))
    steps = {kind: np.concatenate(found).reshape(len(prompts), per_prompt, -1) for kind, found in steps.items()}
    return [{kind: magnitude_detector.scores(found[i]) for kind, found in steps.items()} for i in range(len(prompts))]
