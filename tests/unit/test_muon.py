"""Muon: orthogonal updates, and the library's own optimizer up to its bfloat16."""

import pytest
import torch

from reprise.alignment.training.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(6, 6), (5, 12), (12, 5)])
def test_singular_values_become_nearly_one_and_vectors_stay(shape):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(*shape, generator=generator)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    made = orthogonalized(matrix)
    inner = u.T @ made @ v.T
    values = inner.diagonal()
    assert torch.allclose(inner, values.diag(), atol=1e-4)
    # Small singular values of the normalized matrix need more iterations than five.
    large = s / s.norm() > 0.05
    assert (values[large] > 0.6).all() and (values < 1.25).all()


def test_it_is_the_librarys_muon_up_to_bfloat16():
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(16, 24, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    mine = Muon([ours], lr=0.1, momentum=0.95, weight_decay=0.1)
    library = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        gradient = torch.randn(16, 24, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        library.step()
    moved = (theirs - start).norm()
    assert moved > 1
    assert (ours - theirs).norm() < 0.02 * moved


def test_what_has_no_gradient_stays():
    parameter = torch.nn.Parameter(torch.ones(3, 4))
    Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.1).step()
    assert torch.equal(parameter, torch.ones(3, 4))
