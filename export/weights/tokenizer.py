"""``tokenizer.json`` of a bundle: from a source's own files, or made up for random weights.

The runtime needs nothing but this file and the ``tokenizers`` package.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...base.errors import DataError
from ...base.files import read_regular
from ...runtime.bundle.tokenizer_check import open_tokenizer
from .vocabulary import CLS, MASK, PAD, SEP, UNK, small_vocabulary, vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENIZER = 64 << 20  # bytes of tokenizer.json or vocab.txt
_EXPECTED = {"[PAD]": PAD, "[UNK]": UNK, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}


def synthetic_tokenizer() -> bytes:
    """``tokenizer.json`` over the made-up vocabulary of ``random:*`` sources."""
    return _as_bytes(_wordpiece({token: index for index, token in enumerate(vocabulary())}))


def small_tokenizer() -> bytes:
    """``tokenizer.json`` of the small BLIP and CLIP: normalised and split as BERT uncased."""
    return _as_bytes(_wordpiece({token: index for index, token in enumerate(small_vocabulary())}))


def read_tokenizer(folder: Path, *, vocabulary_size: int) -> bytes:
    """``tokenizer.json`` from that file, or from ``vocab.txt``, of ``folder``.

    Raises DataError when neither is there, a file is damaged, an id is beyond the model's
    ``vocabulary_size``, or a special token has not the id that BERT uncased gives it.
    """
    json_file, vocabulary_file = folder / "tokenizer.json", folder / "vocab.txt"
    if json_file.is_file():
        source = json_file
        tokenizer = open_tokenizer(read_regular(json_file, largest=MAX_TOKENIZER), str(json_file))
    elif vocabulary_file.is_file():
        source = vocabulary_file
        try:
            words = read_regular(vocabulary_file, largest=MAX_TOKENIZER).decode().splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{vocabulary_file} is not UTF-8 text: {error}", fix="download the file again") from error
        tokenizer = _wordpiece({word: index for index, word in enumerate(words)})
    else:
        raise DataError(
            f"{folder} holds neither tokenizer.json nor vocab.txt",
            fix=f"put one of them, from the same model as the weights, into {folder}",
        )
    _check(tokenizer, source, vocabulary_size)
    return _as_bytes(tokenizer)


def token_id(tokenizer: bytes, token: str) -> int:
    """The id of a token in a ``tokenizer.json``; raises DataError when it has none."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(tokenizer.decode()).token_to_id(token)
    if found is None:
        raise DataError(
            f"the tokenizer has no token {token}", fix="use the tokenizer that was published with the weights"
        )
    return int(found)


def _wordpiece(words: dict[str, int]) -> Tokenizer:
    """BERT uncased: lower case, no accents, split at spaces and punctuation, longest pieces first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    special = [token for token in (*_EXPECTED, "[DEC]", "[ENC]") if token in words]
    tokenizer.add_special_tokens(special)
    if "[CLS]" in words and "[SEP]" in words:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", words["[SEP]"]), ("[CLS]", words["[CLS]"]))
    return tokenizer


def _check(tokenizer: Tokenizer, source: Path, vocabulary_size: int) -> None:
    for token, expected in _EXPECTED.items():
        found = tokenizer.token_to_id(token)
        if found != expected:
            raise DataError(
                f"{source}: token {token} has id {found}, expected {expected} as in BERT uncased",
                fix="use the tokenizer that was published with the weights",
            )
    if tokenizer.get_vocab_size() > vocabulary_size:
        raise DataError(
            f"{source} has {tokenizer.get_vocab_size()} tokens, "
            f"expected at most {vocabulary_size}, the size of the model's vocabulary",
            fix="use the tokenizer that was published with the weights",
        )


def _as_bytes(tokenizer: Tokenizer) -> bytes:
    # Captions are short and are batched by the runtime: settings of the file for both would only surprise.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return str(tokenizer.to_str(pretty=False)).encode()
