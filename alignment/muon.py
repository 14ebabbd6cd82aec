"""Muon for a model's hidden matrices, AdamW for the rest, as one optimizer.

Muon replaces the momentum M of a matrix by its nearest semi-orthogonal matrix U V^T (M = U S V^T,
by Newton-Schulz iterations), scaled by 0.2 sqrt(max(rows, columns)) so that an update is as large
as AdamW's would be and one learning rate serves both (Jordan et al. 2024; Liu et al. 2025,
2502.16982). Small models trained from scratch need fewer steps with it. Embeddings, the output
head, biases and norms are not such matrices: they get AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Both optimizers behind one face: shared parameter groups, one state.

    Args:
        model: whose parameters are trained.
        lr: learning rate of both.
        betas: AdamW's.
        weight_decay: decoupled, on all matrices; none on vectors.
        momentum: Muon's.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        ends = {
            id(module.weight)
            for module in (
                model.get_input_embeddings(),
                model.get_output_embeddings(),
                getattr(model, "score", None),
            )
            if module is not None
        }
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        hidden = [p for p in parameters if p.ndim == 2 and id(p) not in ends]
        end_matrices = [p for p in parameters if p.ndim >= 2 and (p.ndim > 2 or id(p) in ends)]
        vectors = [p for p in parameters if p.ndim < 2]
        groups = [
            {"params": end_matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._parts: list[Optimizer] = [
            Muon(
                hidden,
                lr=lr,
                momentum=momentum,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            AdamW(groups, lr=lr, betas=betas, fused=True),
        ]
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        # The same dictionaries: what a schedule writes here, the parts read.
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One update of every parameter that has a gradient."""
        assert closure is None
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
