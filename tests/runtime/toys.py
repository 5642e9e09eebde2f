"""A bundle of toy graphs: the real tensor names and masks, networks small enough to compute by hand.

Not a test; conftest.py here and in tests/agent make fixtures of it.
"""

import hashlib
from pathlib import Path

import numpy as np
import onnx
from flamest.runtime.bundle.graph_records import Graph, Parity, Tensor
from flamest.runtime.bundle.manifest import (
    CaptionRule,
    FileEntry,
    FramePreprocessing,
    KeyframeRule,
    Manifest,
    RetrievedCaption,
    Source,
    SpatioTemporal,
    TextShape,
    VisionLanguage,
    encode_manifest,
)
from onnx import TensorProto, helper, numpy_helper

WORDS = ["[PAD]", "[START]", "[END]", "[CLS]", "[SEP]", "[UNK]"] + [f"word{number}" for number in range(26)]
PAD, START, END, CLS, SEP = range(5)
D = 4  # width of the text model: one layer, one head
IMAGE, PATCH = 8, 4  # vision input, patch
SLOW_SIZE, SLOW_WIDTH, KEYFRAMES = 12, 5, 8
FRAME_SIZE, CANDIDATES = 10, 32
LONGEST = 6  # new tokens
POSITIONS = 40
CAPTIONS = ("a red ball rolls", "a box falls", "nothing moves")
NETWORKS = {"slow": 8, "resnet3d": 3}  # frames


