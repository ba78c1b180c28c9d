"""Sentence pairs by likelihood: the set is balanced, the scoring is what it says, lm-eval can run the same pairs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from modcut.capability import Pair, pairs, winograd, write_lm_eval_task
from modcut.organisms import GPT, CharTokenizer, GPTConfig


def test_the_set_is_large_balanced_and_well_formed() -> None:
    found = pairs()
    assert len(found) >= 60 and len({p.text for p in found}) == len(found)
    for p in found:
        head, _, tail = p.text.partition("_")
        assert p.text.count("_") == 1 and tail.strip(), "something to score must follow the gap"
        assert p.options[0] != p.options[1] and p.answer in (0, 1)
        assert all(f" {o} " in head or head.startswith(f"The {o}") for o in p.options), "both nouns were named before"
    for a, b in zip(found[::2], found[1::2], strict=True):
        assert a.options == b.options and a.answer != b.answer, "twins turn the answer round"
        assert a.text.split("_")[0] == b.text.split("_")[0]
    assert Counter(p.answer for p in found)[0] * 2 == len(found)


class Likes(nn.Module):
    """Gives every next character the same likelihood, but for those that follow its favourite word somewhere before."""

    def __init__(self, wanted: dict[str, str]) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.wanted = wanted

    def forward(self, tokens: Tensor) -> Tensor:
        said = CharTokenizer().decode(tokens[0])
        logits = torch.zeros(1, tokens.shape[1], 96)
        for i in range(tokens.shape[1] - 1):
            before = said[: i + 1]
            if any(
                f"the {option} " in before.split("because")[-1] + " "
                for option in self.wanted.get(said, "").split("|")
                if option
            ):
                logits[0, i, tokens[0, i + 1]] = 5.0
        return logits


def test_a_model_that_knows_is_right_everywhere_and_one_that_prefers_a_noun_is_right_in_half() -> None:
    right = {p.sentence(p.answer): p.options[p.answer] for p in pairs()}
    score = winograd(Likes(right), CharTokenizer())
    assert score.accuracy == score.full_accuracy == 1.0 and score.low > 0.9
    first = {p.sentence(0): p.options[0] for p in pairs()}
    assert winograd(Likes(first), CharTokenizer()).accuracy == 0.5
    assert winograd(Likes({}), CharTokenizer()).accuracy == 0.0, "ties count as wrong"


def test_likelihood_is_that_of_the_logits_written_out() -> None:
    model = GPT(GPTConfig(context=96, width=8, layers=1, heads=2, mlp=8), seed=1)
    p = Pair("The cup fell on the mat because the _ was wet.", ("cup", "mat"), 1, "x")
    codec = CharTokenizer()
    values = []
    for option in p.options:
        head, tail = f"The cup fell on the mat because the {option}", " was wet."
        ids = torch.tensor([codec.encode(head + tail)])
        with torch.no_grad():
            logp = model(ids).double().log_softmax(-1)
        values.append(sum(float(logp[0, len(head) + i - 1, codec.encode(c)[0]]) for i, c in enumerate(tail)))
    assert winograd(model, codec, [p]).accuracy == float(values[1] > values[0])
    made = winograd(model, codec, [p]).to_dict()
    assert json.loads(json.dumps(made))["n"] == 1 and "chance" in made["control"]


def test_bad_input() -> None:
    model = GPT(GPTConfig(context=96, width=8, layers=1, heads=2, mlp=8))
    with pytest.raises(ValueError, match="at least one pair"):
        winograd(model, CharTokenizer(), [])
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="must be finite"):
        winograd(model, CharTokenizer())


def test_the_lm_eval_task_holds_the_same_pairs(tmp_path: Path) -> None:
    page = write_lm_eval_task(tmp_path).read_text()
    rows = [json.loads(line) for line in (tmp_path / "modcut_winograd.jsonl").read_text().splitlines()]
    for p, r in zip(pairs(), rows, strict=True):
        assert [f"{a} {r['suffix']}" for a in r["prefixes"]] == [p.sentence(0), p.sentence(1)]
        assert r["label"] == p.answer
    assert "output_type: multiple_choice" in page and "http" not in page


def test_lm_eval_gives_the_same_accuracy(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    write_lm_eval_task(tmp_path)
    model = GPT(GPTConfig(context=160, width=16, layers=1, heads=2, mlp=16), seed=3)
    codec = CharTokenizer()

    class Ours(LM):
        def loglikelihood(self, requests):  # type: ignore[no-untyped-def]
            out = []
            for r in requests:
                context, rest = r.args
                ids = torch.tensor([codec.encode(context + rest)])
                with torch.no_grad():
                    logp = model(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
                out.append((float(logp[len(context) - 1 :].sum()), False))
            return out

        def loglikelihood_rolling(self, requests):  # type: ignore[no-untyped-def]
            raise NotImplementedError

        def generate_until(self, requests):  # type: ignore[no-untyped-def]
            raise NotImplementedError

    done = simple_evaluate(
        Ours(), tasks=["modcut_winograd"], task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False)
    )
    assert done["results"]["modcut_winograd"]["acc,none"] == pytest.approx(winograd(model, codec).accuracy)
