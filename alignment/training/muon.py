"""Muon for a model's hidden matrices, AdamW for the rest, as one optimizer.

Muon replaces the momentum M of a matrix by its nearest semi-orthogonal matrix U V^T (M = U S V^T,
by Newton-Schulz iterations), scaled by 0.2 sqrt(max(rows, columns)) so that an update is as large
as AdamW's would be and one learning rate serves both (Jordan et al. 2024; Liu et al. 2025,
2502.16982). Small models trained from scratch need fewer steps with it. Embeddings, the output
head, biases and norms are not such matrices: they get AdamW.

The iterations run in float32. `torch.optim.Muon` runs them in bfloat16, which a processor without
that arithmetic emulates fifty times slower, and which rounds differently on each that has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a, b, c of the quintic: steepest at 0 (Jordan et al.)
ITERATIONS = 5


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """Nearly U V^T of a matrix U S V^T [m, n], float32: singular values end in about [.7, 1.2].

    X_0 = M / |M|_F,   X_{i+1} = a X_i + b (X_i X_i^T) X_i + c (X_i X_i^T)^2 X_i
    """
    a, b, c = COEFFICIENTS
    wide = matrix.float() if matrix.shape[0] <= matrix.shape[1] else matrix.float().T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class Muon(Optimizer):
    """Momentum, made orthogonal, of matrices; weight decay is decoupled, Nesterov's look ahead on.

    M <- mu M + (1 - mu) G,   W <- (1 - lr lambda) W - lr .2 sqrt(max(m, n)) O((1 - mu) G + mu M)

    Args:
        matrices: parameters of two dimensions [m, n].
        lr: learning rate, of AdamW's size.
        momentum: mu.
        weight_decay: lambda.
    """

    def __init__(
        self, matrices: list[torch.Tensor], lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One update of every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(matrix)
                average = state["momentum"].lerp_(matrix.grad, 1 - momentum)
                update = orthogonalized(matrix.grad.lerp(average, momentum))
                matrix.mul_(1 - rate * group["weight_decay"])
                matrix.add_(update, alpha=-rate * 0.2 * max(matrix.shape) ** 0.5)


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
            Muon(hidden, lr=lr, momentum=momentum, weight_decay=weight_decay),
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
