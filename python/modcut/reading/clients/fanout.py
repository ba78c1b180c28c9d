"""Many questions at once: each answered or failed on its own, in order of completion, stopped where it is hopeless."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait

from modcut.reading.clients.protocol import Client, ClientError, Reply, Request, ask

# After an error of the first kind no later call can succeed; after some of the second kind in a row, we stop asking.
_FATAL = ("auth",)
_UNREACHABLE = ("connection", "timeout")
_PATIENCE = 2


def ask_all(client: Client, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | ClientError]]:
    """Yield ``(index, reply or error)`` for every request, as they come in; each index once.

    The first request goes alone: it tells whether the key is taken and the server there. The others run at once where
    the client has ``submit`` (which bounds how many), one after the other elsewhere. After a refused key, or two
    unreachable calls in a row, the rest is not asked (reason ``not_asked``). Leaving the loop, also by Ctrl-C, cancels
    what is still under way; a client with a cache has by then stored all that was answered.
    """
    failures, stopped = 0, ""

    def judged(index: int, outcome: Reply | ClientError) -> tuple[int, Reply | ClientError]:
        nonlocal failures, stopped
        if isinstance(outcome, ClientError):
            failures = failures + 1 if outcome.reason in _UNREACHABLE else 0
            if outcome.reason in _FATAL or failures >= _PATIENCE:
                stopped = stopped or str(outcome)
        else:
            failures = 0
        return index, outcome

    submit = getattr(client, "submit", None)
    waiting: dict[Future[Reply], int] = {}
    try:
        for index, request in enumerate(requests):
            if stopped:
                yield index, ClientError("not_asked", stopped)
            elif submit is not None and index > 0:
                waiting[submit(request)] = index
            else:
                yield judged(index, _one(client, request))
        while waiting:
            # A short wait again and again, rather than a long one: Ctrl-C is then seen at once on every platform.
            done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda f: waiting[f]):
                index = waiting.pop(future)
                yield judged(index, _outcome(future, stopped))
            if stopped:
                for future in waiting:
                    future.cancel()
    finally:
        for future in waiting:
            future.cancel()


def _one(client: Client, request: Request) -> Reply | ClientError:
    try:
        return ask(client, request)
    except ClientError as error:
        return error


def _outcome(future: Future[Reply], stopped: str) -> Reply | ClientError:
    try:
        return future.result()
    except ClientError as error:
        return error
    except CancelledError:
        return ClientError("not_asked", stopped or "cancelled")
