"""What the monitor promises on a GPU."""

import pytest
import torch

from pinnsketch import Monitor

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("readings", ["none", "default", ["drift", "memory", "units", "stable_rank"]], ids=str)
def test_the_monitor_never_waits_for_the_gpu_until_it_is_read(readings):
    network = torch.nn.Sequential(
        torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)
    )
    network.to("cuda", torch.float64)
    monitor = Monitor(
        network, torch.rand(64, 2, dtype=torch.float64, device="cuda"), readings=readings, every=2, lags=(1, 4, 8)
    )
    optimizer = torch.optim.Adam(network.parameters(), fused=True)

    def step():
        optimizer.zero_grad()
        network(torch.rand(128, 2, dtype=torch.float64, device="cuda")).square().mean().backward()
        optimizer.step()

    for _ in range(4):
        step()
        monitor.update()
    before = torch.cuda.get_sync_debug_mode()
    try:
        for _ in range(40):
            step()
            torch.cuda.set_sync_debug_mode("error")
            monitor.update()
            torch.cuda.set_sync_debug_mode(before)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    reading = monitor.read()
    own = torch.cat([p.grad.flatten() for p in network[2].parameters()])
    assert reading.updates == 44
    assert monitor.updates % 2 == 0  # the last look was one update ago
    assert reading.layers["2"].gradient_norm > 0
    assert own.isfinite().all()