def weights(seed):
    """Every weight of the toy networks, by name."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    drawn = {
        "patch_key": normal(D, 3, PATCH, PATCH),
        "patch_value": normal(D, 3, PATCH, PATCH),
        "word": normal(len(WORDS), D),
        "position": normal(POSITIONS, D),
        "own": normal(D, D),
        "seen": normal(D, D),
        "unembed": normal(D, len(WORDS)),
        "slow": normal(3 * KEYFRAMES, SLOW_WIDTH),
        "frame": normal(3 * FRAME_SIZE * FRAME_SIZE, 6),
    }
    drawn["unembed"][:, END] *= 1.5  # captions end, at different lengths
    drawn["resnet3d"] = normal(3 * NETWORKS["resnet3d"], SLOW_WIDTH)
    drawn["image_matrix"] = normal(3 * IMAGE * IMAGE, D)
    drawn["captions"] = normal(len(CAPTIONS), D)
    return drawn


def _graph(name, nodes, inputs, outputs, constants):
    values = [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs]
    initial = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, values, results, initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def vision_graph(w):
    patches = (IMAGE // PATCH) ** 2
    nodes = [
        helper.make_node("Conv", ["pixels", "patch_key"], ["k"], strides=[PATCH, PATCH]),
        helper.make_node("Reshape", ["k", "to_patches"], ["cross_key_00"]),
        helper.make_node("Conv", ["pixels", "patch_value"], ["v"], strides=[PATCH, PATCH]),
        helper.make_node("Reshape", ["v", "to_patches"], ["vt"]),
        helper.make_node("Transpose", ["vt"], ["cross_value_00"], perm=[0, 1, 3, 2]),
    ]
    return _graph(
        "vision",
        nodes,
        [("pixels", TensorProto.FLOAT, ["batch", 3, IMAGE, IMAGE])],
        [("cross_key_00", ["batch", 1, D, patches]), ("cross_value_00", ["batch", 1, patches, D])],
        {
            "patch_key": w["patch_key"],
            "patch_value": w["patch_value"],
            "to_patches": np.array([0, 1, D, patches], np.int64),
        },
    )


def text_graph(w):
    """hidden = tanh(h + attention(h) own + attention(h, image) seen), logits = last hidden unembed."""
    node = helper.make_node
    nodes = [
        node("Gather", ["word", "token_ids"], ["words"]),
        node("Gather", ["position", "positions"], ["places"]),
        node("Add", ["words", "places"], ["h"]),
        node("Unsqueeze", ["h", "one"], ["q"]),
        node("Concat", ["past_key_00", "q"], ["present_key_00"], axis=2),
        node("Concat", ["past_value_00", "q"], ["present_value_00"], axis=2),
        node("Transpose", ["present_key_00"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "kt"], ["s"]),
        node("Add", ["s", "mask"], ["sm"]),
        node("Softmax", ["sm"], ["a"], axis=-1),
        node("MatMul", ["a", "present_value_00"], ["c"]),
        node("Squeeze", ["c", "one"], ["context"]),
        node("MatMul", ["q", "cross_key_00"], ["xs"]),
        node("Softmax", ["xs"], ["xa"], axis=-1),
        node("MatMul", ["xa", "cross_value_00"], ["xc"]),
        node("Squeeze", ["xc", "one"], ["image"]),
        node("MatMul", ["context", "own"], ["o"]),
        node("MatMul", ["image", "seen"], ["i"]),
        node("Add", ["h", "o"], ["ho"]),
        node("Add", ["ho", "i"], ["hoi"]),
        node("Tanh", ["hoi"], ["hidden"]),
        node("Gather", ["hidden", "last"], ["end"], axis=1),
        node("MatMul", ["end", "unembed"], ["logits"]),
    ]
    patches = (IMAGE // PATCH) ** 2
    past, present = ["batch", 1, "past", D], ["batch", 1, "present", D]
    return _graph(
        "text",
        nodes,
        [
            ("token_ids", TensorProto.INT64, ["batch", "tokens"]),
            ("positions", TensorProto.INT64, ["batch", "tokens"]),
            ("mask", TensorProto.FLOAT, ["batch", 1, "tokens", "present"]),
            ("past_key_00", TensorProto.FLOAT, past),
            ("past_value_00", TensorProto.FLOAT, past),
            ("cross_key_00", TensorProto.FLOAT, ["batch", 1, D, patches]),
            ("cross_value_00", TensorProto.FLOAT, ["batch", 1, patches, D]),
        ],
        [
            ("logits", ["batch", len(WORDS)]),
            ("hidden", ["batch", "tokens", D]),
            ("present_key_00", present),
            ("present_value_00", present),
        ],
        {key: w[key] for key in ("word", "position", "own", "seen", "unembed")}
        | {"one": np.array([1], np.int64), "last": np.array(-1, np.int64)},
    )


def with_form_4(name, model):
    """``vision`` that takes bytes, ``text`` that chooses the token and slides its window; other graphs as they are."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph, node = model.graph, helper.make_node
    if name == "vision":
        (pixels,) = graph.input
        graph.input.remove(pixels)
        graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", IMAGE, IMAGE, 3]))
        for each in graph.node:
            each.input[:] = ["normalised" if one == "pixels" else one for one in each.input]
        first = [
            node("Cast", ["pixels"], ["whole"], to=TensorProto.FLOAT),
            node("Div", ["whole", "n255"], ["share"]),
            node("Sub", ["share", "mean"], ["centred"]),
            node("Div", ["centred", "std"], ["scaled"]),
            node("Transpose", ["scaled"], ["normalised"], perm=[0, 3, 1, 2]),
        ]
        rest = list(graph.node)
        del graph.node[:]
        graph.node.extend([*first, *rest])
        for key, value in (("n255", 255.0), ("mean", 0.5), ("std", 0.25)):
            graph.initializer.append(numpy_helper.from_array(np.float32(value), key))
    if name == "text":
        for each in graph.node:
            for names in (each.input, each.output):
                names[:] = [one.replace("present_", "all_") for one in names]
        graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "axis2"))
        graph.initializer.append(numpy_helper.from_array(np.array([1 << 30], np.int64), "far"))
        graph.node.extend([
            node("Shape", ["token_ids"], ["tokens"], start=1, end=2),
            *(
                node("Slice", [f"all_{part}_00", "tokens", "far", "axis2"], [f"present_{part}_00"])
                for part in ("key", "value")
            ),
            node("ArgMax", ["logits"], ["next_token"], axis=-1, keepdims=0),
        ])  # fmt: skip
        for each in graph.output:
            if each.name.startswith("present_"):
                each.type.tensor_type.shape.dim[2].dim_param = "past"
        graph.output.append(helper.make_tensor_value_info("next_token", TensorProto.INT64, ["batch"]))
    onnx.checker.check_model(model, full_check=True)
    return model


