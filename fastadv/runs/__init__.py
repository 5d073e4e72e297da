"""The life of a job: run directory, log, listeners, ranks, launch, preemption, progress."""
