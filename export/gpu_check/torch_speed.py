"""PyTorch on the same GPU, for comparison: ``torch.compile`` in bf16, from prepared frames to the embedding.

Image features are computed once per frame and shared, as this project does; captions have a fixed length.

Not run on hardware yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ..bench.comparison import quantiles
from ..weights.loading import open_blip, open_video
from ..weights.source import parse_source

STEPS = 12  # of a caption
REPEATS = 10
STAGES = ("vision", "caption", "embed", "cnn")


def measure_torch(weights: str, batches: Sequence[int], *, device: str = "") -> dict[str, Any]:
    """Clips a second by batch, with the stages' p50 and p95 of a batch in milliseconds and the GPU's peak memory.

    ``skipped`` says why where PyTorch sees no GPU. ``device``: "cpu" computes there, eagerly, for tests.
    """
    import torch

    if not device and not torch.cuda.is_available():
        return {"skipped": f"PyTorch {torch.__version__} sees no GPU (its CPU build, or another CUDA)"}
    device = device or "cuda"
    chain = TorchChain(weights, device)
    found: dict[str, Any] = {"torch": torch.__version__, "compiled": chain.compiled, "batches": {}}
    for batch in batches:
        chain.forget_compiled()
        try:
            found["batches"][str(batch)] = _measure_batch(chain, batch)
        except Exception as error:  # memory, the compiler, a kernel: the other batches are measured all the same
            words = str(error).strip().splitlines() or [""]
            found["batches"][str(batch)] = {"problem": f"{type(error).__name__}: {words[0]}"}
    return found


class TorchChain:
    """BLIP and Slow in bf16 on a device."""

    def __init__(self, weights: str, device: str) -> None:
        import torch

        self._torch, self.device = torch, device
        self.compiled = device == "cuda"
        self._kind = torch.bfloat16 if device == "cuda" else torch.float32  # a CPU lacks some operators in bf16
        self._model = open_blip(parse_source("blip", weights)).model.eval().to(device, self._kind)
        video = open_video(parse_source("slow", weights))
        net = video.net.eval().to(device, self._kind)
        self._form = video.form
        self._vision: Any = self._fast(self._model.vision_model)
        self._slow: Any = self._fast(net)

    def _fast(self, module: Any) -> Any:
        """Compiled for the very shapes that it runs with: by itself PyTorch takes the second batch for a sign of more,
        and compiles code for any.
        """
        return self._torch.compile(module, dynamic=False) if self.compiled else module

    def forget_compiled(self) -> None:
        """Free the code of other batches, which counts against the compiler's limit, and cached memory."""
        if self.compiled:
            self._torch._dynamo.reset()
            self._torch.cuda.empty_cache()

    def frames(self, batch: int) -> tuple[Any, Any]:
        size, form = self._model.config.vision_config.image_size, self._form
        shapes = ((batch, 3, size, size), (batch, 3, form.frames, form.crop, form.crop))
        pixels, motion = (self._torch.randn(shape, device=self.device, dtype=self._kind) for shape in shapes)
        return pixels, motion

    def run(self, pixels: Any, motion: Any) -> dict[str, float]:
        """Milliseconds of each stage for one batch."""
        torch, text, taken = self._torch, self._model.text_decoder, dict[str, float]()
        config = self._model.config.text_config
        with torch.no_grad():
            image = self._timed(taken, "vision", lambda: self._vision(pixels).last_hidden_state)
            start = torch.full((len(pixels), 1), config.bos_token_id, dtype=torch.long, device=self.device)
            patches = torch.ones(image.shape[:-1], dtype=torch.long, device=self.device)

            def caption() -> Any:
                return text.generate(
                    input_ids=start,
                    min_new_tokens=STEPS,
                    max_new_tokens=STEPS,
                    do_sample=False,
                    num_beams=1,
                    eos_token_id=config.sep_token_id,
                    pad_token_id=config.pad_token_id,
                    encoder_hidden_states=image,
                    encoder_attention_mask=patches,
                )

            ids = self._timed(taken, "caption", caption)
            self._timed(taken, "embed", lambda: text.bert(ids, encoder_hidden_states=image, is_decoder=False))
            self._timed(taken, "cnn", lambda: self._slow(motion))
        return taken

    def _timed(self, taken: dict[str, float], stage: str, work: Callable[[], Any]) -> Any:
        self.wait()
        started = time.perf_counter()
        result = work()
        self.wait()
        taken[stage] = 1000 * (time.perf_counter() - started)
        return result

    def wait(self) -> None:
        if self.device == "cuda":
            self._torch.cuda.synchronize()

    def peak_mb(self) -> float | None:
        if self.device != "cuda":
            return None
        peak = self._torch.cuda.max_memory_allocated() / 1e6
        self._torch.cuda.reset_peak_memory_stats()
        return float(peak)


def _measure_batch(chain: TorchChain, batch: int) -> dict[str, Any]:
    frames = chain.frames(batch)
    for _ in range(3):  # compilation for this batch, then twice
        chain.run(*frames)
    runs = [chain.run(*frames) for _ in range(REPEATS)]
    whole = quantiles([sum(run.values()) for run in runs])
    return {
        "clips_per_second": 1000 * batch / whole["p50_ms"],
        "batch_ms": whole,
        "stages": {stage: quantiles([run[stage] for run in runs]) for stage in STAGES},
        "gpu_mb": chain.peak_mb(),
    }
