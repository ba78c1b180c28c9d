"""Small models of many architectures for the tests of the tracer, each with inputs and the spaces it must have."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class ConvBlock(nn.Module):
    def __init__(self, channels: int, out: int | None = None, stride: int = 1):
        super().__init__()
        out = out or channels
        self.c1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.b1 = nn.BatchNorm2d(out)
        self.c2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.b2 = nn.BatchNorm2d(out)
        same = out == channels and stride == 1
        self.short = nn.Identity() if same else nn.Sequential(nn.Conv2d(channels, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x):
        return F.relu(self.b2(self.c2(F.relu(self.b1(self.c1(x))))) + self.short(x))


class ResidualCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.stage1 = ConvBlock(8)
        self.stage2 = ConvBlock(8, 12, 2)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(12 * 2 * 2, 10)
        self.fc2 = nn.Linear(10, 4)

    def forward(self, x):
        x = self.pool(self.stage2(self.stage1(F.relu(self.bn(self.stem(x))))))
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


def mobile() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(),  # depthwise
        nn.Conv2d(8, 12, 1), nn.GroupNorm(3, 12), nn.Hardswish(),
        nn.Conv2d(12, 12, 3, 1, 1, groups=3),  # grouped
        nn.Conv2d(12, 24, 3, padding=1, groups=12),  # depthwise with two outputs per channel
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)
        self.gate, self.out = nn.Linear(8, 1), nn.Linear(8, 3)

    def forward(self, x):
        x = self.conv(x).relu()
        w = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
        x = (x * w[:, :, None, None]).amax((2, 3))
        return self.out(x * self.gate(x).sigmoid())


class CausalAttention(nn.Module):
    """nanoGPT's: one fused projection, split, viewed as heads, transposed."""

    def __init__(self, d: int, heads: int, flash: bool):
        super().__init__()
        self.heads, self.flash = heads, flash
        self.c_attn, self.c_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.c_attn(x).split(c, 2)
        q, k, v = (z.view(b, t, self.heads, c // self.heads).transpose(1, 2) for z in (q, k, v))
        if self.flash:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            a = (q @ k.transpose(-2, -1)) / math.sqrt(q.size(-1))
            a = a.masked_fill(torch.tril(torch.ones(t, t)) == 0, float("-inf"))
            y = F.softmax(a, -1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


class NanoBlock(nn.Module):
    def __init__(self, d: int, heads: int, flash: bool):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = CausalAttention(d, heads, flash)
        self.mlp = nn.Sequential(nn.Linear(d, 3 * d), nn.GELU(), nn.Linear(3 * d, d), nn.Dropout(0.1))

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class NanoGPT(nn.Module):
    def __init__(self, flash: bool = True, d: int = 12, heads: int = 3, vocabulary: int = 20):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, d), nn.Embedding(16, d)
        self.h = nn.ModuleList([NanoBlock(d, heads, flash) for _ in range(2)])
        self.ln_f = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocabulary, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x))


class EinsumGPT(nn.Module):
    """Bare parameters with a head axis of their own, indexed tables, einsum."""

    def __init__(self, d: int = 12, heads: int = 3, vocabulary: int = 20):
        super().__init__()
        k = d // heads

        def p(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape) / math.sqrt(d))

        self.embed, self.position, self.unembed = p(vocabulary, d), p(16, d), p(d, vocabulary)
        self.wq, self.wk, self.wv, self.wo = p(heads, d, k), p(heads, d, k), p(heads, d, k), p(heads, k, d)
        self.bq, self.bv = p(heads, k), p(heads, k)
        self.w1, self.w2 = p(d, 15), p(15, d)

    def forward(self, ids):
        x = self.embed[ids] + self.position[: ids.shape[1]]
        q = torch.einsum("btc,hcd->bthd", x, self.wq) + self.bq
        k = torch.einsum("btc,hcd->bthd", x, self.wk)
        v = torch.einsum("btc,hcd->bthd", x, self.wv) + self.bv
        a = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        x = x + torch.einsum("bqhd,hdc->bqc", torch.einsum("bhqk,bkhd->bqhd", a, v), self.wo)
        x = x + torch.einsum("btf,fc->btc", F.relu(torch.einsum("btc,cf->btf", x, self.w1)), self.w2)
        return x @ self.unembed


