"""The ``modcut`` command. Each command is a few lines over a public function; heavy imports wait until it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

_INTERRUPTED = 130  # the shell's status for Ctrl-C

# What a stopped command leaves, by its name.
_GOES_ON = {
    "demo": " (the demo goes on from its last checkpoint when it is started again)",
    "train": " (the state is saved: the same command goes on from there)",
    "describe": " (what was done is kept: the same command with --resume goes on from there)",
}

app = typer.Typer(
    name="modcut",
    help="Cut a neural network's weights into modules, read them and audit them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Versions, what was compiled, devices, optional packages, and a one-second self-test."""
    from modcut import info as page

    facts = page.info()
    typer.echo(json.dumps(facts, indent=2, default=str) if as_json else "\n".join(page.lines(facts)))


@app.command()
def selftest(
    seed: Annotated[int, typer.Option(help="Seed of the random graphs and networks.")] = 0,
    trees: Annotated[bool, typer.Option("--trees", help="Only the cut trees (a second).")] = False,
    networks: Annotated[int, typer.Option(help="Classifiers to train, half of them with a backdoor.")] = 16,
) -> None:
    """Compare cut trees with brute force; train classifiers with and without backdoors and look for them.

    Exit status 1 where a tree is wrong or the audit finds less than it should.
    """
    from modcut.info import run_selftest

    failed = 0
    for n in range(2, 11):
        result = run_selftest(n, seed)
        failed += not result["ok"]
        typer.echo(f"{'ok  ' if result['ok'] else 'FAIL'} {result['message']}, {result['seconds']:.2f} s")
    if not trees:
        from modcut.auditing import selftest as audit

        failed += not audit.run(networks, seed, say=typer.echo)["ok"]
    if failed:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, report.html and results.json.")] = Path(
        "modcut-demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the weights, the batches and the controls.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny run that shows the path and no result.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore checkpoints of an earlier run.")] = False,
) -> None:
    """Train a small GPT on real text without and with the loss, cut, read and audit the modules, write the report."""
    from modcut.demo.run import run

    run(out, seed=seed, quick=quick, fresh=fresh)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="TOML or JSON; see docs/training_runs.md.")],
    source: Annotated[
        str | None, typer.Option("--from", help="Fine-tune this model: package.module:build, a folder, or smollm2.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, results.json, report.html.")] = Path(
        "modcut-train"
    ),
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the checkpoints of an earlier run.")] = False,
) -> None:
    """Train with the modularity loss, beside the same run without it; a stopped run goes on to the bit."""
    from modcut.training import read_config
    from modcut.training import train as run

    settings = read_config(config, source=source)
    run(settings, out, fresh=fresh)


@app.command()
def cut(
    model: Annotated[str, typer.Argument(help="package.module:build, a folder, a .safetensors file, or smollm2.")],
    k: Annotated[int, typer.Option(help="Number of modules.")] = 8,
    data: Annotated[Path | None, typer.Option(help="Text to observe the model on (default: built in).")] = None,
    config: Annotated[Path | None, typer.Option(help="config.json of a .safetensors file.")] = None,
    edge: Annotated[str, typer.Option(help="Edge strength: contribution, abs or square.")] = "contribution",
    windows: Annotated[int, typer.Option(help="Text windows to observe.")] = 24,
    length: Annotated[int, typer.Option(help="Tokens per window.")] = 64,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("modcut-cut"),
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let a Hugging Face folder run its own Python code.")
    ] = False,
) -> None:
    """Cut a whole model into k modules: graph, partition, quotient tree, cards, report."""
    from modcut.loading import load_model
    from modcut.pipeline import cut_model

    loaded = load_model(model, config=config, trust_remote_code=trust_remote_code)
    cut_model(loaded, k=k, data=data, edge=edge, windows=windows, length=length, out=out, seed=seed)


