"""Captions that are sometimes changed at a visit, so that none goes with its image alone (Somepalli et al. 2023).

rc    random caption: the text of `num_words` random tokens stands in the caption's place
cwr   caption word repetition: `num_words` words of the caption are put in again, at random places
rt    random token addition: `num_words` random tokens are put in, at random places

(MC, several captions for an image, is train.caption: random_of_all, which goes with any method.)
"""

from stages import randomness
from stages.methods import base
from stages.text import prompt_mitigations

SETTINGS = {
    "required": ["kind", "p", "num_words"],
    "properties": {
        "kind": {"description": "how a caption is changed", "enum": ["rc", "cwr", "rt"]},
        "p": {
            "description": "share of the visits at which the caption is changed",
            "type": "number",
            "minimum": 0,
            "maximum": 1,
        },
        "num_words": {
            "description": "number of words or tokens that are drawn (published: 4 for rc, 2 for cwr and rt)",
            "type": "integer",
            "minimum": 1,
        },
    },
}
MODELS = ["text"]


def random_caption(tokenizer, num_tokens, generator):
    """The text of random tokens, all but the special ones alike; another where it is nothing but white space."""
    allowed = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    while not (text := tokenizer.decode(generator.choice(allowed, num_tokens).tolist()).strip()):
        pass
    return text


class Method(base.Method):
    def losses(self, step):
        generator = randomness.numpy_generator("caption_noise", *step.key)
        tokenizer, (kind, number) = step.objective.frozen.tokenizer, (self.settings[k] for k in ("kind", "num_words"))
        chosen = generator.random(len(step.prompts)) < self.settings["p"]

        def changed(text):
            if kind == "rc":
                return random_caption(tokenizer, number, generator)
            return prompt_mitigations.with_words(kind, text, number, tokenizer, generator)

        # A caption that was dropped stays empty.
        step.prompts = [
            changed(text) if change and text else text for text, change in zip(step.prompts, chosen, strict=True)
        ]
        return super().losses(step)
