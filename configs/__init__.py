"""Configuration: defaults, experiment files and command lines."""
