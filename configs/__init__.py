"""Configuration: defaults, experiment files and command lines."""

from configs.config import get_config, network_keywords

__all__ = ["get_config", "network_keywords"]
