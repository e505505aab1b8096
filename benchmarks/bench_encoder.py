"""The spec's whole encoder on the CPU: against other backends, other Mamba packages and Transformers of its size.

    python benchmarks/bench_encoder.py [--threads 2] [--parts inference training]

Encoder: 12 Mamba-1 blocks, d 256, 16 states, no MLP, 395 tokens, random weights. Transformers: as wide and deep, 8
heads, causal scaled-dot-product attention, RMSNorm; with a SiLU-gated MLP that makes the parameters equal to the Mamba
block's (`transformer`), with the usual MLP of four times the width (`transformer_mlp4x`, ungated GELU), and without MLP
(`transformer_no_mlp`). All run under bfloat16 autocast; `compiled` is `torch.compile` with its default backend. mambapy
and Hugging Face's MambaModel are built with the same sizes. Training is forward and backward (no optimizer); loops that
would take minutes are left out of it, and the results say so. Ours stands beside the processor's peak, as
`bench_model.py` measures it. Writes `benchmarks/results/encoder.json`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from harness import (
    alternate,
    environment,
    median_ms,
    operations,
    peak_gflops,
    print_table,
    update_summary,
    write_results,
)
from statevla.model.mamba import MambaStack
from statevla.model.program import StackProgram

DIM, DEPTH, TOKENS, HEADS = 256, 12, 395, 8
EQUAL_PARAMETERS_HIDDEN = 229  # gated: 3 * 256 * 229 = 175,872 next to attention's 262,144: 438,016, a Mamba block's


@dataclass(frozen=True)
class Args:
    """Measure the encoder."""

    threads: int = 2
    """CPU threads."""
    rounds: int = 40
    """Timed calls per case; training takes a quarter."""
    batch_size: int = 8
    """Of the training step."""
    budget_s: float = 150.0
    """Seconds of timed calls per table."""
    parts: tuple[str, ...] = ("inference", "training")
    """What to measure."""
    seed: int = 0


class TransformerLayer(nn.Module):
    """Pre-norm attention and MLP: gated with `gated`, none with `hidden` 0."""

    def __init__(self, hidden: int, gated: bool) -> None:
        super().__init__()
        self.norm1, self.qkv, self.out = (
            nn.RMSNorm(DIM, 1e-5),
            nn.Linear(DIM, 3 * DIM, bias=False),
            nn.Linear(DIM, DIM, bias=False),
        )
        self.hidden, self.gated = hidden, gated
        if hidden:
            self.norm2 = nn.RMSNorm(DIM, 1e-5)
            self.fc1 = nn.Linear(DIM, (1 + gated) * hidden, bias=False)
            self.fc2 = nn.Linear(hidden, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, tokens, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, tokens, DIM)
        x = x + self.out(mixed)
        if not self.hidden:
            return x
        if not self.gated:
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        value, gate = self.fc1(self.norm2(x)).chunk(2, -1)
        return x + self.fc2(value * F.silu(gate))


class Transformer(nn.Module):
    """As wide and deep as the encoder."""

    def __init__(self, hidden: int, gated: bool = True) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(TransformerLayer(hidden, gated) for _ in range(DEPTH)))
        self.norm_f = nn.RMSNorm(DIM, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_f(self.layers(x))


def mambapy_encoder() -> nn.Module:
    from mambapy.mamba import Mamba, MambaConfig

    return Mamba(MambaConfig(d_model=DIM, n_layers=DEPTH, d_state=16, expand_factor=2, d_conv=4))


class HuggingFaceEncoder(nn.Module):
    """`transformers.MambaModel` on embeddings."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import MambaConfig, MambaModel

        config = MambaConfig(hidden_size=DIM, num_hidden_layers=DEPTH, state_size=16, vocab_size=8, use_mambapy=False)
        self.model = MambaModel(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(inputs_embeds=x, use_cache=False).last_hidden_state


def build(name: str, seed: int) -> nn.Module:
    """An encoder by name; `…_compiled` compiles it."""
    torch.manual_seed(seed)
    makers: dict[str, Callable[[], nn.Module]] = {
        "statevla": lambda: MambaStack(DIM, DEPTH, backend="numba"),
        "chunked": lambda: MambaStack(DIM, DEPTH, backend="chunked"),
        "mambapy": mambapy_encoder,
        "huggingface": HuggingFaceEncoder,
        "transformer": lambda: Transformer(EQUAL_PARAMETERS_HIDDEN),
        "transformer_mlp4x": lambda: Transformer(4 * DIM, gated=False),
        "transformer_no_mlp": lambda: Transformer(0),
    }
    model = makers[name.removesuffix("_compiled")]()
    if name.endswith("_compiled"):
        model.compile()
    return model


def inference_case(name: str, seed: int) -> Callable[[], object]:
    """`…_prepared` is the encoder as a program."""
    model, x = build(name.removesuffix("_prepared"), seed).eval(), torch.randn(1, TOKENS, DIM)
    run: Callable[[Tensor], Tensor] = model
    if name.endswith("_prepared"):
        assert isinstance(model, MambaStack)
        run = StackProgram(model, 1, TOKENS, torch.bfloat16)

    def forward() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            run(x)

    return forward


def training_case(name: str, batch: int, seed: int, autocast: bool = True) -> Callable[[], object]:
    model, x = build(name, seed), torch.randn(batch, TOKENS, DIM)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = model(x)
        y.float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return step


INFERENCE = (
    "statevla_prepared", "statevla", "chunked", "mambapy", "huggingface", "transformer", "transformer_compiled",
    "transformer_mlp4x_compiled", "transformer_no_mlp_compiled",
)  # fmt: skip
TRAINING = (
    "statevla", "chunked", "mambapy", "transformer", "transformer_compiled", "transformer_mlp4x_compiled",
    "transformer_no_mlp_compiled",
)  # fmt: skip
OURS = ("statevla", "statevla_prepared")
SLOW = ("chunked", "mambapy", "huggingface")


def measure(cases: dict[str, Callable[[], object]], rounds: int, budget_s: float) -> dict[str, list[float]]:
    """The fast cases alternate; the slow ones run against ours in a second, shorter series."""
    fast = {name: case for name, case in cases.items() if name not in SLOW}
    samples = alternate(fast, rounds, warmup=3, budget_s=budget_s)
    slow = {name: case for name, case in cases.items() if name in SLOW}
    return {**samples, **alternate(slow, max(3, rounds // 8), warmup=1, budget_s=budget_s)}


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    names = {n.removesuffix("_compiled").removesuffix("_prepared") for n in (*INFERENCE, *TRAINING)}
    tree: dict[str, Any] = {
        **environment(args.seed),
        "parameters": {n: sum(p.numel() for p in build(n, args.seed).parameters()) for n in sorted(names)},
        "left_out": {"huggingface training": "its loop's backward is quadratic in length: minutes per step"},
    }
    summary: dict[str, float] = {}
    peak = tree["peak_gflops"] = peak_gflops()
    if "inference" in args.parts:
        samples = measure({n: inference_case(n, args.seed) for n in INFERENCE}, args.rounds, args.budget_s)
        tree["inference_seconds"] = samples
        flops = operations(inference_case("statevla", args.seed))
        shares = {n: flops / statistics.median(s) / 1e9 / peak if n in OURS else "" for n, s in samples.items()}
        rows = [(n, 1e3 * min(s), median_ms(s), shares[n]) for n, s in samples.items()]
        print_table("one forward, batch 1", ("encoder", "best ms", "median ms", "x of bf16 peak"), rows)
        summary["encoder_forward_ms"] = median_ms(samples["statevla_prepared"])
        for name in ("transformer_compiled", "mambapy", "huggingface"):
            summary[f"encoder_forward_speedup_vs_{name}"] = min(samples[name]) / min(samples["statevla_prepared"])
    if "training" in args.parts:
        cases = {n: training_case(n, args.batch_size, args.seed) for n in TRAINING}
        samples = measure(cases, args.rounds // 4, args.budget_s)
        tree["training_seconds"], tree["batch_size"] = samples, args.batch_size
        rate = {n: args.batch_size / statistics.median(s) for n, s in samples.items()}
        flops = operations(training_case("statevla", args.batch_size, args.seed, autocast=False)) / args.batch_size
        training_rows = [(n, r, flops * r / 1e9 / peak if n in OURS else "") for n, r in rate.items()]
        print_table(f"training, batch {args.batch_size}", ("encoder", "samples/s", "x of bf16 peak"), training_rows)
        summary["encoder_train_samples_per_s"] = rate["statevla"]
        for name in TRAINING[1:]:
            summary[f"encoder_train_speedup_vs_{name}"] = min(samples[name]) / min(samples["statevla"])
    write_results("encoder", tree)
    update_summary(summary)


if __name__ == "__main__":
    main(tyro.cli(Args))
