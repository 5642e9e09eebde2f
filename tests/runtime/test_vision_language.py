"""Captions and embeddings through the KV cache equal those computed in full, by hand."""

import numpy as np
import pytest
from flamest.base.errors import DataError, InvariantError
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.vision_language import VisionLanguageModel

SEED = 1


@pytest.fixture(scope="module")
def model_of(toys):
    weights = toys.weights(SEED)
    vision = open_session(toys.vision_graph(weights).SerializeToString(), threads=1)
    text = open_session(toys.text_graph(weights).SerializeToString(), threads=1)
    words = open_session(toys.words_graph(weights).SerializeToString(), threads=1)
    return lambda attention_mode="bidirectional": VisionLanguageModel(
        vision, text, toys.vision_language(attention_mode), words=words if attention_mode == "text" else None
    )


@pytest.fixture(scope="module")
def pixels(toys):
    return np.random.default_rng(3).normal(size=(12, 3, toys.IMAGE, toys.IMAGE)).astype(np.float32)


def softmax(scores):
    power = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return power / power.sum(axis=-1, keepdims=True)


def hidden_by_hand(toys, image, tokens, causal):
    """The toy text model on one frame (None: on none) and one unpadded row, without a cache."""
    w = toys.weights(SEED)
    size, patch = toys.IMAGE // toys.PATCH, toys.PATCH
    if image is not None:
        patches = image.reshape(3, size, patch, size, patch).transpose(1, 3, 0, 2, 4).reshape(size * size, -1)
        key, value = (patches @ w[name].reshape(toys.D, -1).T for name in ("patch_key", "patch_value"))
    h = w["word"][list(tokens)] + w["position"][: len(tokens)]
    scores = h @ h.T
    if causal:
        scores = np.where(np.tri(len(tokens), dtype=bool), scores, -np.inf)
    seen = softmax(h @ key.T) @ value @ w["seen"] if image is not None else 0
    return np.tanh(h + softmax(scores) @ h @ w["own"] + seen)


def caption_by_hand(toys, image):
    tokens = [toys.START]
    for _ in range(toys.LONGEST):
        logits = hidden_by_hand(toys, image, tokens, causal=True)[-1] @ toys.weights(SEED)["unembed"]
        tokens.append(int(logits.argmax()))
        if tokens[-1] == toys.END:
            return tuple(tokens[1:-1])
    return tuple(tokens[1:])


def test_captions_equal_those_without_a_cache_and_end_at_different_times(toys, model_of, pixels):
    model = model_of()
    captions = model.caption_ids(model.encode_image(pixels))
    assert captions == [caption_by_hand(toys, image) for image in pixels]
    assert len({len(caption) for caption in captions}) > 2  # otherwise the batch test below proves little


def test_a_row_that_has_ended_does_not_disturb_the_others(model_of, pixels):
    model = model_of()
    alone = [model.caption_ids(model.encode_image(image[None]))[0] for image in pixels]
    assert model.caption_ids(model.encode_image(pixels)) == alone


def test_a_caption_has_no_special_tokens_and_a_longest_length(toys, model_of, pixels):
    model = model_of()
    captions = model.caption_ids(model.encode_image(pixels))
    assert all(len(caption) <= toys.LONGEST and toys.END not in caption for caption in captions)
    assert max(map(len, captions)) == toys.LONGEST


@pytest.mark.parametrize("attention_mode", ["bidirectional", "causal-last", "causal-first", "text"])
def test_embeddings_of_a_padded_batch_equal_single_rows_by_hand(toys, model_of, pixels, attention_mode):
    model = model_of(attention_mode)
    captions = [(9,), (10, 11, 12, 13), (), (20, 6)]
    got = model.embed(model.encode_image(pixels[:4]), captions)
    assert got.shape == (4, toys.D)
    assert got.dtype == np.float32
    for row, image, caption in zip(got, pixels, captions, strict=False):
        seen, causal = None if attention_mode == "text" else image, attention_mode.startswith("causal")
        hidden = hidden_by_hand(toys, seen, (toys.CLS, *caption, toys.SEP), causal)
        np.testing.assert_allclose(row, hidden[-1 if attention_mode == "causal-last" else 0], atol=1e-4)


@pytest.mark.parametrize(
    ("attention_mode", "hears"),
    [("bidirectional", True), ("causal-last", True), ("causal-first", False), ("text", True)],
)
def test_the_caption_changes_the_embedding_except_in_causal_first(model_of, pixels, attention_mode, hears):
    model = model_of(attention_mode)
    memory = model.encode_image(pixels[:1])
    one, other = (model.embed(memory, [caption])[0] for caption in [(9, 10), (11, 12)])
    assert (one.tobytes() != other.tobytes()) == hears


@pytest.mark.parametrize(("attention_mode", "sees"), [("bidirectional", True), ("causal-last", True), ("text", False)])
def test_the_frame_changes_the_embedding_except_in_text_mode(model_of, pixels, attention_mode, sees):
    model = model_of(attention_mode)
    one, other = (model.embed(model.encode_image(image[None]), [(9, 10)])[0] for image in pixels[:2])
    assert (one.tobytes() != other.tobytes()) == sees


def test_the_words_graph_belongs_to_text_mode_alone(toys):
    weights = toys.weights(SEED)
    graphs = [toys.vision_graph, toys.text_graph, toys.words_graph]
    vision, text, words = (open_session(graph(weights).SerializeToString(), threads=1) for graph in graphs)
    with pytest.raises(InvariantError, match="belongs to the attention mode 'text' alone, this one is 'bidirectional'"):
        VisionLanguageModel(vision, text, toys.vision_language(), words=words)
    with pytest.raises(InvariantError, match="this one is 'text'"):
        VisionLanguageModel(vision, text, toys.vision_language("text"))
    with pytest.raises(DataError, match=r"graph 'words'.*missing"):
        VisionLanguageModel(vision, text, toys.vision_language("text"), words=vision)


def test_one_image_pass_gives_what_two_passes_give(model_of, pixels):
    model = model_of()
    memory = model.encode_image(pixels)
    captions = model.caption_ids(memory)
    assert model.embed(memory, captions).tobytes() == model.embed(model.encode_image(pixels), captions).tobytes()


def test_equal_logits_give_the_lowest_id(toys, pixels):
    weights = toys.weights(SEED)
    weights["unembed"][:] = 0.0
    vision = open_session(toys.vision_graph(weights).SerializeToString(), threads=1)
    text = open_session(toys.text_graph(weights).SerializeToString(), threads=1)
    model = VisionLanguageModel(vision, text, toys.vision_language())
    assert model.caption_ids(model.encode_image(pixels[:1])) == [(toys.PAD,) * toys.LONGEST]


def test_a_graph_without_the_promised_tensors_is_refused_by_name(toys):
    weights = toys.weights(SEED)
    vision = open_session(toys.vision_graph(weights).SerializeToString(), threads=1)
    with pytest.raises(DataError, match=r"graph 'text'.*missing.*token_ids") as caught:
        VisionLanguageModel(vision, vision, toys.vision_language())
    assert caught.value.code == "bad_graph"


def test_captions_and_frames_must_be_as_many(model_of, pixels):
    model = model_of()
    with pytest.raises(InvariantError, match="1 captions given for 2 frames"):
        model.embed(model.encode_image(pixels[:2]), [(5,)])
