"""Captions with words put into them, or made of random tokens (Somepalli et al. 2023)."""


def with_words(prompt, words, generator):
    """A prompt with words put in one after the other, each at a random place among those that are there by then.

    prompt    its words are what blanks part
    words     list of texts
    """
    found = prompt.split()
    for word in words:
        found.insert(int(generator.integers(len(found) + 1)), word)
    return " ".join(found)


def repeated_words(prompt, count, generator):
    """`count` words of a prompt, drawn with replacement; none where it has none."""
    words = prompt.split()
    return [words[int(generator.integers(len(words)))] for _ in range(count)] if words else []


def random_words(tokenizer, count, generator):
    """`count` texts of one random token each, drawn anew where it is nothing but white space."""
    found = []
    while len(found) < count:
        if text := tokenizer.decode([_token(tokenizer, generator)]).strip():
            found.append(text)
    return found


def random_prompt(tokenizer, count, generator):
    """The text of `count` random tokens, drawn anew where it is nothing but white space."""
    while True:
        if text := tokenizer.decode([_token(tokenizer, generator) for _ in range(count)]).strip():
            return text


def _token(tokenizer, generator):
    """A token id, uniform over all but the special ones."""
    special = tokenizer.all_special_ids
    while (token := int(generator.integers(len(tokenizer)))) in special:
        pass
    return token
