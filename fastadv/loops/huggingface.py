"""Adversarial training with the `Trainer` of the package transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastadv.data.any_batch import image_and_label_keys
from fastadv.errors import ConfigError
from fastadv.loops.adversary import Adversary

try:
    from transformers import Trainer
except ImportError as error:
    raise ConfigError(
        "fastadv.loops.huggingface needs the package transformers, which cannot be "
        f"imported ({error}); install it with: pip install 'transformers[torch]'"
    ) from error


class AdversarialTrainer(Trainer):  # type: ignore[misc]
    """A `Trainer` whose training steps see adversarial images.

    Evaluation and prediction see the images as they are. The model takes images under
    `pixel_values` and returns `logits`, as the image classifiers of the package do.

    Args:
        adversary: The adversarial step; its `mean` and `std` are those of the image
            processor.
        args: Arguments of `Trainer`.
        options: Arguments of `Trainer`, by name.

    Example:
        >>> adversary = Adversary(attack, processor.image_mean, processor.image_std)
        >>> trainer = AdversarialTrainer(
        ...     adversary=adversary, model=model, args=arguments, train_dataset=images
        ... )
        >>> trainer.train()
    """

    def __init__(self, *args: Any, adversary: Adversary, **options: Any) -> None:
        super().__init__(*args, **options)
        self.adversary = adversary

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any
    ) -> Tensor:
        """Attack the images of a batch, and take the step of `Trainer` on them."""
        inputs = dict(self._prepare_inputs(inputs))
        images, labels = image_and_label_keys(inputs)
        inputs[images] = self.adversary(model, inputs[images], inputs[labels])
        loss: Tensor = super().training_step(model, inputs, *args, **options)
        return loss
