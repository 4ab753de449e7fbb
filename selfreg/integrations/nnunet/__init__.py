"""Holds the trainer alone: nnU-Net imports every module that is here."""
