"""YAML to frozen, validated configurations: one file for each section of a run, and one that puts them together."""

from pinnsketch.config.monitor import MonitorConfig
from pinnsketch.config.network import NetworkConfig
from pinnsketch.config.points import PointsConfig
from pinnsketch.config.reading import ConfigError, dump_config, read_yaml, validate
from pinnsketch.config.run import RunConfig, make_config, read_config
from pinnsketch.config.section import did_you_mean
from pinnsketch.config.train import StageConfig, TrainConfig

__all__ = [
    "ConfigError",
    "MonitorConfig",
    "NetworkConfig",
    "PointsConfig",
    "RunConfig",
    "StageConfig",
    "TrainConfig",
    "did_you_mean",
    "dump_config",
    "make_config",
    "read_config",
    "read_yaml",
    "validate",
]
