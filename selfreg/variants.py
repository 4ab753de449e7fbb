"""Rivals of the two terms and of their teacher, to be compared with them: options of `KDloss`, none the default."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfreg.features import Features, FeatureTap


def mean_channel(student: Tensor, teacher: Tensor) -> Tensor:
    """Semantic consistency without the noise of its random pairing: each channel against the teacher's mean channel.

    The pairing gives a student channel s every teacher channel t_j with equal probability. With m = mean_j t_j,

        E_j ||s - t_j||^2 = ||s - m||^2 + mean_j ||t_j - m||^2,

    and the last term has no gradient, as the teacher is detached. Where only min(C_s, C_t) channels are drawn, every
    student channel is drawn as often as another. So this is `inter_fd` (mse) in expectation, less a constant.

    Args:
        student, teacher: (B, C_s, *space) and (B, C_t, *space).
    """
    return (student - teacher.mean(dim=1, keepdim=True)).square().mean()


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928), in place of semantic consistency.

    The attention map of f is Q(f) = mean_c f_c^2, and the loss is the mean over the batch of

        || Q(s) / ||Q(s)|| - Q(t) / ||Q(t)|| ||^2,    from 0 to 2.

    Args:
        student, teacher: (B, C_s, *space) and (B, C_t, *space).
    """
    attention = [F.normalize(f.square().mean(dim=1).flatten(1), dim=1) for f in (student, teacher)]
    return (attention[0] - attention[1]).square().sum(dim=1).mean()


def decorrelation(f: Tensor) -> Tensor:
    """Decorrelation of channels, in place of internal feature distillation, which makes them alike.

    With r_ij the correlation of channels i and j over batch and space,

        (1 / C) * sum_{i != j} r_ij^2:

    the covariance term of VICReg (Bardes et al., ICLR 2022, arXiv 2105.04906) of standardized channels, which is the
    off-diagonal term of Barlow Twins (Zbontar et al., ICML 2021, arXiv 2103.03230) of one view. A constant channel
    has correlation 0.

    Args:
        f: (B, C, *space).
    """
    channels = f.transpose(0, 1).flatten(1)
    channels = F.normalize(channels - channels.mean(dim=1, keepdim=True), dim=1)
    correlation = channels @ channels.T
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / len(correlation)


class MeanTeacher(nn.Module):
    """The final feature map of an averaged network as the teacher (Mean Teacher, Tarvainen and Valpola, NeurIPS 2017).

    After each step, `w_teacher = decay * w_teacher + (1 - decay) * w`; buffers are copied. It sees the same batch,
    without gradient, and costs one more forward pass.

    Args:
        network: the student, with a `tap_spec`.
        decay: of the average; 0.99 looks back some 100 steps.
    """

    def __init__(self, network: nn.Module, decay: float = 0.99) -> None:
        super().__init__()
        self.average, self.decay = copy.deepcopy(network).requires_grad_(False), decay
        self.tap = FeatureTap(self.average)

    def forward(self, image: Tensor, logits: Tensor, features: Features) -> tuple[Tensor, Features]:
        """The logits as they are, and the features with the teacher's final map."""
        with torch.no_grad():
            _, own = self.tap(image)
        return logits, features._replace(final=own.final)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights of `network` after a step."""
        for mine, weight in zip(self.average.parameters(), network.parameters(), strict=True):
            mine.lerp_(weight, 1 - self.decay)
        for own, buffer in zip(self.average.buffers(), network.buffers(), strict=True):
            own.copy_(buffer)


class DeepSupervision(nn.Module):
    """A 1x1 head on every stage of the decoder, in training alone (Lee et al., AISTATS 2015, arXiv 1409.5185).

    The heads' logits follow those of the network, the finest stage first, each resized to the image; `Criterion` weighs
    them by 1, 1/2, 1/4, ... as nnU-Net does (Isensee et al., Nature Methods 2021).

    Args:
        network: with a `tap_spec` and one head.
        num_classes: K.
        example: images (B, C, H, W) that the network takes.

    Raises:
        ValueError: the network has several heads of its own.
    """

    def __init__(self, network: nn.Module, num_classes: int, example: Tensor) -> None:
        super().__init__()
        was_training = network.training
        with torch.no_grad():
            logits, features = FeatureTap(network.eval())(example)
        network.train(was_training)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"DeepSupervision: {type(network).__name__} has {len(logits)} heads already; expected a network of one"
            )
        self.heads = nn.ModuleList(nn.Conv2d(stage[-1].shape[1], num_classes, 1) for stage in features.decoder)

    def forward(self, image: Tensor, logits: Tensor, features: Features) -> tuple[tuple[Tensor, ...], Features]:
        """The logits of the network and of every head (B, K, H, W), and the features as they are."""
        small = [head(stage[-1]) for head, stage in zip(self.heads, features.decoder, strict=True)]
        resized = [F.interpolate(one, logits.shape[2:], mode="bilinear", align_corners=False) for one in small[::-1]]
        return (logits, *resized), features