def words_graph(w):
    """hidden = tanh(h + attention(h) own): the text model without the image."""
    node = helper.make_node
    nodes = [
        node("Gather", ["word", "token_ids"], ["words"]),
        node("Gather", ["position", "positions"], ["places"]),
        node("Add", ["words", "places"], ["h"]),
        node("Squeeze", ["mask", "one"], ["m"]),
        node("Transpose", ["h"], ["ht"], perm=[0, 2, 1]),
        node("MatMul", ["h", "ht"], ["s"]),
        node("Add", ["s", "m"], ["sm"]),
        node("Softmax", ["sm"], ["a"], axis=-1),
        node("MatMul", ["a", "h"], ["context"]),
        node("MatMul", ["context", "own"], ["o"]),
        node("Add", ["h", "o"], ["ho"]),
        node("Tanh", ["ho"], ["hidden"]),
    ]
    return _graph(
        "words",
        nodes,
        [
            ("token_ids", TensorProto.INT64, ["batch", "tokens"]),
            ("positions", TensorProto.INT64, ["batch", "tokens"]),
            ("mask", TensorProto.FLOAT, ["batch", 1, 1, "tokens"]),
        ],
        [("hidden", ["batch", "tokens", D])],
        {key: w[key] for key in ("word", "position", "own")} | {"one": np.array([1], np.int64)},
    )


def clip_graph(w):
    """The frame through one matrix, with the caption of the largest product with it."""
    node = helper.make_node
    nodes = [
        node("Flatten", ["pixels"], ["flat"]),
        node("MatMul", ["flat", "image_matrix"], ["image"]),
        node("MatMul", ["image", "across"], ["scores"]),
        node("ArgMax", ["scores"], ["caption_index"], axis=-1, keepdims=0),
        node("Gather", ["captions", "caption_index"], ["caption"]),
        node("Concat", ["image", "caption"], ["vector"], axis=-1),
    ]
    made = _graph(
        "clip",
        nodes,
        [("pixels", TensorProto.FLOAT, ["batch", 3, IMAGE, IMAGE])],
        [("vector", ["batch", 2 * D])],
        {"image_matrix": w["image_matrix"], "captions": w["captions"], "across": np.ascontiguousarray(w["captions"].T)},
    )
    made.graph.output.append(helper.make_tensor_value_info("caption_index", TensorProto.INT64, ["batch"]))
    return made


def cnn_graph(w, network="slow"):
    nodes = [
        helper.make_node("ReduceMean", ["frames"], ["m"], axes=[3, 4], keepdims=0),
        helper.make_node("Flatten", ["m"], ["flat"]),
        helper.make_node("MatMul", ["flat", network], ["embedding"]),
    ]
    frames = ("frames", TensorProto.FLOAT, ["batch", 3, NETWORKS[network], SLOW_SIZE, SLOW_SIZE])
    return _graph("cnn", nodes, [frames], [("embedding", ["batch", SLOW_WIDTH])], {network: w[network]})


def keyframes_graph(w):
    nodes = [
        helper.make_node("Flatten", ["frames"], ["flat"]),
        helper.make_node("MatMul", ["flat", "frame"], ["features"]),
    ]
    frames = ("frames", TensorProto.FLOAT, ["frames_", 3, FRAME_SIZE, FRAME_SIZE])
    return _graph("keyframes", nodes, [frames], [("features", ["frames_", 6])], {"frame": w["frame"]})


def vision_language(attention_mode="bidirectional", captioned_frames=1):
    return VisionLanguage(
        preprocessing=FramePreprocessing(IMAGE, "stretch", "bicubic", (0.5,) * 3, (0.25,) * 3),
        text=TextShape(layers=1, heads=1, head_dim=D, width=D, vocabulary=len(WORDS)),
        caption=CaptionRule(START, END, PAD, CLS, SEP, max_new_tokens=LONGEST),
        attention_mode=attention_mode,
        width=D,
        captioned_frames=captioned_frames,
    )


