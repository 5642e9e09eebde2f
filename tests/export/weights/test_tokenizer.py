"""The bundle's tokenizer: BERT uncased's rules, from a source's files or made up."""

from __future__ import annotations

import pytest
from flamest.base.errors import DataError
from flamest.export.weights.tokenizer import read_tokenizer, synthetic_tokenizer
from flamest.export.weights.vocabulary import SIZE, vocabulary, word_ids
from tokenizers import Tokenizer


@pytest.fixture(scope="module")
def made_up():
    return Tokenizer.from_str(synthetic_tokenizer().decode())


def test_the_made_up_vocabulary_has_berts_layout(made_up):
    words = vocabulary()
    assert len(words) == len(set(words)) == SIZE == made_up.get_vocab_size() == 30_524
    special = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, "[DEC]": 30_522, "[ENC]": 30_523}
    assert {token: made_up.token_to_id(token) for token in special} == special


def test_every_made_up_word_is_tokenised_to_itself(made_up):
    words = [index for index, word in enumerate(vocabulary()) if word.isalpha()]
    assert len(words) > 29_000
    text = " ".join(vocabulary()[index] for index in words)
    assert made_up.encode(text, add_special_tokens=False).ids == words
    assert made_up.decode(words) == text
    assert set(word_ids()) <= set(words)


def test_any_latin_text_is_tokenised_without_unknowns(made_up):
    encoded = made_up.encode("Über 3 Caféterias, zyx-qq (100%)!")
    assert "[UNK]" not in encoded.tokens
    assert encoded.tokens[0] == "[CLS]"
    assert encoded.tokens[-1] == "[SEP]"
    assert made_up.encode("UBER").ids == made_up.encode("über").ids


def test_vocab_txt_gives_the_tokenizer_of_the_library(tmp_path):
    """Against Hugging Face's own BERT tokenizer on the same vocabulary."""
    from transformers import BertTokenizer

    words = vocabulary()[:30_522]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    ours = Tokenizer.from_str(read_tokenizer(tmp_path, vocabulary_size=SIZE).decode())
    theirs = BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=True)
    for text in ("a babe bibo on a hill", "Naïve Café-talk, isn't it?", "bababa babababa   ##ba"):
        assert ours.encode(text).ids == theirs(text)["input_ids"]
        ids = ours.encode(text, add_special_tokens=False).ids
        # The library joins "isn ' t" to "isn't" as well; both fall into the same tokens again.
        said, their_words = ours.decode(ids), theirs.decode(ids, skip_special_tokens=True)
        assert said.replace(" ' ", "'") == their_words.replace(" ' ", "'")
        assert ours.encode(said).ids == ours.encode(their_words).ids


def test_tokenizer_json_loses_padding_and_truncation(tmp_path, made_up):
    other = Tokenizer.from_str(made_up.to_str())
    other.enable_truncation(4)
    other.enable_padding(length=8)
    other.save(str(tmp_path / "tokenizer.json"))
    taken = Tokenizer.from_str(read_tokenizer(tmp_path, vocabulary_size=SIZE).decode())
    assert len(taken.encode("baba babe babi babo babu bada bade").ids) == 9


def test_a_special_token_at_another_place_is_refused(tmp_path):
    words = list(vocabulary()[:30_522])
    words[101], words[102] = words[102], words[101]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(DataError, match=r"vocab\.txt: token \[CLS\] has id 102, expected 101"):
        read_tokenizer(tmp_path, vocabulary_size=SIZE)


def test_more_tokens_than_the_model_has_are_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary()))
    with pytest.raises(DataError, match=r"has 30524 tokens, expected at most 30000"):
        read_tokenizer(tmp_path, vocabulary_size=30_000)


def test_a_damaged_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer that may run"):
        read_tokenizer(tmp_path, vocabulary_size=SIZE)
