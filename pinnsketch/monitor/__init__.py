"""Gradient health at constant memory: the monitor, and its readings."""

from pinnsketch.monitor.monitor import Monitor
from pinnsketch.monitor.reading import LayerReading, Reading

__all__ = ["LayerReading", "Monitor", "Reading"]
