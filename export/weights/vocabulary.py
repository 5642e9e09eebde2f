"""WordPiece vocabularies of our own: a made-up one of BERT's size for ``random:*``, a small one for the mini-world.

The published vocabulary belongs to the published weights; random weights get words that carry no
meaning, but the same special tokens at the same ids, letters, ``##`` pieces, and text that goes
through the tokenizer both ways without change. The small BLIP and CLIP know the mini-world's words,
and letters for all others.
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
_SPOKEN = 2000  # words that a random captioner uses


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
    """Ids of the first 2000 words of two syllables: the only words of a random captioner."""
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


_SMALL_WORDS = """
    an the of on in to and front left right above below behind beside under over
    ball box star ring cross red orange yellow green blue purple pink grey brown white black dull bright
    grass sand bricks clouds water snow wall field sky
    crossing lifting circling approaching swinging moving resting video picture photo is
"""
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_SIGNS = ".,!?'-"


@functools.cache
def small_vocabulary() -> tuple[str, ...]:
    """The tokens in the order of their ids."""
    special = {index: token for index, token in _SPECIAL.items() if index <= MASK}
    head = [special.get(index, f"[unused{index}]") for index in range(MASK + 1)]
    return (*head, *_SIGNS, *_LETTERS, *(f"##{letter}" for letter in _LETTERS), *_SMALL_WORDS.split(), "[DEC]", "[ENC]")


SMALL_SIZE = len(small_vocabulary())
SMALL_DEC, SMALL_ENC = SMALL_SIZE - 2, SMALL_SIZE - 1  # BERT's special tokens keep their places, these two end it