class HeadLoop(nn.Module):
    """Attention with a list of heads, each with its own projections, joined at the end."""

    def __init__(self, d: int = 8, heads: int = 2):
        super().__init__()
        self.embed = nn.Embedding(11, d)
        self.q = nn.ModuleList([nn.Linear(d, 4) for _ in range(heads)])
        self.k = nn.ModuleList([nn.Linear(d, 4) for _ in range(heads)])
        self.v = nn.ModuleList([nn.Linear(d, 4) for _ in range(heads)])
        self.out, self.head = nn.Linear(4 * heads, d), nn.Linear(d, 11)

    def forward(self, ids):
        x = self.embed(ids)
        heads = [torch.softmax(q(x) @ k(x).mT, -1) @ v(x) for q, k, v in zip(self.q, self.k, self.v, strict=True)]
        return self.head(x + self.out(torch.cat(heads, -1)))


class InPlaceHeads(nn.Module):
    """Writes into a buffer through views, and reads it back."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 4), nn.Linear(5, 6), nn.Linear(10, 3)

    def forward(self, x):
        y = torch.zeros(x.shape[0], 10, dtype=x.dtype)
        y[:, :4] = self.a(x)
        y[:, 4:] = self.b(x)
        y.relu_()
        return self.out(y)


class Mixer(nn.Module):
    def __init__(self, channels: int = 6, tokens: int = 16):
        super().__init__()
        self.patch = nn.Conv2d(3, channels, 2, 2)
        self.n1, self.n2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.t1, self.t2 = nn.Linear(tokens, 9), nn.Linear(9, tokens)
        self.c1, self.c2 = nn.Linear(channels, 10), nn.Linear(10, channels)
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.t2(F.gelu(self.t1(self.n1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.c2(F.gelu(self.c1(self.n2(x))))
        return self.head(x.mean(1))


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        return self.out(x + self.attention(x, x, x)[0])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.rnn = kind(4, 6, 2, batch_first=True)
        self.out = nn.Linear(6, 10)

    def forward(self, x):
        return self.out(self.rnn(self.embed(x))[0])


class Halves(nn.Module):
    """Two readers of one layer, each of its own half."""

    def __init__(self):
        super().__init__()
        self.inner, self.a, self.b, self.out = nn.Linear(4, 10), nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.inner(x).relu()
        return self.out((self.a(x[..., :5]) + self.b(x[..., 5:])).tanh())


class GatedMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(6)
        self.fused, self.down, self.out = nn.Linear(6, 16), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        gate, up = self.fused(self.norm(x)).chunk(2, -1)
        return self.out(self.norm(self.down(F.silu(gate) * up)))


class Experts(nn.Module):
    """A soft mixture of experts held in stacked weights."""

    def __init__(self, experts: int = 3):
        super().__init__()
        self.router = nn.Linear(6, experts)
        self.up = nn.Parameter(torch.randn(experts, 6, 8) / 3)
        self.down = nn.Parameter(torch.randn(experts, 8, 5) / 3)
        self.out = nn.Linear(5, 2)

    def forward(self, x):
        g = self.router(x).softmax(-1)
        y = torch.bmm(torch.bmm(x.expand(3, -1, -1), self.up).relu(), self.down)  # [experts, batch, 5]
        return self.out((y * g.T[:, :, None]).sum(0))


class WithUnknown(nn.Module):
    """One operation without a rule inside an ordinary net."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = torch.linalg.qr(self.a(x))[0] if x.shape[0] >= 6 else torch.renorm(self.a(x), 2, 0, 1.0)
        return self.c(self.b(x).relu())


