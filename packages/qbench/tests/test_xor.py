"""XOR: the loop against the closed form of theorem 1's proof (DIQNN, supplement 3.2)."""

import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from qbench.block import plan
from qbench.executors import run_blocks
from qbench.table import load_table
from qbench.trial import RunFolder


def flow(times: np.ndarray) -> np.ndarray:
    """a(t) = ⟨c1, x1⟩² under gradient flow; b = ⟨c1, x2⟩² = 1/a since a·b stays a(0)·b(0) = 1.

    a' = 4 a v with v = 1/(1 + e^{a - b}): the proof prints v12 = 1/(1 + e^{-s1}), whose sign does
    not fit its own differential equation; the rate is 4, not the printed 2, because ‖x‖² = 2 here,
    which only changes the unit of time.
    """

    def slope(_: float, a: np.ndarray) -> np.ndarray:
        return 4 * a / (1 + np.exp(a - 1 / a))

    solved = solve_ivp(slope, (0.0, times[-1]), [1.0], t_eval=times, rtol=1e-10, atol=1e-12)
    return solved.y[0]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[float, object]:
    table = load_table("xor")
    folder = RunFolder(tmp_path_factory.mktemp("xor"), table, create=True)
    cells = list(table.cells(choices={"lr": table.axes["lr"]}))
    for _ in run_blocks(folder, plan(folder, cells, 1)):
        pass
    return {float(r.axes["lr"]): r for r in folder.results(cells)}


def test_small_steps_follow_the_closed_form(results: dict) -> None:
    result = results[0.01]
    margin = np.array(result.history["margin"])
    a = flow(0.01 * np.array(result.step))
    expected = (a - 1 / a) / np.sqrt(a**2 + 1 / a**2)
    assert np.abs(margin - expected).max() < 0.01
    assert np.abs(np.diff(margin) / 0.01)[0] == pytest.approx(math.sqrt(2) * 2, rel=0.05)


def test_the_derivative_is_the_proofs() -> None:
    # dΔμ/dt = 2·rate·v(a+b)ab/(a²+b²)^{3/2} with rate 4; the proof's 4 v(a+b)ab/… has rate 2
    times = np.linspace(0, 3, 3001)
    a = flow(times)
    b = 1 / a
    margin = (a - b) / np.sqrt(a**2 + b**2)
    v = 1 / (1 + np.exp(a - b))
    proof = 8 * v * (a + b) * a * b / (a**2 + b**2) ** 1.5
    assert np.allclose(np.gradient(margin, times)[1:-1], proof[1:-1], rtol=1e-4, atol=1e-6)


def test_the_printed_sign_does_not_fit() -> None:
    # with v = 1/(1 + e^{-s}) the flow would blow up in finite time instead of slowing down
    def printed(_: float, a: np.ndarray) -> np.ndarray:
        return 4 * a / (1 + np.exp(-(a - 1 / a)))

    times = np.linspace(0, 1, 11)
    wrong = solve_ivp(printed, (0.0, 1.0), [1.0], t_eval=times, rtol=1e-8).y[0]
    assert wrong[-1] > 3 * flow(times)[-1]


@pytest.mark.parametrize("lr", [0.01, 0.03, 0.1, 0.3])
def test_the_margin_never_falls_and_stays_below_one(results: dict, lr: float) -> None:
    margin = np.array(results[lr].history["margin"])
    assert margin[0] == pytest.approx(0.0, abs=1e-7)
    assert (np.diff(margin) >= 0).all()
    assert margin[-1] <= 1.0 + 1e-6


def test_the_product_of_both_squares_is_conserved_by_small_steps(results: dict) -> None:
    for snapshot in results[0.01].snapshots.values():
        (c1,), (c2,) = snapshot["factors"]
        a, b = (c1[0] + c1[1]) ** 2, (c1[0] - c1[1]) ** 2
        assert a * b == pytest.approx(1.0, rel=0.05)
        # the two vectors mirror each other: ⟨c1, x1⟩² = ⟨c2, x2⟩²
        assert (c2[0] - c2[1]) ** 2 == pytest.approx(a, rel=1e-4)


def test_snapshots_are_at_the_papers_steps(results: dict) -> None:
    assert list(results[0.1].snapshots) == [0, 12, 36, 84, 396]
