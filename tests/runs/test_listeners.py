"""What listeners are told of a run's events."""

from __future__ import annotations

from typing import Any

from fastadv.runs.listeners import ListenerGroup


def test_listeners_are_told_the_step_they_are_at() -> None:
    class Keeps:
        def __init__(self) -> None:
            self.told: list[Any] = []

        def event(self, name: str, step: int, values: Any) -> None:
            self.told.append((name, step))

        def close(self) -> None:
            self.told.append("closed")

    kept = Keeps()
    listeners = ListenerGroup({"kept": kept})
    listeners.event("train", {"step": 7})
    listeners.event("bad_images", {"count": 1})
    listeners.close()
    listeners.event("late", {"step": 9})
    assert kept.told == [("train", 7), ("bad_images", 7), "closed"]
