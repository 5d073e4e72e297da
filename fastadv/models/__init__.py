"""Architectures, normalisation inside the model, and checkpoints in and out.

Names resolve on first use, so that listing architectures imports no torch. The view
of a model that attacks run on is `fastadv.models.view`.
"""

from fastadv.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
