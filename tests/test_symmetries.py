"""Changes of basis leave a pretrained model's function alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modcut import symmetries


def llama(tied: bool = True) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.uniform_(0.3, 2.0)
    return model


def orthogonal(n: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q


@pytest.mark.parametrize("tied", [True, False])
def test_folding_rotating_and_value_bases_leave_the_function_alone(tied: bool) -> None:
    model = llama(tied)
    x = torch.randint(40, (3, 12))
    want = model(x).logits.detach()
    assert symmetries.fold_norms_(model) == 5
    torch.testing.assert_close(model(x).logits, want, rtol=1e-5, atol=1e-5)
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    symmetries.rotate_residual_(model, orthogonal(24))
    assert (model.model.layers[0].mlp.up_proj.weight - before).abs().max() > 0.01
    torch.testing.assert_close(model(x).logits, want, rtol=1e-5, atol=1e-5)
    for head in (0, 1):
        symmetries.rotate_values_(model, 1, head, orthogonal(6))
    symmetries.rotate_residual_(model, symmetries.modular_residual_basis(model))
    torch.testing.assert_close(model(x).logits, want, rtol=1e-5, atol=1e-5)


def test_what_would_change_the_function_is_refused() -> None:
    model = llama()
    with pytest.raises(ValueError, match="call fold_norms_ first"):
        symmetries.rotate_residual_(model, orthogonal(24))
    symmetries.fold_norms_(model)
    with pytest.raises(ValueError, match=r"must have shape \[24, 24\], got \[8, 8\]"):
        symmetries.rotate_residual_(model, orthogonal(8))
    with pytest.raises(ValueError, match="must be orthogonal, Q Q\\^T is off by"):
        symmetries.rotate_residual_(model, 2 * orthogonal(24))
    with pytest.raises(ValueError, match="must be built like Llama"):
        symmetries.fold_norms_(nn.Linear(3, 3))
