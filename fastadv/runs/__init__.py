"""How a job lives: run directory, event log, listeners, ranks, launch, preemption, progress."""
