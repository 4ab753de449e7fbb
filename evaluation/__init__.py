"""From a trained network to figures: metrics, prediction of whole volumes, reports."""