@dataclass(frozen=True)
class Case:
    """One architecture: how to build it, its inputs, and its spaces as {(kind, size): count}."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    spaces: dict[tuple[str, int], int]
    fixed: int
    """Spaces that cannot be permuted."""
    tolerance: float = 1e-9


def randomise(model: nn.Module) -> nn.Module:
    """Give norms and biases values that a mistake would show on."""
    g = torch.Generator().manual_seed(1)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=g))
            m.running_var.copy_(torch.rand(m.running_var.shape, generator=g) + 0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g).to(p.dtype) * 0.1)
    return model


def tokens(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape or (2, 8), generator=torch.Generator().manual_seed(2))


def floats(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def transformer_heads(layers: int, heads: int, size: int, mlp: int, rest: dict[tuple[str, int], int]) -> dict[Any, int]:
    """Query-key and value space per head, one MLP space per layer."""
    return {("head", size): 2 * layers * heads, ("hidden", mlp): layers, **rest}


_DECODER = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 50,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_ROTARY = {("input", 50): 1, ("output", 50): 1, ("residual", 16): 1, ("hidden", 24): 2}


def hf(model: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        transformers.logging.set_verbosity_error()
        return getattr(transformers, model)(getattr(transformers, config)(**settings))

    return build


def ids50() -> dict[str, Any]:
    return {"input_ids": tokens(50)}


HAND_WRITTEN: dict[str, Case] = {
    "mlp": Case(
        lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)),
        lambda: floats(4, 5), {("input", 5): 1, ("hidden", 7): 1, ("hidden", 6): 1, ("output", 3): 1}, 2),
    "mlp with norms": Case(
        lambda: nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Dropout(), nn.ReLU(), nn.Linear(7, 6),
                              nn.BatchNorm1d(6), nn.PReLU(6), nn.Linear(6, 1), nn.Linear(1, 2)),
        lambda: floats(4, 5),
        {("input", 5): 1, ("hidden", 7): 1, ("hidden", 6): 1, ("hidden", 1): 1, ("output", 2): 1}, 2),
    "parametrized mlp": Case(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.Tanh(),
                              parametrizations.spectral_norm(nn.Linear(6, 5)), nn.ELU(), nn.Linear(5, 2)),
        lambda: floats(4, 4), {("input", 4): 1, ("hidden", 6): 1, ("hidden", 5): 1, ("output", 2): 1}, 2),
    "gated mlp": Case(GatedMLP, lambda: floats(3, 6), {("input", 6): 1, ("hidden", 8): 1, ("output", 2): 1}, 2),
    "two halves": Case(
        Halves, lambda: floats(3, 4), {("input", 4): 1, ("hidden", 5): 2, ("residual", 6): 1, ("output", 2): 1}, 2),
    "in-place writes": Case(
        InPlaceHeads, lambda: floats(3, 5), {("input", 5): 1, ("hidden", 4): 1, ("hidden", 6): 1, ("output", 3): 1}, 2),
    "stacked experts": Case(
        Experts, lambda: floats(4, 6), {("input", 6): 1, ("hidden", 8): 3, ("hidden", 5): 1, ("hidden", 3): 1,
                                        ("output", 2): 1}, 3),
    "residual cnn": Case(
        ResidualCNN, lambda: floats(2, 3, 8, 8),
        {("input", 3): 1, ("residual", 8): 1, ("residual", 12): 1, ("hidden", 8): 1, ("hidden", 12): 1,
         ("hidden", 10): 1, ("output", 4): 1}, 2),
    "grouped cnn": Case(
        mobile, lambda: floats(2, 3, 8, 8), {("input", 3): 1, ("hidden", 8): 1, ("hidden", 4): 6, ("output", 5): 1}, 2),
    "squeeze-excite": Case(
        SqueezeExcite, lambda: floats(2, 3, 6, 6),
        {("input", 3): 1, ("hidden", 8): 1, ("hidden", 4): 1, ("hidden", 1): 1, ("output", 3): 1}, 2),
    "nanoGPT": Case(NanoGPT, lambda: tokens(20),
                    transformer_heads(2, 3, 4, 36, {("input", 20): 1, ("residual", 12): 1}), 1),
    "nanoGPT, attention written out": Case(
        lambda: NanoGPT(flash=False), lambda: tokens(20),
        transformer_heads(2, 3, 4, 36, {("input", 20): 1, ("residual", 12): 1}), 1),
    "einsum GPT": Case(
        EinsumGPT, lambda: tokens(20),
        transformer_heads(1, 3, 4, 15, {("input", 20): 1, ("residual", 12): 1, ("output", 20): 1}), 2),
    "a module per head": Case(
        HeadLoop, lambda: tokens(11), {("input", 11): 1, ("residual", 8): 1, ("head", 4): 4, ("output", 11): 1}, 2),
    "mixer": Case(
        Mixer, lambda: floats(2, 3, 8, 8),
        {("input", 3): 1, ("input", 16): 1, ("residual", 6): 1, ("hidden", 9): 1, ("hidden", 16): 1, ("hidden", 10): 1,
         ("output", 3): 1}, 4),
    "MultiheadAttention": Case(
        SelfAttention, lambda: floats(2, 4, 5),
        {("input", 5): 1, ("residual", 8): 1, ("head", 4): 4, ("output", 3): 1}, 2),
    "TransformerEncoder": Case(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2, enable_nested_tensor=False), nn.Linear(8, 3)),
        lambda: floats(2, 4, 5), transformer_heads(2, 2, 4, 12,
            {("input", 5): 1, ("residual", 8): 1, ("output", 3): 1}), 2),
    "LSTM": Case(lambda: Recurrent(nn.LSTM), lambda: tokens(10),
                 {("input", 10): 1, ("hidden", 4): 1, ("residual", 6): 2, ("output", 10): 1}, 2),
    "GRU": Case(lambda: Recurrent(nn.GRU), lambda: tokens(10),
                {("input", 10): 1, ("hidden", 4): 1, ("residual", 6): 2, ("output", 10): 1}, 2),
}  # fmt: skip

TRANSFORMERS: dict[str, Case] = {
    "GPT-2": Case(
        hf("GPT2LMHeadModel", "GPT2Config", n_embd=16, n_layer=2, n_head=4, n_inner=24, vocab_size=50, n_positions=16,
           bos_token_id=0, eos_token_id=0),
        ids50, transformer_heads(2, 4, 4, 24, {("input", 50): 1, ("residual", 16): 1}), 1),
    "Llama": Case(
        hf("LlamaForCausalLM", "LlamaConfig", **_DECODER, num_key_value_heads=2), ids50,
        {**_ROTARY, ("head", 2): 4, ("head", 4): 4}, 6, 1e-6),
    "Llama, tied, biased": Case(
        hf("LlamaForCausalLM", "LlamaConfig", **_DECODER, num_key_value_heads=4, tie_word_embeddings=True,
           attention_bias=True, mlp_bias=True),
        ids50, {("input", 50): 1, ("residual", 16): 1, ("hidden", 24): 2, ("head", 2): 8, ("head", 4): 8}, 9, 1e-6),
    "Llama, one key-value head": Case(
        hf("LlamaForCausalLM", "LlamaConfig", **_DECODER, num_key_value_heads=1), ids50,
        {**_ROTARY, ("head", 2): 2, ("head", 4): 2}, 4, 1e-6),
    "Mistral": Case(
        hf("MistralForCausalLM", "MistralConfig", **_DECODER, num_key_value_heads=2, sliding_window=4), ids50,
        {**_ROTARY, ("head", 2): 4, ("head", 4): 4}, 6, 1e-6),
    "Qwen2": Case(
        hf("Qwen2ForCausalLM", "Qwen2Config", **_DECODER, num_key_value_heads=2), ids50,
        {**_ROTARY, ("head", 2): 4, ("head", 4): 4}, 6, 1e-6),
    "Qwen3": Case(
        hf("Qwen3ForCausalLM", "Qwen3Config", **_DECODER, num_key_value_heads=2, head_dim=4), ids50,
        {**_ROTARY, ("head", 2): 4, ("head", 4): 4}, 6, 1e-6),
    "Gemma": Case(
        hf("GemmaForCausalLM", "GemmaConfig", **_DECODER, num_key_value_heads=2, head_dim=4), ids50,
        {("input", 50): 1, ("residual", 16): 1, ("hidden", 24): 2, ("head", 2): 4, ("head", 4): 4}, 5, 1e-6),
    "Phi-3": Case(
        hf("Phi3ForCausalLM", "Phi3Config", **_DECODER, num_key_value_heads=2), ids50,
        {**_ROTARY, ("head", 2): 4, ("head", 4): 4}, 6, 1e-6),
    "GPT-NeoX": Case(
        hf("GPTNeoXForCausalLM", "GPTNeoXConfig", **{**_DECODER, "hidden_size": 32}, rotary_pct=0.5), ids50,
        {**_ROTARY, ("residual", 16): 0, ("residual", 32): 1, ("head", 2): 8, ("head", 4): 8, ("head", 8): 8}, 10,
        1e-6),
    "BLOOM": Case(
        hf("BloomForCausalLM", "BloomConfig", hidden_size=16, n_layer=1, n_head=4, vocab_size=50), ids50,
        transformer_heads(1, 4, 4, 64, {("input", 50): 1, ("residual", 16): 1}), 1),
    "OPT": Case(
        hf("OPTForCausalLM", "OPTConfig", hidden_size=16, num_hidden_layers=1, num_attention_heads=4, ffn_dim=24,
           vocab_size=50, pad_token_id=0, word_embed_proj_dim=16, max_position_embeddings=16),
        ids50, transformer_heads(1, 4, 4, 24, {("input", 50): 1, ("residual", 16): 1}), 1),
    "BERT classifier": Case(
        hf("BertForSequenceClassification", "BertConfig", **_DECODER, num_labels=3), ids50,
        transformer_heads(2, 4, 4, 24, {("input", 50): 1, ("residual", 16): 1, ("hidden", 16): 1,
        ("output", 3): 1}), 2),
    "bare BERT": Case(
        hf("BertModel", "BertConfig", **_DECODER), ids50,
        transformer_heads(2, 4, 4, 24, {("input", 50): 1, ("residual", 16): 1, ("output", 16): 1}), 3),
    "ViT": Case(
        hf("ViTForImageClassification", "ViTConfig", hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
           intermediate_size=24, image_size=8, patch_size=4, num_labels=3),
        lambda: {"pixel_values": floats(2, 3, 8, 8)},
        transformer_heads(2, 4, 4, 24, {("input", 3): 1, ("residual", 16): 1, ("output", 3): 1}), 2),
    "Swin": Case(
        hf("SwinForImageClassification", "SwinConfig", image_size=16, patch_size=2, embed_dim=8, depths=[1, 1],
           num_heads=[2, 4], window_size=4, num_labels=3),
        lambda: {"pixel_values": floats(2, 3, 16, 16)},
        {("input", 3): 1, ("residual", 8): 1, ("residual", 16): 1, ("head", 4): 12, ("hidden", 32): 1,
         ("hidden", 64): 1,
         ("output", 3): 1}, 2),
    "ResNet": Case(
        hf("ResNetForImageClassification", "ResNetConfig", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
           layer_type="bottleneck", num_labels=3),
        lambda: {"pixel_values": floats(2, 3, 16, 16)},
        {("input", 3): 1, ("residual", 8): 1, ("residual", 16): 1, ("hidden", 2): 2, ("hidden", 4): 2,
         ("output", 3): 1}, 2),
    "T5": Case(
        hf("T5ForConditionalGeneration", "T5Config", d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4,
           vocab_size=50, pad_token_id=0, decoder_start_token_id=0),
        lambda: {"input_ids": tokens(50), "decoder_input_ids": tokens(50)},
        {("input", 50): 1, ("residual", 16): 1, ("head", 4): 24, ("hidden", 24): 2}, 2, 1e-6),
    "ALBERT": Case(
        hf("AlbertModel", "AlbertConfig", hidden_size=16, embedding_size=8, num_hidden_layers=2, num_attention_heads=4,
           intermediate_size=24, vocab_size=50), ids50,
        {("input", 50): 1, ("hidden", 8): 1, ("residual", 16): 1, ("head", 4): 8, ("hidden", 24): 1,
         ("output", 16): 1}, 3),
    "Mamba": Case(
        hf("MambaForCausalLM", "MambaConfig", hidden_size=16, num_hidden_layers=1, vocab_size=50, state_size=4), ids50,
        {("input", 50): 1, ("residual", 16): 1, ("residual", 32): 1, ("hidden", 1): 1, ("residual", 4): 1}, 1, 1e-6),
}  # fmt: skip

CASES = {**HAND_WRITTEN, **TRANSFORMERS}


def build(name: str) -> tuple[nn.Module, Any]:
    """Return the model of a case in float64, and its inputs."""
    case = CASES[name]
    torch.manual_seed(0)
    return randomise(case.build().double()).eval(), case.inputs()


@functools.cache
def traced(name: str) -> tuple[nn.Module, Any, Any]:
    """Return model, inputs and graph of a case, shared by tests that leave the model as they found it."""
    import modcut

    model, inputs = build(name)
    return model, inputs, modcut.weight_graph(model, inputs)


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Return the floating tensors of the model's output, without a cache."""
    from modcut.graph.examples import as_call, extra_arguments
    from modcut.graph.tracer import tensors_in

    args, kwargs = as_call(inputs)
    with torch.no_grad():
        out = model(*args, **{**extra_arguments(model), **kwargs})
    return [t.clone() for t in tensors_in(out) if t.is_floating_point()]


def difference(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest change relative to the largest value."""
    return max(float((x - y).abs().max() / y.abs().max().clamp_min(1e-30)) for x, y in zip(a, b, strict=True))
