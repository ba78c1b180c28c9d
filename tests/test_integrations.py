"""The loss in the Hugging Face Trainer and in Lightning: steps, accumulation, checkpoints, bad settings."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modcut
from modcut.integrations.steps import Steps

Windows = list[dict[str, Tensor]]


class Tiny(nn.Module):
    """As the Trainer wants it: a dict with the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        y = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
        return {"logits": y} if labels is None else {"loss": (y - labels).square().mean(), "logits": y}


def labels_of(model: nn.Module) -> tuple[Any, Tensor]:
    graph = modcut.weight_graph(model, torch.zeros(1, 6))
    return graph, torch.arange(graph.n) % 2


def rows(n: int = 64) -> Windows:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    return [{"x": v, "labels": v.flip(0)} for v in x]


def trainer(out: Path, callbacks: list[Any], **settings: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    args = transformers.TrainingArguments(
        output_dir=str(out), max_steps=settings.pop("max_steps", 12), per_device_train_batch_size=4, learning_rate=1e-2,
        save_steps=6, report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=4, seed=0, **settings,
    )  # fmt: skip
    return transformers.Trainer(Tiny(), args, train_dataset=rows(), callbacks=callbacks)


def callback(model: nn.Module | None = None, **settings: Any) -> Any:
    pytest.importorskip("transformers")
    from modcut.integrations.hf import ModularityCallback

    return ModularityCallback(partition=labels_of(Tiny())[1], lam=3.0, example_inputs=torch.zeros(1, 6), **settings)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="(transformers|torch|accelerate|lightning|pytorch_lightning)")
        warnings.filterwarnings("ignore", message=".*(pin_memory|GradScaler|num_workers|log_every_n_steps|litlogger).*")
        yield


@pytest.mark.parametrize("form", ["gradient", "proximal"])
def test_the_trainer_lowers_the_leak_and_logs_it(tmp_path: Path, form: str) -> None:
    cb = callback(form=form)
    t = trainer(tmp_path, [cb], max_steps=40)
    t.train()
    logged = [r["leak"] for r in t.state.log_history if "leak" in r]
    assert len(logged) >= 5 and logged[-1] < 0.7 * logged[0]
    assert cb.crit.steps == 40
    assert not any(m._forward_pre_hooks for m in t.model.modules()), "no hooks stay behind"


def test_a_resumed_trainer_is_equal_to_one_that_was_not_stopped(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "a", [callback()])
    whole.train()
    assert (tmp_path / "a" / "checkpoint-6" / "modcut.safetensors").is_file()
    again = trainer(tmp_path / "a", [callback()])
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_accumulation_clipping_and_bf16_in_the_trainer(tmp_path: Path) -> None:
    cb = callback()
    trainer(tmp_path, [cb], gradient_accumulation_steps=3, max_grad_norm=0.5, bf16=True).train()
    assert cb.crit.steps == 12, "one step of the schedule per optimizer step, not per batch"


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="form must be one of 'gradient', 'proximal', got 'both'"):
        callback(form="both")
    with pytest.raises(RuntimeError, match="before training has begun"):
        _ = callback().crit
    from types import SimpleNamespace

    with pytest.raises(ValueError, match="fp16 must be off"):
        callback().on_train_begin(SimpleNamespace(fp16=True), None, None, model=Tiny())


def test_a_plain_loop_with_steps_is_the_loop_written_out() -> None:
    def run(by_hand: bool) -> nn.Module:
        model = Tiny()
        graph, labels = labels_of(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        kwargs: dict[str, Any] = {"partition": labels, "graph": graph, "lam": 2.0}
        crit = modcut.ModularityLoss(model, **kwargs) if by_hand else None
        steps = None if by_hand else Steps(model, **kwargs)
        for r in rows(8):
            optimizer.zero_grad()
            model(r["x"][None], r["labels"][None])["loss"].backward()
            if crit is not None:
                crit().backward()
                optimizer.step()
                crit.step()
            elif steps is not None:
                steps.before()
                optimizer.step()
                steps.after(optimizer)
        return model

    for p, q in zip(run(True).parameters(), run(False).parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_lightning(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    import lightning.pytorch as pl

    from modcut.integrations.lightning import ModularityCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Tiny()

        def training_step(self, batch: Any, _: int) -> Tensor:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def run(steps: int, path: str | None = None) -> tuple[Any, Any]:
        cb = ModularityCallback(
            module="net", partition=labels_of(Tiny())[1], lam=3.0, example_inputs=torch.zeros(1, 6), total_steps=16
        )
        t = pl.Trainer(
            max_steps=steps, callbacks=[cb], logger=False, enable_progress_bar=False, enable_model_summary=False,
            accelerator="cpu", default_root_dir=str(tmp_path), accumulate_grad_batches=2, gradient_clip_val=1.0,
            enable_checkpointing=False,
        )  # fmt: skip
        m = Module()
        t.fit(m, torch.utils.data.DataLoader(rows(64), batch_size=4), ckpt_path=path)
        t.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return m, cb

    _, cb = run(16)
    assert cb.crit.steps == 16 and cb.crit.leak().item() < 0.45
    _, half = run(8)
    state = {k: v.clone() for k, v in half.crit.state_dict().items()}
    saved = torch.load(tmp_path / "8.ckpt", weights_only=False)["callbacks"]
    kept = next(v for k, v in saved.items() if "ModularityCallback" in k)
    assert kept.keys() == state.keys() and all(torch.equal(kept[k], state[k]) for k in state)
    # Which batches follow is Lightning's (it differs from an uninterrupted run without the callback too).
    _, again = run(16, str(tmp_path / "8.ckpt"))
    assert again.crit.steps == 16
