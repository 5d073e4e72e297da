"""Building a network whose weights come from a file, without drawing random ones first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Some functions of torch.nn.init meet the mode themselves, others by what they call.
_DRAWS = frozenset(
    {
        *(Tensor.uniform_, Tensor.normal_, Tensor.bernoulli_),
        *(
            nn.init.uniform_,
            nn.init.normal_,
            nn.init.trunc_normal_,
        ),
        *(nn.init.kaiming_uniform_, nn.init.kaiming_normal_),
        *(nn.init.xavier_uniform_, nn.init.xavier_normal_),
    }
)


class UndrawnParameters(TorchFunctionMode):
    """Fill parameters with zeros, where they would be drawn, while the mode is active.

    Initialisation takes two thirds of the time of opening a ResNet-50: more than reading its
    file. Buffers are drawn as ever, since a file may lack them.

    Example:
        >>> with UndrawnParameters():
        ...     layer = nn.Linear(2, 3)  # to be filled by load_state_dict
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function, unless it draws a parameter, which is zero then."""
        named = kwargs or {}
        if func in _DRAWS:
            filled = args[0] if args else named.get("tensor")
            if isinstance(filled, nn.Parameter):
                filled.detach().zero_()  # samplers draw again what is out of range
                return filled
        return func(*args, **named)
