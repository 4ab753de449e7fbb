"""SelfReg: self-regularization for U-shaped networks (MICCAI 2024, arXiv 2406.14896), on torch alone."""

from selfreg.features import Features, FeatureTap, Tapped, TapSpec
from selfreg.kdloss import KDloss, KDTerms, inter_fd, intra_fd
from selfreg.suggest import suggest_spec

__all__ = ["FeatureTap", "Features", "KDTerms", "KDloss", "TapSpec", "Tapped", "inter_fd", "intra_fd", "suggest_spec"]

__version__ = "1.0.0"
