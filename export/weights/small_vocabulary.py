"""The WordPiece vocabulary of the small BLIP and CLIP: the mini-world's words, letters for all others."""

from __future__ import annotations

import functools

# BERT's places of the special tokens are kept, so that one check serves every tokenizer; [DEC] and [ENC] end it.
PAD, UNK, CLS, SEP, MASK = 0, 100, 101, 102, 103
_SPECIAL = {PAD: "[PAD]", UNK: "[UNK]", CLS: "[CLS]", SEP: "[SEP]", MASK: "[MASK]"}
_WORDS = """
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
    head = [_SPECIAL.get(index, f"[unused{index}]") for index in range(MASK + 1)]
    return (*head, *_SIGNS, *_LETTERS, *(f"##{letter}" for letter in _LETTERS), *_WORDS.split(), "[DEC]", "[ENC]")


SIZE = len(small_vocabulary())
DEC, ENC = SIZE - 2, SIZE - 1


def small_tokenizer() -> bytes:
    """``tokenizer.json``: WordPiece over ``small_vocabulary``, normalised and split as BERT uncased."""
    from .tokenizer import _as_bytes, _wordpiece

    return _as_bytes(_wordpiece({token: index for index, token in enumerate(small_vocabulary())}))
