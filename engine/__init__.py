"""What a training run stands on: checkpoints, the metric log, several processes."""