@app.command()
def describe(
    model: Annotated[str, typer.Argument(help="package.module:build, a folder, a .safetensors file, or smollm2.")],
    partition: Annotated[
        Path | None, typer.Option(help="Folder of `modcut cut`, or its partition.safetensors (default: found here).")
    ] = None,
    k: Annotated[int, typer.Option(help="Number of modules, where they are found here.")] = 8,
    data: Annotated[list[Path] | None, typer.Option(help="Text file, one slice each; may be repeated.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to read.")] = 20_000,
    length: Annotated[int, typer.Option(help="Tokens per sample.")] = 128,
    edge: Annotated[str, typer.Option(help="Edge strength: contribution, abs or square.")] = "contribution",
    client: Annotated[str, typer.Option(help="Who writes the texts: none, local or openai.")] = "none",
    base_url: Annotated[str | None, typer.Option(help="Of an OpenAI-compatible server.")] = None,
    describer: Annotated[
        str | None, typer.Option("--model", help="The server's model, or folder or GGUF file of the local one.")
    ] = None,
    judge: Annotated[str, typer.Option(help="Who predicts from the texts: lexical, client or none.")] = "lexical",
    prompts: Annotated[Path | None, typer.Option(help="Folder of prompts that replace the package's.")] = None,
    controls: Annotated[int, typer.Option(help="Random modules per module.")] = 5,
    ablation_controls: Annotated[int, typer.Option(help="How many of them are ablated too.")] = 2,
    measure: Annotated[str, typer.Option(help="use (gradients) or activity (forward passes only, faster).")] = "use",
    windows: Annotated[int, typer.Option(help="Samples kept per half for scores.")] = 256,
    samples: Annotated[int, typer.Option(help="Of these, run again for ablations.")] = 32,
    threads: Annotated[int | None, typer.Option(help="Threads of torch.")] = None,
    out: Annotated[Path, typer.Option(help="Cards to write; partition.safetensors and map.json beside them.")] = Path(
        "modcut-describe/cards.json"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    config: Annotated[Path | None, typer.Option(help="config.json of a .safetensors file.")] = None,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let a Hugging Face folder run its own Python code.")
    ] = False,
) -> None:
    """Write a card for every module and interface: evidence, a text, scores beside controls."""
    from modcut.describing import describe_model
    from modcut.loading import load_model

    loaded = load_model(model, config=config, trust_remote_code=trust_remote_code)
    describe_model(
        loaded,
        out=out,
        partition=partition,
        k=k,
        data=data or (),
        tokens=tokens,
        length=length,
        edge=edge,
        client=client,  # type: ignore[arg-type]
        model=describer,
        base_url=base_url,
        judge=judge,
        prompts=prompts,
        controls=controls,
        ablation_controls=ablation_controls,
        measure=cast(Any, measure),
        windows=windows,
        samples=samples,
        threads=threads,
        seed=seed,
        resume=resume,
    )


