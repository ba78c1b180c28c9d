"""When to send: pauses between attempts, what Retry-After means, and limits per minute."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Mapping


def pause(attempt: int, base: float, ceiling: float, draw: float) -> float:
    """Return the seconds before attempt ``attempt + 1``: doubling, with full jitter in the upper half.

    Args:
        attempt: failed attempts so far, from 0.
        base: seconds of the first pause.
        ceiling: no pause is longer.
        draw: uniform in [0, 1): what keeps many clients from coming back at the same moment.
    """
    return float(min(ceiling, base * 2.0**attempt) * (0.5 + 0.5 * draw))


def retry_after(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Return the seconds that a server asks to wait for: ``Retry-After-Ms``, or ``Retry-After`` in seconds or as date.

    None where it does not say, or says something else (RFC 9110, section 10.2.3).
    """
    milliseconds = headers.get("retry-after-ms")
    if milliseconds is not None:
        try:
            return max(0.0, float(milliseconds) / 1000)
        except ValueError:
            pass
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now())
    except (TypeError, ValueError):
        return None


class Pace:
    """Even spacing of calls under limits of requests and tokens per minute (a leaky bucket without a burst).

    Args:
        requests: per minute, or None.
        tokens: per minute, or None.
        clock: seconds, ever rising.
    """

    def __init__(
        self, requests: float | None, tokens: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        for name, value in (("requests_per_minute", requests), ("tokens_per_minute", tokens)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0 or None, got {value}")
        self._requests, self._tokens, self._clock = requests, tokens, clock
        self._free = clock()

    def reserve(self, tokens: int) -> float:
        """Take the next place for a call of about ``tokens`` tokens; return the seconds to wait for it."""
        now = self._clock()
        start = max(now, self._free)
        cost = 0.0
        if self._requests is not None:
            cost = 60.0 / self._requests
        if self._tokens is not None:
            cost = max(cost, 60.0 * tokens / self._tokens)
        self._free = start + cost
        return start - now

    def settle(self, reserved: int, used: int) -> None:
        """Give back what was reserved and not used, or take what was used beyond it."""
        if self._tokens is not None:
            self._free -= 60.0 * (reserved - used) / self._tokens

    def hold(self, seconds: float) -> None:
        """Let nobody start within ``seconds``: a server that said 429 to one call means all of them."""
        self._free = max(self._free, self._clock() + seconds)
