"""The options of tasks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskConfig:
    """Options of a task; each task has a class of its own."""
