"""A made-up WordPiece vocabulary of BERT's size and layout, for ``random:*`` sources.

The published vocabulary belongs to the published weights; random weights get words that carry no
meaning, but the same special tokens at the same ids, letters, ``##`` pieces, and text that goes
through the tokenizer both ways without change.
"""

from __future__ import annotations

import functools
import itertools

PAD, UNK, CLS, SEP, MASK = 0, 100, 101, 102, 103
DEC, ENC = 30_522, 30_523
SIZE = 30_524

_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"
_SPECIAL = {PAD: "[PAD]", UNK: "[UNK]", CLS: "[CLS]", SEP: "[SEP]", MASK: "[MASK]", DEC: "[DEC]", ENC: "[ENC]"}
_PLAIN = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~0123456789abcdefghijklmnopqrstuvwxyz"
_SPOKEN = 2000  # words that a random captioner may say


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """30,524 different tokens in the order of their ids."""
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
    pieces = itertools.chain(
        _PLAIN,
        (f"##{sign}" for sign in _PLAIN if sign.isalnum()),
        ("".join(word) for word in itertools.product(syllables, repeat=2)),
        (f"##{syllable}" for syllable in syllables),
        ("".join(word) for word in itertools.product(syllables, repeat=3)),
    )
    tokens = []
    for index in range(SIZE):
        if index in _SPECIAL:
            tokens.append(_SPECIAL[index])
        elif index < MASK:  # BERT leaves these ids unused too
            tokens.append(f"[unused{index}]")
        else:
            tokens.append(next(pieces))
    return tuple(tokens)


@functools.cache
def word_ids() -> tuple[int, ...]:
    """Ids of words of two syllables, the first 2000: all that a random captioner says."""
    words = (index for index, token in enumerate(vocabulary()) if len(token) == 4 and token.isalpha())
    return tuple(itertools.islice(words, _SPOKEN))


def spoken_phrases(seed: int, count: int) -> tuple[str, ...]:
    """Different made-up captions of three words each, the same for the same seed."""
    import random

    generator, words = random.Random(seed), [vocabulary()[index] for index in word_ids()]
    phrases: dict[str, None] = {}
    while len(phrases) < count:
        phrases[" ".join(generator.sample(words, 3))] = None
    return tuple(phrases)
