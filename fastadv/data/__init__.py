"""What a data set is (sources) and how its batches arrive (loaders).

Nothing heavy is imported until a name is used: `import fastadv.data` costs
what `import fastadv` costs, so `--help` stays quick. Not here: normalisation,
which belongs to the model, and anything adversarial.

Example:
    >>> from fastadv.data import make_loader, open_dataset
    >>> digits = open_dataset("digits")
    >>> loader = make_loader(digits.test, batch_size=100, resolution=32, train=False)
    >>> next(iter(loader)).images.shape
    torch.Size([100, 3, 32, 32])
"""

from fastadv.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
