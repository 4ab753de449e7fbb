"""load_weights: every form of file it takes, and every one it refuses."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from networks import build_network, load_weights
from tests.networks.small import SMALL

SWIN = SMALL["swin_unet"]


def swin(classes: int = 3, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    return build_network("swin_unet", num_classes=classes, **{**SWIN, **options}).eval()


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def with_buffers(state: dict) -> dict:
    """Add the buffers that published checkpoints carry."""
    extra = {
        k.replace("relative_position_bias_table", "relative_position_index"): torch.zeros(16, 16, dtype=torch.int64)
        for k in state
        if k.endswith("relative_position_bias_table")
    }
    return {**state, **extra, "swin_unet.layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}


FORMS = {
    "bare": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3},
    "state_dict": lambda s: {"state_dict": s},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "module compiled": lambda s: {"model_state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    "Lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()} | {"loss.weight": torch.ones(2)}},
    "Lightning's net": lambda s: {"state_dict": {f"net.{k}": v for k, v in s.items()}, "epoch": 3},
    "nnU-Net": lambda s: {"network_weights": dict(s), "current_epoch": 3},
    "module": lambda s: {f"module.{k}": v for k, v in s.items()},
    "inner": lambda s: {k.removeprefix("swin_unet."): v for k, v in s.items()},
    "module_inner": lambda s: {f"module.{k.removeprefix('swin_unet.')}": v for k, v in s.items()},
    "buffers": with_buffers,
}


@pytest.mark.parametrize("form", FORMS)
def test_takes_every_form(tmp_path: Path, form: str) -> None:
    source, target = swin(seed=1), swin(seed=2)
    torch.save(FORMS[form](source.state_dict()), tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    assert same_weights(source, target)
    assert (len(report.loaded), report.skipped, report.missing) == (
        len(target.state_dict()),
        ("loss.weight",) if form == "Lightning" else (),
        (),
    )


def test_takes_safetensors(tmp_path: Path) -> None:
    source, target = swin(seed=1), swin(seed=2)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert same_weights(source, target)


def imagenet_state(embed_dim: int = 8) -> dict:
    """A Swin classifier with depths 2/2/6/2, as the public file holds it."""
    encoder = build_network("swin_unet", num_classes=2, **{**SWIN, "embed_dim": embed_dim, "depths": (2, 2, 6, 2)})
    state = {
        k.removeprefix("swin_unet."): torch.full_like(v, float(i))
        for i, (k, v) in enumerate(encoder.state_dict().items())
        if k.startswith(("swin_unet.patch_embed.", "swin_unet.layers.", "swin_unet.norm."))
    }
    return {**state, "head.weight": torch.zeros(10, 8 * embed_dim), "head.bias": torch.zeros(10)}


def test_imagenet_start_fills_the_encoder_and_mirrors_it(tmp_path: Path) -> None:
    state = imagenet_state()
    torch.save({"model": state}, tmp_path / "swin.pth")
    target = swin()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    report = load_weights(target, tmp_path / "swin.pth")
    after = target.state_dict()
    for key, value in after.items():
        inner = key.removeprefix("swin_unet.")
        if inner.startswith(("patch_embed.", "layers.", "norm.")):
            assert torch.equal(value, state[inner]), key
        elif inner.startswith("layers_up.") and ".blocks." in inner:
            stage, rest = inner.split(".", 2)[1:]
            assert torch.equal(value, state[f"layers.{3 - int(stage)}.{rest}"]), key
        else:
            assert torch.equal(value, before[key]), key
            assert key in report.missing
    assert "head.weight" in report.skipped
    assert "layers.2.blocks.5.norm1.weight" in report.skipped


def test_imagenet_file_of_another_width_is_refused(tmp_path: Path) -> None:
    torch.save({"model": imagenet_state(embed_dim=16)}, tmp_path / "swin.pth")
    with pytest.raises(
        ValueError, match=r"swin.pth: is of another network: .* has shape \(16, 3, 4, 4\), expected \(8"
    ):
        load_weights(swin(), tmp_path / "swin.pth")


def refused(path: Path, network: nn.Module | None = None) -> str:
    network = network or swin()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_weights(network, path)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items()), "nothing is changed by a refusal"
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_another_class_count(tmp_path: Path) -> None:
    torch.save(swin(classes=4).state_dict(), tmp_path / "w.pth")
    assert "is for 4 classes, the network has 3; give --num_classes 4" in refused(tmp_path / "w.pth")
    source, target = swin(classes=4), swin(seed=5)
    before = target.swin_unet.output.weight.clone()
    report = load_weights(target, tmp_path / "w.pth", ignore_head=True)
    assert report.missing == ("swin_unet.output.weight",)
    assert torch.equal(target.swin_unet.output.weight, before)
    assert torch.equal(target.swin_unet.up.expand.weight, source.swin_unet.up.expand.weight)
    unet = build_network("unet", num_classes=2, img_size=32, width=4)
    torch.save(unet.state_dict(), tmp_path / "u.pth")
    assert "is for 2 classes" in refused(tmp_path / "u.pth", build_network("unet", num_classes=3, img_size=32, width=4))


def test_another_network(tmp_path: Path) -> None:
    torch.save(build_network("unet", num_classes=3, img_size=32, width=4).state_dict(), tmp_path / "w.pth")
    assert "is of another network: it fills 0%" in refused(tmp_path / "w.pth")
    torch.save(swin(embed_dim=16).state_dict(), tmp_path / "w.pth")
    assert "expected (8, 3, 4, 4)" in refused(tmp_path / "w.pth")


def test_unreadable_files(tmp_path: Path) -> None:
    assert "no such checkpoint" in refused(tmp_path / "absent.pth")
    for name, content in (("empty", b""), ("text", b"hello, world\n" * 10), ("zeros", bytes(1000))):
        (tmp_path / f"{name}.pth").write_bytes(content)
        assert "not a readable checkpoint" in refused(tmp_path / f"{name}.pth")
    torch.save(swin().state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    assert "not a readable checkpoint" in refused(tmp_path / "cut.pth")
    (tmp_path / "cut.safetensors").write_bytes(whole[:100])
    assert "not a readable checkpoint" in refused(tmp_path / "cut.safetensors")


def test_files_of_other_things(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds a list" in refused(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "no_tensors.pth")
    assert "holds no tensors" in refused(tmp_path / "no_tensors.pth")


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_never_run(tmp_path: Path, save: Callable) -> None:
    save({"model": Malicious(tmp_path / "ran")}, tmp_path / "w.pth")
    message = refused(tmp_path / "w.pth")
    assert "holds more than plain tensors" in message or "not a readable checkpoint" in message
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(swin(), tmp_path / "w.pth")
    assert "holds more than plain tensors, and code in a file is not run" in refused(tmp_path / "w.pth")
    target = swin(seed=3)
    load_weights(target, tmp_path / "w.pth", trust=True)
    assert same_weights(target, swin())


def test_nan_weights(tmp_path: Path) -> None:
    state = swin().state_dict()
    state["swin_unet.norm.bias"][2] = float("nan")
    torch.save(state, tmp_path / "w.pth")
    assert "swin_unet.norm.bias holds NaN" in refused(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "strange", [lambda t: t.to_sparse(), lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)]
)
def test_tensors_that_are_not_plain(tmp_path: Path, strange: Callable) -> None:
    state, key = swin().state_dict(), "swin_unet.layers.0.blocks.0.attn.qkv.weight"
    torch.save({**state, key: strange(state[key])}, tmp_path / "w.pth")
    assert f"{key} is sparse, quantized, complex or empty" in refused(tmp_path / "w.pth")


def test_less_than_nine_tenths(tmp_path: Path) -> None:
    state = {k: v for k, v in swin(seed=1).state_dict().items() if "layers.3" not in k}
    torch.save(state, tmp_path / "w.pth")
    assert "expected at least 90%" in refused(tmp_path / "w.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_are_cast(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({k: v.to(dtype) for k, v in swin(seed=1).state_dict().items()}, tmp_path / "w.pth")
    target = swin(seed=2)
    load_weights(target, tmp_path / "w.pth")
    assert target.swin_unet.norm.bias.dtype == torch.float32
    assert torch.allclose(target.swin_unet.output.weight, swin(seed=1).swin_unet.output.weight, atol=1e-3)


def test_a_classifier_that_lacks_part_of_the_encoder(tmp_path: Path) -> None:
    state = imagenet_state()
    del state["layers.3.blocks.1.mlp.fc2.bias"]
    torch.save({"model": state}, tmp_path / "w.pth")
    assert "lacks swin_unet.layers.3.blocks.1.mlp.fc2.bias" in refused(tmp_path / "w.pth")


def test_evaluation_wants_the_whole_network(tmp_path: Path) -> None:
    torch.save({"model": imagenet_state()}, tmp_path / "start.pth")
    headless = {k: v for k, v in swin().state_dict().items() if "output" not in k}
    torch.save(headless, tmp_path / "headless.pth")
    deeper = build_network("swin_unet", num_classes=3, **{**SWIN, "depths": (2, 2, 4, 2)})
    torch.save(deeper.state_dict(), tmp_path / "deeper.pth")
    for name, what in (("start", "lacks"), ("headless", "lacks swin_unet.output.weight"), ("deeper", "also holds")):
        with pytest.raises(ValueError, match=f"not the whole of this network: it {what}"):
            load_weights(swin(), tmp_path / f"{name}.pth", complete=True)
    torch.save(with_buffers(swin().state_dict()), tmp_path / "whole.pth")
    load_weights(swin(), tmp_path / "whole.pth", complete=True)


def test_an_npz_is_read_as_plain_arrays(tmp_path: Path) -> None:
    network, other = (build_network("unet", num_classes=3, **SMALL["unet"]) for _ in range(2))
    arrays = {key: value.numpy() for key, value in network.state_dict().items()}
    swapped = {key: array.astype(array.dtype.newbyteorder(">")) for key, array in arrays.items()}
    for content in (swapped, arrays):
        np.savez(tmp_path / "plain.npz", **content)
        load_weights(other, tmp_path / "plain.npz")
        assert same_weights(network, other)
        other = build_network("unet", num_classes=3, **SMALL["unet"])
    np.savez(tmp_path / "objects.npz", **arrays, other=np.array([print], dtype=object))
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    whole = (tmp_path / "plain.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name, message in (("objects", "not a readable"), ("packed", "are compressed"), ("cut", "not a readable")):
        with pytest.raises(ValueError, match=f"{name}.npz: .*{message}"):
            load_weights(other, tmp_path / f"{name}.npz")


def test_interpolated_positions_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = SMALL["uctransnet"]
    torch.save(build_network("uctransnet", num_classes=3, **options).state_dict(), tmp_path / "a.pth")
    caplog.set_level("INFO")
    load_weights(build_network("uctransnet", num_classes=3, **{**options, "img_size": (48, 64)}), tmp_path / "a.pth")
    assert any("interpolated to another image size or window: 4" in message for message in caplog.messages)


def test_a_head_of_another_network_is_no_question_of_classes(tmp_path: Path) -> None:
    """TransUNet and HiFormer call theirs alike."""
    torch.save(build_network("hiformer_s", num_classes=9, **SMALL["hiformer_s"]).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="is of another network"):
        load_weights(build_network("transunet", num_classes=9, **SMALL["transunet"]), tmp_path / "a.pth")
