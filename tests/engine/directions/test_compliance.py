"""Compliance addition: what answered bad prompts have and refused ones lack, without what is removed or protected."""

from __future__ import annotations

import pytest
import torch

from bruno.engine.directions.compliance import compliance_direction
from bruno.engine.directions.record import NotApplicable
from tests.engine.directions.planted import cosine, noise, units

REFUSED = torch.arange(400) % 2 == 0


def answers(along_removed: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bad captures whose answered ones lie apart along the removed direction and one of their own."""
    removed, own = units(2, 30)
    shift = along_removed * removed + (1 - along_removed**2) ** 0.5 * own
    bad = noise(400, 3, 30) + 8 * (~REFUSED)[:, None, None] * shift
    return bad, removed.expand(3, 1, 30), own


def test_it_points_from_refused_to_answered_and_is_orthogonal() -> None:
    bad, removed, own = answers(0.3)
    found = compliance_direction(bad, REFUSED, removed, max_overlap=0.5)
    assert (cosine(found.vectors, own) > 0.98).all()
    assert (found.vectors * removed[:, 0]).sum(-1).abs().max() < 1e-9
    assert found.overlap.tolist() == pytest.approx([0.3] * 3, abs=0.03)


def test_it_keeps_out_of_what_is_protected() -> None:
    bad, removed, own = answers(0.3)
    protected = torch.nn.functional.normalize(own + noise(30), dim=0).expand(3, 1, 30)
    found = compliance_direction(bad, REFUSED, removed, max_overlap=0.5, protected=protected)
    assert (found.vectors * protected[:, 0]).sum(-1).abs().max() < 1e-9


def test_a_layer_with_too_much_overlap_is_left_out_and_all_of_them_are_a_reason() -> None:
    bad, removed, _ = answers(0.7)
    with pytest.raises(NotApplicable, match=r"at every block \(0.7\d? at least, 0.5 allowed\)"):
        compliance_direction(bad, REFUSED, removed, max_overlap=0.5)
    bad[:, 1] = answers(0.2)[0][:, 1]
    found = compliance_direction(bad, REFUSED, removed, max_overlap=0.5)
    assert found.vectors.any(-1).tolist() == [False, True, False]
    assert compliance_direction(bad, REFUSED, removed, max_overlap=0.8).vectors.any(-1).all()


@pytest.mark.parametrize("refused", [9, 391])
def test_fewer_than_ten_of_a_kind_are_named(refused: int) -> None:
    bad, removed, _ = answers(0.3)
    with pytest.raises(NotApplicable, match=f"{refused} refused and {400 - refused} answered"):
        compliance_direction(bad, torch.arange(400) < refused, removed, max_overlap=0.5)


def test_no_difference_is_a_reason() -> None:
    with pytest.raises(NotApplicable, match="do not differ"):
        compliance_direction(torch.ones(40, 3, 30), REFUSED[:40], units(1, 30).expand(3, 1, 30), max_overlap=0.5)