@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="package.module:build, a folder, a .safetensors file, or smollm2.")],
    prompt: Annotated[str, typer.Argument(help="Text whose next token is followed.")],
    target: Annotated[
        str | None, typer.Option(help="Answer to follow (its first token; default: the likeliest).")
    ] = None,
    partition: Annotated[Path | None, typer.Option(help="Folder of `modcut cut` (default: found here).")] = None,
    k: Annotated[int, typer.Option(help="Number of modules, where they are found here.")] = 8,
    data: Annotated[Path | None, typer.Option(help="Text to observe the model on (default: built in).")] = None,
    mode: Annotated[str, typer.Option(help="Ablation: zero, mean or resample.")] = "mean",
    controls: Annotated[int, typer.Option(help="Random modules per module.")] = 16,
    steps: Annotated[int, typer.Option(help="Stretches of depth; 0 for none.")] = 12,
    follow: Annotated[int, typer.Option(help="Step through so many of the strongest modules.")] = 4,
    windows: Annotated[int, typer.Option(help="Text windows to observe.")] = 24,
    length: Annotated[int, typer.Option(help="Tokens per window.")] = 64,
    out: Annotated[Path, typer.Option(help="JSON to write; an .html page beside it.")] = Path("trace.json"),
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Follow the next token through the modules: what it becomes without each, beside random modules."""
    import modcut
    from modcut.judging import Bench
    from modcut.loading import load_model

    bench = Bench(load_model(model), partition, k, data, windows, length, seed)
    answer = None if target is None else int(bench.tokenizer.encode(target)[0])
    t = modcut.trace(
        bench.model, bench.prompt(prompt), bench.P, target=answer, mode=cast(Any, mode),
        reference=None if mode == "zero" else bench.data, controls=controls, seed=seed, tokenizer=bench.tokenizer,
        steps=steps, follow=follow, progress=sys.stderr.isatty(),
    )  # fmt: skip
    t.save(out)
    page = modcut.report(out.with_suffix(".html"), trace=t, title="modcut trace")
    typer.echo(f"{t}\nwrote {out} and {page}")


@app.command()
def compare(
    harmless: Annotated[str, typer.Argument(help="The model to compare with.")],
    harmful: Annotated[str, typer.Argument(help="The model in question, a relative of the first.")],
    partition: Annotated[Path | None, typer.Option(help="Folder of `modcut cut` (default: found here).")] = None,
    k: Annotated[int, typer.Option(help="Number of modules, where they are found here.")] = 8,
    data: Annotated[Path | None, typer.Option(help="Text to observe the models on (default: built in).")] = None,
    controls: Annotated[int, typer.Option(help="Random modules per module.")] = 32,
    windows: Annotated[int, typer.Option(help="Text windows.")] = 24,
    length: Annotated[int, typer.Option(help="Tokens per window.")] = 64,
    out: Annotated[Path, typer.Option(help="JSON to write; an .html page beside it.")] = Path("compare.json"),
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Compare two relatives module by module: weights, usage, and what breaks without the module."""
    import modcut
    from modcut.judging import Bench
    from modcut.loading import load_model

    bench = Bench(load_model(harmful), partition, k, data, windows, length, seed)
    d = modcut.compare(
        load_model(harmless).model, bench.model, bench.P, bench.data, controls=controls, seed=seed,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    d.save(out)
    page = modcut.report(out.with_suffix(".html"), comparison=d, title="modcut compare")
    typer.echo(f"{d}\nwrote {out} and {page}")


@app.command()
def audit(
    model: Annotated[str | None, typer.Argument(help="package.module:build, a folder, a file, or smollm2.")] = None,
    verify: Annotated[Path | None, typer.Option(help="Check this saved audit again (with MODEL: its digest).")] = None,
    concept: Annotated[
        list[Path] | None, typer.Option(help="JSON of a concept; may be repeated (default: those in the package).")
    ] = None,
    harmless: Annotated[str | None, typer.Option(help="A harmless relative to compare the use with.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="JSON of a Calibration fitted on known models.")] = None,
    fail_on: Annotated[
        str | None, typer.Option("--fail-on", help="Exit status 1 where it holds: 'p_harm>0.5'.")
    ] = None,
    partition: Annotated[Path | None, typer.Option(help="Folder of `modcut cut` (default: found here).")] = None,
    k: Annotated[int, typer.Option(help="Number of modules, where they are found here.")] = 8,
    data: Annotated[Path | None, typer.Option(help="Text to observe the model on (default: built in).")] = None,
    controls: Annotated[int, typer.Option(help="Random partitions, at least 19.")] = 99,
    prior: Annotated[float, typer.Option(help="Probability of harm before the audit.")] = 0.5,
    windows: Annotated[int, typer.Option(help="Text windows.")] = 24,
    length: Annotated[int, typer.Option(help="Tokens per window.")] = 64,
    out: Annotated[Path, typer.Option(help="JSON to write; the claims go beside it first.")] = Path("audit.json"),
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Declare claims about harmful concepts, test them beside controls, and write a verdict that re-verifies."""
    from modcut.judging import Bench, audit_model, holds, read_condition
    from modcut.loading import load_model

    if fail_on is not None:
        read_condition(fail_on)  # a mistake is refused before the long run
    if verify is not None:
        from modcut.auditing import verify as check

        problems = check(verify, None if model is None else load_model(model).model)
        typer.echo("\n".join(problems) if problems else f"{verify} holds: digests, p-values, verdicts and p_harm")
        if problems or (fail_on is not None and holds(fail_on, json.loads(verify.read_text(encoding="utf-8")))):
            raise typer.Exit(1)
        return
    if model is None:
        raise typer.BadParameter("audit needs MODEL, or --verify with a saved audit")
    bench = Bench(load_model(model), partition, k, data, windows, length, seed)
    result = audit_model(
        bench, concepts=concept or (), harmless=None if harmless is None else load_model(harmless),
        calibration=calibration, controls=controls, prior=prior, seed=seed, out=out, progress=sys.stderr.isatty(),
    )  # fmt: skip
    typer.echo(f"wrote {out}")
    if fail_on is not None and holds(fail_on, result):
        typer.echo(f"failed: {fail_on}")
        raise typer.Exit(1)


@app.command()
def report(
    files: Annotated[
        list[Path],
        typer.Argument(help="Folder of demo, cut or describe; or saved cards, partition, trace, tree, results.json."),
    ],
    out: Annotated[Path | None, typer.Option(help="File to write (default: report.html beside the first).")] = None,
    format: Annotated[str | None, typer.Option(help="html, json or md (default: by --out, else html).")] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
) -> None:
    """Write a report from saved results; print the table of an earlier demo or cut."""
    from modcut.reporting.saved import format_of, read_parts

    paths: list[Path] = []
    for path in files:
        if path.is_dir():
            found = [path / n for n in ("results.json", "cards.json", "map.json") if (path / n).is_file()]
            if not found:
                raise typer.BadParameter(f"{path} holds no results; run `modcut demo`, `cut` or `describe` first")
            paths += found[:1] if found[0].name == "results.json" else found
        elif not path.is_file():
            raise typer.BadParameter(f"{path} does not exist; run `modcut demo`, `cut` or `describe` first")
        else:
            paths.append(path)
    suffix = format or (format_of(out, None) if out else "html")
    if suffix not in ("html", "json", "md"):
        raise typer.BadParameter(f"format must be html, json or md, got {suffix!r}")
    page = out or paths[0].parent / f"report.{suffix}"
    if page in paths:
        raise typer.BadParameter(f"--out {page} is one of the files to read")
    if len(paths) == 1 and paths[0].suffix == ".json" and (kind := _kind(paths[0])) in ("demo", "cut", "train"):
        _report_run(paths[0], kind, page, suffix)
    else:
        import modcut

        parts = read_parts(paths)
        name = title or parts.pop("title", None) or "modcut report"
        parts.pop("title", None)
        modcut.report(page, **parts, title=name, format=suffix)
    typer.echo(f"wrote {page}")


def _kind(path: Path) -> str | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}") from error
    return value.get("kind") if isinstance(value, dict) else None


def _report_run(path: Path, kind: str, page: Path, suffix: str) -> None:
    """Print and write the results.json of a demo, a training run or a cut."""
    if kind == "demo":
        from modcut.demo.run import write_report
    elif kind == "train":
        from modcut.training.page import write_report
    else:
        from modcut.pipeline import write_report
    if kind == "train":
        from modcut.training.run import show
    else:
        from modcut.demo.table import show

    read = json.loads(path.read_text(encoding="utf-8"))
    show(read)
    try:
        write_report(read, page, format=suffix)
    except KeyError as error:
        raise typer.BadParameter(f"{path} lacks {error}: it was written by another version; run it again") from error


@app.command()
def bench() -> None:
    """Time one exact cut tree of a dense random graph after checking it (the full suites are in benchmarks/)."""
    import time

    import torch

    import modcut

    for n in (100, 200, 400):
        w = torch.rand(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64).triu(1)
        w = w + w.T
        began = time.perf_counter()
        tree = modcut.gomory_hu_tree(w)
        seconds = time.perf_counter() - began
        source, sink = 0, n - 1
        if abs(tree.min_cut_value(source, sink) - modcut.max_flow(w, source, sink).value) > 1e-6:
            raise typer.Exit(1)
        typer.echo(f"exact tree, dense n = {n:<4} {seconds:8.4f} s  flows {tree.stats.flows}")


def _command(arguments: Sequence[str] | None) -> str:
    given = sys.argv[1:] if arguments is None else list(arguments)
    return given[0] if given else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; user errors become one sentence and exit status 2, Ctrl-C exit status 130."""
    from modcut._require import MissingDependencyError

    try:
        code: Any = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):  # some releases of typer raise, others return the status
        code = _INTERRUPTED
    except (ValueError, TypeError, OSError, MissingDependencyError) as error:
        typer.echo(f"modcut: {error}", err=True)
        sys.exit(2)
    except Exception as error:
        # Typer vendors click in some releases: its usage errors are recognised by what they can do.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            if hasattr(error, "show"):
                error.show()
            sys.exit(error.exit_code)
        raise
    if code == _INTERRUPTED:
        typer.echo(f"modcut: interrupted{_GOES_ON.get(_command(arguments), '')}", err=True)
    sys.exit(code if isinstance(code, int) else 0)
