"""When the modularity loss does what: warm up, find the partition, ramp up, hold, commit to an interface."""

from __future__ import annotations

from dataclasses import dataclass

WARMUP, RAMP = 200, 300
"""Steps of a schedule whose length is not known."""
# Of a training whose length is known: what worked on small networks (docs/training.md).
_WARMUP_SHARE, _RAMP_SHARE, _COMMIT_SHARE = 0.1, 0.3, 0.78


@dataclass(frozen=True)
class Schedule:
    """Steps are calls of ``crit.step()``; the ramp starts where the partition is set."""

    warmup: int
    ramp: int
    commit: int | None = None
    """The step at which the interface is fixed, counted from the start of training."""
    total: int | None = None
    """Length of training, where it is known."""

    def weight(self, steps: int, start: int, committed: bool) -> float:
        """Return the multiplier of the loss in [0, 1]; ``start`` is the step of the partition, -1 before."""
        if start < 0 or committed:  # what crosses after the commit is what was asked for: nothing to penalise
            return 0.0
        return 1.0 if not self.ramp else min(1.0, (steps - start + 1) / self.ramp)

    def phase(self, steps: int, start: int, committed: bool) -> str:
        """Return ``warm-up``, ``ramp``, ``hold`` or ``committed``."""
        if start < 0:
            return "warm-up"
        if committed:
            return "committed"
        return "hold" if self.weight(steps, start, False) >= 1 else "ramp"

    def refreshes(self, steps: int, start: int, every: int | None) -> bool:
        """Return whether a better partition is looked for at this step; not in the second half of the way to commit."""
        if every is None or start < 0 or steps <= start or (steps - start) % every:
            return False
        end = self.commit if self.commit is not None else self.total
        return end is None or steps - start <= (end - start) // 2


def make(
    *,
    early: bool,
    warmup: int | None,
    ramp: int | None,
    commit: int | None,
    total: int | None,
    interface: float | None,
) -> Schedule:
    """Return the schedule with its defaults filled in; ``early``: the partition is there, or found, at once.

    Raises:
        ValueError: a number is out of range, or the schedule is longer than training.
    """
    for name, value, least in (("warmup", warmup, 0), ("ramp", ramp, 0), ("commit", commit, 1), ("total", total, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            name = "total_steps" if name == "total" else name
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if interface is not None and commit is None:
        if total is None:
            raise ValueError(
                f"interface={interface} needs total_steps (or commit): the step at which the interface is fixed"
            )
        commit = max(1, int(_COMMIT_SHARE * total))
    if warmup is None:
        warmup = 0 if early else WARMUP if total is None else min(WARMUP, max(1, int(_WARMUP_SHARE * total)))
    if ramp is None:
        if total is None:
            ramp = RAMP if warmup else 0
        else:
            # At least one step before a commit remains for the ramp: what does not fit is said below.
            ramp = max(0, min(int(_RAMP_SHARE * total), (total if commit is None else commit) - warmup))
    end = total if commit is None else commit
    what = "total_steps" if commit is None else "commit"
    if end is not None and warmup + ramp > end:
        raise ValueError(f"warmup + ramp must fit before {what} ({end}), got {warmup} + {ramp}")
    if total is not None and commit is not None and commit > total:
        raise ValueError(f"commit must be at most total_steps ({total}), got {commit}")
    return Schedule(warmup, ramp, commit, total)
