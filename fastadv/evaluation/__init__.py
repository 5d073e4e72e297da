"""Accuracy on clean and attacked images, and the journal that resumes it.

Names resolve on first use, so that a command's `--help` imports no torch.
"""

from fastadv.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
