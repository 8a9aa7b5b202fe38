"""`check` says where a sum of second derivatives can be carried as one."""

import pytest

from pinnsketch import Box, Problem, Term, laplacian
from pinnsketch.check import check

SPACE_TIME = Box(x=(0, 1), y=(0, 1), t=(0, 1))


@pytest.mark.parametrize(
    ("residual", "hint"),
    [
        (lambda u: u.t - u.xx - u.yy, "u.xx + u.yy as a sum: laplacian(u) is the same, and faster"),
        (lambda u: u.xx + u.tt, "u.xx + u.tt as a sum: laplacian(u, 'x', 't') is the same"),
        (lambda u: u * (u.xx + u.yy) + u.x, "laplacian(u) is the same"),
        (lambda u: u.xx + 2 * u.yy, None),
        (lambda u: u.xx * u.yy, None),
        (lambda u: u.t - laplacian(u), None),
        (lambda u: u.xx, None),
    ],
)
def test_a_sum_of_pure_second_derivatives_is_pointed_out_and_nothing_else(residual, hint):
    _, warnings = check(Problem(SPACE_TIME, "u", {"law": Term(SPACE_TIME.interior, residual)}), interior=20)
    assert len(warnings) == (hint is not None)
    assert all(hint in warning for warning in warnings)
