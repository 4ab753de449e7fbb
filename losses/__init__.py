"""Training losses; `KDloss` is handed on from the package `selfreg`."""

from losses.criterion import Criterion
from losses.dice import DiceLoss
from selfreg import KDloss

__all__ = ["Criterion", "DiceLoss", "KDloss"]
