"""One thread in every test: tiny networks gain nothing from more, and two cores are shared."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def numbers_only(monkeypatch):
    """Runs that draw nothing and estimate no error, where that is not tested: it takes longer than a short training."""
    monkeypatch.setattr("pinnsketch.report.figures.write_figures", lambda *_: None)
    monkeypatch.setattr("pinnsketch.report.image_figures.training_figure", lambda _: None)
    monkeypatch.setattr("pinnsketch.solution.estimated", lambda *_: {"why": "not estimated in this test"})
