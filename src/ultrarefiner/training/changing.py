"""Models of which only a part trains: their state dict is that part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ultrarefiner.errors import WeightsError


class PartlyTrained(nn.Module):
    """A model whose state dict holds what training can change and nothing else.

    So saving an epoch does not cost a copy of a frozen encoder.
    """

    def __init__(self) -> None:
        super().__init__()
        self._changing: frozenset[str] = frozenset()

    def keep_state_of(self, trained: Iterable[nn.Parameter]) -> None:
        """Say which parameters train, now or in a later epoch; called once, after all modules are set.

        The buffers beside them count too: BatchNorm's statistics change with its weights.
        """
        wanted = {id(one) for one in trained}
        names = {name for name, one in self.named_parameters() if id(one) in wanted}
        for prefix, module in self.named_modules():
            if any(id(one) in wanted for one in module.parameters(recurse=False)):
                dot = f"{prefix}." if prefix else ""
                names |= {dot + name for name, _ in module.named_buffers(recurse=False)}
        self._changing = frozenset(names)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Return the tensors that training can change."""
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if name in self._changing}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what ``state_dict`` gave.

        Raises:
            WeightsError: The tensors are not exactly those.
        """
        expected, given = set(self.state_dict()), set(state_dict)
        if expected != given:
            odd = sorted(expected ^ given)
            raise WeightsError(
                f"the saved state and the model differ in {len(odd)} tensors, such as {odd[0]}. "
                "Delete the resume folder beside the model to train from the start."
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)
