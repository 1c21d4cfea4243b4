"""Captions that are sometimes changed at a visit, so that none goes with its image alone (Somepalli et al. 2023): RC, CWR, RT.

random_caption    RC: the text of `count` random tokens stands in the caption's place
repeated_words    CWR: `count` words of the caption are put in again, at random places
random_words      RT: `count` random tokens are put in, at random places

(MC, several captions for an image, is train.caption: random_of_all, which goes with any method.)
"""

from stages.method import randomness
from stages.training import base

SETTINGS = {
    "required": ["kind", "p", "count"],
    "properties": {
        "kind": {
            "description": "how a caption is changed",
            "enum": ["random_caption", "repeated_words", "random_words"],
        },
        "p": {"description": "share of the visits at which it is", "type": "number", "minimum": 0, "maximum": 1},
        "count": {"description": "words or tokens that are drawn", "type": "integer", "minimum": 1},
    },
}
MODELS = ["text"]


class Method(base.Method):
    def losses(self, step):
        from stages.text import prompts

        generator = randomness.numpy_generator("caption_noise", *step.key)
        tokenizer, count = step.objective.frozen.tokenizer, self.settings["count"]

        def changed(prompt):
            match self.settings["kind"]:
                case "random_caption":
                    return prompts.random_prompt(tokenizer, count, generator)
                case "repeated_words":
                    return prompts.with_words(prompt, prompts.repeated_words(prompt, count, generator), generator)
                case "random_words":
                    return prompts.with_words(prompt, prompts.random_words(tokenizer, count, generator), generator)

        at_all = generator.random(len(step.prompts)) < self.settings["p"]
        step.prompts = [changed(text) if chosen else text for text, chosen in zip(step.prompts, at_all, strict=True)]
        return super().losses(step)