def retrieved_caption():
    preprocessing = FramePreprocessing(IMAGE, "crop", "bicubic", (0.5,) * 3, (0.25,) * 3)
    return RetrievedCaption(preprocessing, CAPTIONS, tokens_sha256="2" * 64, width=2 * D)


def spatio_temporal(network="slow", choice="keyframes"):
    crop = FramePreprocessing(SLOW_SIZE, "crop", "bilinear", (0.45,) * 3, (0.225,) * 3)
    return SpatioTemporal(network, crop, NETWORKS[network], choice, SLOW_WIDTH, "mean")


def parts_of(extractor, attention_mode="bidirectional", captioned_frames=1):
    """(vlm, cnn) of an extractor's name, as the manifest describes them."""
    vlm = cnn = None
    for part in extractor.split("+"):
        if part in ("blip", "blip-text"):
            vlm = vision_language("text" if part == "blip-text" else attention_mode, captioned_frames)
        elif part == "clip":
            vlm = retrieved_caption()
        else:
            network, _, uniform = part.partition("-")
            cnn = spatio_temporal(network, "uniform" if uniform else "keyframes")
    return vlm, cnn


def write_bundle(
    folder: Path,
    *,
    seed=1,
    extraction_seed=0,
    extractor="blip+slow",
    attention_mode="bidirectional",
    captioned_frames=1,
    form=3,
) -> Path:
    """A complete bundle of toy graphs in ``folder`` (made), its hashes and manifest right. ``form``: of the graphs, 3
    or 4 (runtime/bundle/manifest.py)."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True)
    w = weights(seed)
    vlm, cnn = parts_of(extractor, attention_mode, captioned_frames)
    graphs = {"keyframes": keyframes_graph(w)}
    if isinstance(vlm, VisionLanguage):
        graphs |= {"vision": vision_graph(w), "text": text_graph(w)}
        if vlm.attention_mode == "text":
            graphs["words"] = words_graph(w)
        tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.save(str(folder / "tokenizer.json"))
    elif vlm is not None:
        graphs["clip"] = clip_graph(w)
    if cnn is not None:
        graphs["cnn"] = cnn_graph(w, cnn.network)
    for name, model in graphs.items():
        model = with_form_4(name, model) if form == 4 else model
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    write_manifest(folder, extraction_seed, extractor=extractor, vlm=vlm, cnn=cnn, schema=form)
    return folder


def write_manifest(folder: Path, extraction_seed=0, **changes) -> Manifest:
    """A manifest for the files that are in ``folder`` now."""
    files = {
        path.relative_to(folder).as_posix(): FileEntry(
            hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "bundle.json"
    }
    crop = FramePreprocessing(FRAME_SIZE, "crop", "bilinear", (0.45,) * 3, (0.225,) * 3)
    fields = {
        "schema": 3,
        "created": "2026-11-23T00:00:00Z",
        "extractor": "blip+slow",
        "backend": "onnx",
        "extraction_seed": extraction_seed,
        "keyframes": KeyframeRule(KEYFRAMES, CANDIDATES, crop, 6, "toy"),
        "vlm": vision_language(),
        "cnn": spatio_temporal(),
        "sources": {
            "blip": Source("toy", "", "0" * 64, 1, 1, "none"),
            "slow": Source("toy", "", "1" * 64, 1, 1, "none"),
        },
        "files": files,
        "parity": Parity({}, 0, 0),
        "versions": {},
    } | changes
    precision = fields.pop("precision", "fp32")  # of every graph
    graphs = {}
    for name in (Path(file).stem for file in files if file.endswith(".onnx")):
        inputs = ()
        if name == "cnn" and fields["cnn"] is not None:
            frames = NETWORKS[fields["cnn"].network]
            inputs = (Tensor("frames", "float32", ("batch", 3, frames, SLOW_SIZE, SLOW_SIZE)),)
        if name == "vision" and fields["schema"] == 4:
            inputs = (Tensor("pixels", "uint8", ("batch", IMAGE, IMAGE, 3)),)
        graphs[name] = Graph(f"{name}.onnx", 17, inputs, (), {}, precision, {})
    manifest = Manifest(**({"graphs": graphs} | fields))
    (folder / "bundle.json").write_bytes(encode_manifest(manifest))
    return manifest
