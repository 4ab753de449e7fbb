"""The configuration: order of sources, keys and types, and what the command lines say."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

import networks
from configs import arguments
from configs.arguments import FLAGS, overrides_of, train_parser
from configs.config import get_config, network_keywords, size_of, to_plain
from configs.defaults import default_config
from configs.saved import check_continues, config_text, is_of
from networks import build_network, list_networks
from tests.conftest import ROOT

PUBLISHED_TRAIN = (
    "--dataset Synapse --cfg configs/swin_tiny_patch4_window7_224_lite.yaml --max_epochs 150 --output_dir 11_1 "
    " --gpu_id 0 --img_size 224 --base_lr 0.05 --batch_size 32 --lambda_x 0.010"
).split()
PUBLISHED_TEST = (
    "--dataset Synapse --cfg configs/swin_tiny_patch4_window7_224_lite.yaml --is_saveni --output_dir 11_1 "
    "--max_epoch 150 --base_lr 0.05 --img_size 224 --batch_size 24"
).split()


def dotted_keys(node: dict, prefix: str = "") -> set[str]:
    return {
        k
        for key, v in node.items()
        for k in (dotted_keys(v, f"{prefix}{key}.") if isinstance(v, dict) else {prefix + key})
    }


def test_published_train_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    args = train_parser().parse_args(PUBLISHED_TRAIN)
    cfg = get_config(args.cfg, opts=args.opts, overrides=overrides_of(args))
    assert (cfg.TRAIN.EPOCHS, cfg.TRAIN.BASE_LR, cfg.DATA.BATCH_SIZE) == (150, 0.05, 32)
    assert (cfg.LOSS.LAMBDA_1, cfg.LOSS.LAMBDA_2, cfg.MODEL.TYPE, cfg.OUTPUT_DIR) == (0.01, 0.01, "swin_unet", "11_1")
    assert (cfg.TRAIN.OPTIMIZER, cfg.TRAIN.MOMENTUM, cfg.TRAIN.WEIGHT_DECAY, cfg.SEED) == ("sgd", 0.9, 1e-4, 1234)
    assert (cfg.LOSS.CE_WEIGHT, cfg.LOSS.DICE_WEIGHT, cfg.MODEL.DROP_PATH_RATE) == (0.4, 0.6, 0.2)


def test_published_test_command() -> None:
    args = arguments.test_parser().parse_args(PUBLISHED_TEST)
    assert args.is_savenii and args.max_epochs == 150 and args.output_dir == "11_1"


def test_every_flag_is_in_a_parser_and_names_a_key() -> None:
    known = {a.dest for parser in (train_parser(), arguments.test_parser()) for a in parser._actions}
    assert set(FLAGS) <= known
    assert set(FLAGS.values()) <= dotted_keys(to_plain(default_config()))


def test_order_of_sources(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("TRAIN: {EPOCHS: 3, BASE_LR: 1e-3}\nSEED: 5\n")
    args = train_parser().parse_args(["--cfg", str(file), "--opts", "TRAIN.EPOCHS", "4", "SEED", "6", "--seed", "7"])
    cfg = get_config(args.cfg, opts=args.opts, overrides=overrides_of(args))
    assert (cfg.TRAIN.BASE_LR, cfg.TRAIN.EPOCHS, cfg.SEED, cfg.TRAIN.MOMENTUM) == (1e-3, 4, 7, 0.9)


def test_lambdas() -> None:
    def weights(*words: str) -> tuple[float, float]:
        cfg = get_config(overrides=overrides_of(train_parser().parse_args(words)))
        return cfg.LOSS.LAMBDA_1, cfg.LOSS.LAMBDA_2

    assert weights() == (0.015, 0.015)
    assert weights("--lambda_x", "0") == (0, 0)
    assert weights("--lambda_x", "0.1", "--lambda_2", "0.2") == (0.1, 0.2)


def test_a_section_is_merged_and_text_stays_text() -> None:
    cfg = get_config(opts=["TRAIN", "{EPOCHS: 3}", "MODEL.NAME", "11_1", "DATA.ROOT_PATH", "2024-01-01"])
    assert (cfg.TRAIN.EPOCHS, cfg.TRAIN.MOMENTUM) == (3, 0.9)
    assert (cfg.MODEL.NAME, cfg.DATA.ROOT_PATH) == ("11_1", "2024-01-01")


def test_a_size_is_a_side_or_two() -> None:
    for words, expected in (
        ([], (224, 224)),
        (["--img_size", "96"], (96, 96)),
        (["--img_size", "96", "160"], (96, 160)),
    ):
        assert size_of(get_config(overrides=overrides_of(train_parser().parse_args(words)))) == expected
    assert size_of(get_config(opts=["DATA.IMG_SIZE", "[64, 32]"])) == (64, 32)


def test_weights_to_start_from_are_a_file_or_several() -> None:
    assert get_config(opts=["MODEL.PRETRAIN_CKPT", "a.pth"]).MODEL.PRETRAIN_CKPT == "a.pth"
    assert get_config(opts=["MODEL.PRETRAIN_CKPT", "[a.pth, b.pth]"]).MODEL.PRETRAIN_CKPT == ["a.pth", "b.pth"]


@pytest.mark.parametrize("name", list_networks())
def test_the_keys_of_a_network_are_its_options_with_their_defaults(name: str) -> None:
    keywords = network_keywords(get_config(overrides={"MODEL.TYPE": name}))
    parameters = inspect.signature(networks._NETWORKS[name]).parameters
    assert set(keywords) == set(parameters) - {"variant"}
    own = set(keywords) - {"num_classes", "img_size", "use_checkpoint"}
    assert {key: keywords[key] for key in own} == {key: parameters[key].default for key in own}


def test_frozen_and_written_back(tmp_path: Path) -> None:
    cfg = get_config(opts=["MODEL.SWIN.DEPTHS", "[2, 2, 6, 2]"])
    with pytest.raises(AttributeError):
        cfg.SEED = 3
    file = tmp_path / "config.yaml"
    file.write_text(config_text(to_plain(cfg), {"torch": "1"}))
    again = get_config(file)
    assert again.ENVIRONMENT.torch == "1"
    assert {**to_plain(again), "ENVIRONMENT": {}} == to_plain(cfg)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_yaml_builds_and_holds_only_what_differs(file: Path) -> None:
    cfg = get_config(file)
    build_network(cfg.MODEL.TYPE, **network_keywords(cfg))
    content = yaml.safe_load(file.read_text())
    published = {
        "MODEL.SWIN.FINAL_UPSAMPLE",
        "MODEL.SWIN.EMBED_DIM",
        "MODEL.SWIN.DEPTHS",
        "MODEL.SWIN.DECODER_DEPTHS",
        "MODEL.SWIN.NUM_HEADS",
        "MODEL.SWIN.WINDOW_SIZE",
    }
    if file.stem.endswith("_lite"):
        assert published <= dotted_keys(content), "the published file keeps its published keys"
        return
    default = to_plain(default_config())
    for dotted in dotted_keys(content):
        value, reference = content, default
        for part in dotted.split("."):
            value, reference = value[part], reference[part]
        assert value != reference, f"{dotted} is the default anyway"


BAD_VALUES = [
    (["TRAIN.EPOCH", "3"], "unknown key TRAIN.EPOCH; did you mean TRAIN.EPOCHS?"),
    (["DATA.IMGSIZE", "3"], "did you mean DATA.IMG_SIZE?"),
    (["train.epochs", "3"], "did you mean TRAIN.EPOCHS?"),
    (["TRAIN.EPOCHS", "many"], "TRAIN.EPOCHS is 'many' (str); expected int"),
    (["TRAIN.EPOCHS", "2.5"], "2.5 (float); expected int"),
    (["TRAIN.EPOCHS", "0"], "expected a finite number of at least 1 (--max_epochs)"),
    (["TRAIN.BASE_LR", ".nan"], "TRAIN.BASE_LR is nan"),
    (["TRAIN.BASE_LR", "-1"], "--base_lr"),
    (["DATA.BATCH_SIZE", "0"], "--batch_size"),
    (["MODEL.SWIN.DEPTHS", "2"], "expected list"),
    (["MODEL.SWIN.DEPTHS", "[2, a]"], "expected int"),
    (["MODEL", "3"], "expected a section"),
    (["TRAIN.OPTIMIZER", "adam"], "expected one of sgd, adamw"),
    (["AUG.ROTATE", "1.5"], "from 0 to 1"),
    (["DATA.WINDOW", "[3, 1]"], "low below high"),
    (["DETERMINISTIC", "maybe"], "expected bool"),
    (["N_GPU", "4"], "--n_gpu"),
    (["SEED"], "expected pairs"),
    (["SEED", "4294967296"], "--seed"),
    (["SEED", "[" * 3000], "expected int"),
    (["TRAIN.LR_POWER", ".nan"], "TRAIN.LR_POWER is nan"),
    (["MODEL.SWIN", "{FOO: 1}"], "unknown key MODEL.SWIN.FOO"),
    (["DATA.IMG_SIZE", "[224, 160, 3]"], "expected a side, or [H, W] (--img_size)"),
    (["DATA.IMG_SIZE", "[224, a]"], "expected int, such as 224"),
    (["DATA.IMG_SIZE", "[224, 0]"], "expected a finite number of at least 1 (--img_size)"),
    (["MODEL.PRETRAIN_CKPT", "[a.pth, 3]"], "expected str"),
    (["LOSS.DISTANCE", "l1"], "expected one of mse, cosine, normalized_mse (--distance)"),
    (["LOSS.WARMUP_EPOCHS", "-1"], "--warmup_epochs"),
    (["LOSS.GRADIENT_FACTOR", "-1"], "LOSS.GRADIENT_FACTOR"),
    (["TEST.INFERENCE", "crop"], "expected one of zoom, slide (--inference)"),
    (["TEST.SCORE_AT", "slice"], "expected one of image, network"),
    (["TEST.OVERLAP", "1"], "from 0 to below 1 (--overlap)"),
    (["MODEL.TRANSUNET.HIDDEN_SIZE", "1000000"], "expected 4096 at most"),
    (["MODEL.PVT_CASCADE.DROP_PATH_RATE", "1.5"], "expected 1 at most"),
    (["MODEL.TYPE", "resnet18"], "expected one of hiformer_b, hiformer_l, hiformer_s, pvt_cascade, swin_unet"),
]


@pytest.mark.parametrize("opts, expected", BAD_VALUES)
def test_bad_values(opts: list[str], expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        network_keywords(get_config(opts=opts))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, expected",
    [
        ("- 1\n", "holds a list"),
        ("a: [", "not a yaml file"),
        ("MODL: {TYPE: unet}", "did you mean MODEL"),
        ("!!python/object/apply:os.system ['true']", "not a yaml file"),
        ("TRAIN: 3", "expected a section"),
        ("a: &a [1]\nb: *a", "aliases"),
        ("SEED: 1\nDATA: {}\nSEED: 2", "the key 'SEED' is there twice"),
        ("SEED: " + "[" * 3000, "not a yaml file"),
        ("SEED: !!bool x", "not a yaml file"),
        ("#" * 70000, "more than 64 KiB"),
        ("TRAIN.MOMENTUM: .nan", "TRAIN.MOMENTUM is nan"),
        ("TRAIN.MOMENTUM: 1" + "0" * 400, "TRAIN.MOMENTUM is inf"),
        ("TRAIN.EPOCHS: 1" + "0" * 30, "expected 2147483647 at most (--max_epochs)"),
        ("DATA.WINDOW: [-.inf, .inf]", "expected [low, high], finite"),
        ("DATA.NUM_WORKERS: 1000000", "expected 256 at most (--workers)"),
        ("MODEL.SWIN.DEPTHS: [2, 2, 1000000, 2]", "MODEL.SWIN.DEPTHS is [2, 2, 1000000, 2]; expected 128 at most"),
        ("MODEL.SWIN.NUM_HEADS: []", "MODEL.SWIN.NUM_HEADS is []; expected a finite number of at least 1"),
        ("MODEL.TYPE: resnet", "unknown network 'resnet'"),
        (r'DATA.ROOT_PATH: "a\0b"', "holds control characters"),
        (r'MODEL.NAME: "\e[2J"', "holds control characters"),
        (r'DATA.ROOT_PATH: "\uD800"', "holds control characters"),
        (r'"SEED\nSEED": 1', "holds control characters"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, expected: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ValueError) as caught:
        get_config(file)
    assert str(file) in str(caught.value) and expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_python_file_is_not_executed(tmp_path: Path) -> None:
    file = tmp_path / "evil.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ncfg = dict(SEED=1)\n")
    with pytest.raises(ValueError):
        get_config(file)
    assert not (tmp_path / "ran").exists()


def test_what_a_file_says_is_checked_though_a_flag_says_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("SEED: -1\n")
    with pytest.raises(ValueError, match="a.yaml: SEED is -1"):
        get_config(file, overrides={"SEED": 1})
    with pytest.raises(ValueError, match="^SEED is -1"):
        get_config(overrides={"SEED": -1})


def test_versions_of_any_kind_are_text(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("ENVIRONMENT: {when: 2024-01-01, 1: 2, deep: {a: [1, ~]}, raw: !!binary aGVsbG8=}\n")
    environment = get_config(file).ENVIRONMENT
    assert environment["when"] == "2024-01-01" and environment["1"] == "2" and isinstance(environment["deep"], str)


def circle() -> dict:
    ring: dict = {}
    ring["MODEL"] = ring
    return ring


@pytest.mark.parametrize(
    "saved", [[1], None, {1: 2}, circle(), {"SEED": object()}, {"DATA": {"WINDOW": [object()]}}, {"MODEL": {2: 3}}]
)
def test_a_saved_configuration_of_no_kind(saved: object) -> None:
    with pytest.raises(ValueError, match="last.pth: its configuration is not understood"):
        check_continues(get_config(), saved, "last.pth")


def test_a_saved_configuration_of_another_run() -> None:
    check_continues(get_config(), to_plain(get_config(opts=["TRAIN.EPOCHS", "3"])))
    with pytest.raises(ValueError, match="last.pth: SEED is 1234 but the run was begun with 5"):
        check_continues(get_config(), to_plain(get_config(opts=["SEED", "5"])), "last.pth")


def test_a_run_of_the_same_configuration(tmp_path: Path) -> None:
    def asked(*opts: str) -> bool:
        return is_of(get_config(opts=opts), tmp_path)

    assert not asked()
    (tmp_path / "config.yaml").write_text(config_text(to_plain(get_config(opts=["DATA.INTENSITY", "window"])), {}))
    # What the data filled in, where it lies and what it writes make it no other run.
    assert asked() and asked("DATA.ROOT_PATH", "elsewhere", "TRAIN.LOG_FREQ", "1")
    # It is to be gone on with, or tested anew.
    assert not asked("TRAIN.EPOCHS", "200") and not asked("TEST.SCORE_AT", "network")
    for key, value in (("SEED", "5"), ("TRAIN.VAL_FREQ", "3"), ("MODEL.PRETRAIN_CKPT", "other.pth")):
        with pytest.raises(ValueError, match=f"config.yaml: {key} is .* but the run was begun with"):
            asked(key, value)


def test_a_message_neither_moves_the_cursor_nor_fills_the_page(capsys: pytest.CaptureFixture) -> None:
    def fail() -> int:
        raise ValueError("a.npz: \x1b[2J\u200b\udcff" + "x" * 10**6 + " the end")

    assert arguments.run_guarded("train.py", fail) == 2
    error = capsys.readouterr().err
    assert error[:-1].isprintable() and len(error) < 2000
    assert error.startswith(r"train.py: error: a.npz: \x1b[2J\u200b\udcffx") and error.endswith("x the end\n")


def test_a_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match="absent.yaml: no such configuration"):
        get_config("absent.yaml")
