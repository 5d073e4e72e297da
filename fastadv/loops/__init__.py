"""The adversarial step of other people's training loops: plain PyTorch and libraries.

Names are imported on first use. `fastadv.loops.lightning` and `fastadv.loops.huggingface`
need the library that they are for.
"""

from fastadv.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
