"""Mitigations at inference time: what is changed of a prompt, of its embedding, or of guidance, so that a model gives out fewer copies.

rt     random token addition: words that the tokenizer has, put in at random places (Somepalli et al. 2023)
cwr    caption word repetition: words of the prompt itself, put in at random places (the same)
rna    random number addition: numbers below 100,000, put in at random places (the same)
gni    Gaussian noise on the embeddings of the prompt and of the empty prompt (the same)
wen    the embedding of the prompt is optimised until the first step's prediction no longer depends on it so strongly (Wen et al. 2024)
delayed_guidance   another guidance in the first steps, where a copy is decided on: none of the prompt (0) until t / T = 0.5, or
       away from it (-2, opposite guidance) until 0.65 (arXiv 2411.16738)

sample.mitigation in params.yaml names one of them, with its settings (models without captions: stages/diffusion/amg.py). Draws are keyed by (seed, image): the noise that an image
starts from stays what it is without a mitigation.

B batch, L tokens of a prompt, D width of its embedding, c h w latent.
"""

from stages import randomness
from stages.text import magnitude_detector, prediction

# By name, the JSON schema of what sample.mitigation holds beside it. Plain data.
SETTINGS = {
    "rt": {
        "required": ["num_words"],
        "properties": {
            "num_words": {
                "description": "number of words put into the prompt (4 in the published runs)",
                "type": "integer",
                "minimum": 1,
            }
        },
    },
    "cwr": {
        "required": ["num_words"],
        "properties": {
            "num_words": {
                "description": "number of words put into the prompt (4 in the published runs)",
                "type": "integer",
                "minimum": 1,
            }
        },
    },
    "rna": {
        "required": ["num_words"],
        "properties": {
            "num_words": {
                "description": "number of words put into the prompt (4 in the published runs)",
                "type": "integer",
                "minimum": 1,
            }
        },
    },
    "gni": {
        "required": ["sigma", "target"],
        "properties": {
            "sigma": {
                "description": "standard deviation of the noise (0.1 in the published runs)",
                "type": "number",
                "exclusiveMinimum": 0,
            },
            "target": {
                "description": "what gets noise. both: the embeddings of the prompt and of the empty prompt, as published; cond: only "
                "that of the prompt",
                "enum": ["both", "cond"],
            },
        },
    },
    "wen": {
        "required": ["learning_rate", "weight_decay", "max_iterations"],
        "properties": {
            "target": {
                "description": "updates of an image's embedding stop once its magnitude at the first step is at or below this (default: the "
                "median rms of captions of held-out images)",
                "type": "object",
                "additionalProperties": False,
                "required": ["kind", "value"],
                "properties": {
                    "kind": {
                        "description": "rms: the norm divided by the root of the number of values; raw: the norm itself. Both are "
                        "taken of the noise, whatever the network predicts",
                        "enum": ["rms", "raw"],
                    },
                    "value": {"description": "the magnitude to reach", "type": "number", "exclusiveMinimum": 0},
                },
            },
            "learning_rate": {"description": "learning rate of AdamW (0.05)", "type": "number", "exclusiveMinimum": 0},
            "weight_decay": {"description": "weight decay of AdamW (0.01)", "type": "number", "minimum": 0},
            "max_iterations": {"description": "largest number of updates (10)", "type": "integer", "minimum": 1},
        },
    },
    "delayed_guidance": {
        "required": ["until", "guidance"],
        "properties": {
            "until": {
                "description": "steps with t / T above this have this guidance, those after them sample.guidance (0.5, or 0.65 where it is "
                "opposite, in the published runs)",
                "type": "number",
                "exclusiveMinimum": 0,
                "exclusiveMaximum": 1,
            },
            "guidance": {
                "description": "scale of guidance in those steps; 0: the prompt has no effect; below 0: away from it (0, or -2, in the "
                "published runs)",
                "type": "number",
                "maximum": 1,
            },
        },
    },
}
LARGEST_NUMBER = 100_000


def guidance_at(settings, guidance, t, num_timesteps):
    """The scale of guidance of a step: that of delayed_guidance while t / T > until; otherwise, and with any other mitigation, `guidance`.

    settings   section sample.mitigation, None without
    """
    if not settings or settings["name"] != "delayed_guidance" or t / num_timesteps <= settings["until"]:
        return guidance
    return settings["guidance"]


