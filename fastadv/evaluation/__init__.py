"""Accuracy on clean and attacked images, and the journal that resumes it."""