def reworded(settings, prompt, tokenizer, seed, image):
    """The prompt as it is used. rt, cwr and rna change it; the others leave it as it is.

    settings    section sample.mitigation
    tokenizer   of the model
    image       number of the image
    Returns     str; its words are parted by single blanks where any were put in
    Raises      ValueError: cwr on a prompt without words
    """
    name = settings["name"]
    if name not in ("rt", "cwr", "rna"):
        return prompt
    if name == "cwr" and not prompt.split():
        raise ValueError("a prompt is empty: cwr has no word of it to repeat (params.yaml, sample.mitigation)")
    return with_words(
        name, prompt, settings["num_words"], tokenizer, randomness.numpy_generator("prompt_words", seed, image)
    )


def with_words(name, prompt, num_words, tokenizer, generator):
    """A prompt with words put in at random places, one after the other: random tokens (rt), words of its own (cwr), numbers (rna).

    Returns   str; its words are parted by single blanks
    """
    words = prompt.split()
    draw = {
        "rt": lambda: _random_word(tokenizer, generator),
        "cwr": lambda original=tuple(words): original[generator.integers(len(original))],
        "rna": lambda: str(generator.integers(LARGEST_NUMBER)),
    }[name]
    for _ in range(num_words):
        words.insert(generator.integers(len(words) + 1), draw())
    return " ".join(words)


def _random_word(tokenizer, generator):
    """One token of the vocabulary as text, all but the special ones alike; another where it is nothing but white space."""
    special = set(tokenizer.all_special_ids)
    while True:
        token = int(generator.integers(len(tokenizer)))
        if token not in special and (word := tokenizer.decode([token]).strip()):
            return word


def embeddings(settings, cond, uncond, seed, images, difference):
    """The embeddings that the network is shown at every step. gni and wen change them; the others leave them as they are.

    settings     section sample.mitigation
    cond         [B,L,D] float32: embeddings of the prompts
    uncond       [B,L,D] float32: embeddings of the empty prompt
    images       [B] numbers of the images
    difference   function cond -> [B,c,h,w], see `first_difference`; only wen calls it
    Returns      cond, uncond
    """
    if settings["name"] == "gni":
        return _noised(settings, cond, uncond, seed, images)
    if settings["name"] == "wen":
        return optimised(settings, cond, difference)[0], uncond
    return cond, uncond


def _noised(settings, cond, uncond, seed, images):
    """One draw an image and half, the same at every step."""
    import numpy as np
    import torch

    draws = [
        randomness.numpy_generator("embedding_noise", seed, i).standard_normal((2, *cond.shape[1:])) for i in images
    ]
    noise = settings["sigma"] * torch.from_numpy(np.stack(draws)).to(cond)
    return cond + noise[:, 0], uncond + noise[:, 1] if settings["target"] == "both" else uncond


def optimised(settings, cond, difference):
    """Embeddings whose magnitude at the first step is at or below the target, as far as max_iterations reach (Wen et al. 2024).

    The loss of an image is |eps(x_T, e) - eps(x_T, empty)|, its norm over the latent. Each image stops by itself, before the update
    once it is there; the public code takes the norm over the whole batch instead. The first token, which marks the start and is the
    same for all prompts, gets no gradient; AdamW's weight decay moves it all the same, as in the public code.

    settings  section sample.mitigation, with its target
    Returns   embeddings [B,L,D]; losses, a list of [B] tensors: before the first update, ..., after the last
    """
    import torch

    target = settings["target"]
    embedding = cond.detach().clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([embedding], lr=settings["learning_rate"], weight_decay=settings["weight_decay"])
    active = torch.ones(len(cond), dtype=torch.bool, device=cond.device)
    losses = []
    for iteration in range(settings["max_iterations"] + 1):
        with torch.enable_grad():
            loss = magnitude_detector.magnitudes(difference(embedding))[target["kind"]]
            losses.append(loss.detach())
            active &= loss.detach() > target["value"]
            if iteration == settings["max_iterations"] or not active.any():
                break
            (embedding.grad,) = torch.autograd.grad(loss.sum(), embedding)
        embedding.grad[:, 0] = 0
        before = embedding.detach().clone()
        optimizer.step()
        with torch.no_grad():
            embedding[~active] = before[~active]
    return embedding.detach(), losses


def first_difference(predict, uncond, prediction_type, alpha_bar):
    """How much the first step's noise depends on the prompt, as a function of its embedding.

    predict           function embedding [B,L,D] -> prediction [B,c,h,w] of the network on x_T at the first timestep
    prediction_type   of the network: see stages.text.prediction
    alpha_bar         of the first timestep, in (0, 1)
    Returns           function cond [B,L,D] -> [B,c,h,w], through which gradients of cond flow
    """
    import torch

    with torch.no_grad():
        empty = predict(uncond)
    return lambda cond: prediction.noise_difference(prediction_type, predict(cond), empty, float(alpha_bar))
