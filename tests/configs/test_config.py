"""The configuration: order of sources, keys and types, and the command lines."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import yaml
from tqdm import tqdm

import utils
from configs import arguments, schema
from configs.arguments import FLAGS, overrides_of, train_parser
from configs.config import complete, default_tree, get_config, to_dict
from configs.defaults import SECTION_OF
from configs.saved import check_continues, config_text, is_of
from evaluation.inference import network_of
from networks import list_networks, list_options
from selfreg.kdloss import KDloss
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
    config = get_config(args.cfg, opts=args.opts, overrides=overrides_of(args))
    assert (config.train.epochs, config.train.base_lr, config.data.batch_size) == (150, 0.05, 32)
    assert (config.loss.lambda_1, config.loss.lambda_2, config.model.type, config.output_dir) == (
        0.01,
        0.01,
        "swin_unet",
        "11_1",
    )
    assert (config.train.optimizer, config.train.momentum, config.train.weight_decay, config.seed) == (
        "sgd",
        0.9,
        1e-4,
        1234,
    )
    assert (config.loss.ce_weight, config.loss.dice_weight, config.model.drop_path_rate) == (0.4, 0.6, 0.2)


def test_published_test_command() -> None:
    args = arguments.test_parser().parse_args(PUBLISHED_TEST)
    assert args.is_savenii and args.max_epochs == 150 and args.output_dir == "11_1"


def test_every_flag_is_in_a_parser_and_names_a_key() -> None:
    known = {a.dest for parser in (train_parser(), arguments.test_parser()) for a in parser._actions}
    assert {flag.replace("-", "_") for flag in FLAGS} <= known
    assert {key for key, *_ in FLAGS.values()} <= dotted_keys(default_tree())


def test_order_of_sources(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("TRAIN: {EPOCHS: 3, BASE_LR: 1e-3}\nSEED: 5\n")
    args = train_parser().parse_args(["--cfg", str(file), "--opts", "TRAIN.EPOCHS", "4", "SEED", "6", "--seed", "7"])
    config = get_config(args.cfg, opts=args.opts, overrides=overrides_of(args))
    assert (config.train.base_lr, config.train.epochs, config.seed, config.train.momentum) == (1e-3, 4, 7, 0.9)


def test_lambdas() -> None:
    def weights(*words: str) -> tuple[float, float]:
        config = get_config(overrides=overrides_of(train_parser().parse_args(words)))
        return config.loss.lambda_1, config.loss.lambda_2

    assert weights() == (0.015, 0.015)
    assert weights("--lambda_x", "0") == (0, 0)
    assert weights("--lambda_x", "0.1", "--lambda_2", "0.2") == (0.1, 0.2)


def test_a_section_is_merged_and_text_stays_text() -> None:
    config = get_config(opts=["TRAIN", "{EPOCHS: 3}", "MODEL.NAME", "11_1", "DATA.ROOT_PATH", "2024-01-01"])
    assert (config.train.epochs, config.train.momentum) == (3, 0.9)
    assert (config.model.name, config.data.root_path) == ("11_1", "2024-01-01")


@pytest.mark.parametrize(
    "words, expected", [([], (224, 224)), (["--img_size", "96"], (96, 96)), (["--img_size", "96", "160"], (96, 160))]
)
def test_a_size_is_a_side_or_two(words: list[str], expected: tuple[int, int]) -> None:
    assert get_config(overrides=overrides_of(train_parser().parse_args(words))).data.img_size == expected


def test_values_of_opts() -> None:
    def model(value: str) -> tuple[str, ...]:
        return get_config(opts=["MODEL.PRETRAIN_CKPT", value]).model.pretrain_ckpt

    assert model("a.pth") == ("a.pth",) and model("[a.pth, b.pth]") == ("a.pth", "b.pth") and model("") == ()
    assert get_config(opts=["DATA.IMG_SIZE", "[64, 32]"]).data.img_size == (64, 32)
    assert get_config(opts=["DATA.WINDOW", "[-100, 50.5]"]).data.window == (-100.0, 50.5)
    assert get_config(opts=["TRAIN.VAL_DICE", "lumped"]).train.val_dice == "foreground", "the value of earlier runs"


@pytest.mark.parametrize("name", list_networks())
def test_the_keys_of_a_network_are_its_options_with_their_defaults(name: str) -> None:
    options = get_config(overrides={"MODEL.TYPE": name}).model.options
    assert dict(options) == list_options(name)


def test_names_that_stand_twice_agree() -> None:
    """selfreg is a package of its own, and configs imports none of ours."""
    for distance in schema.DISTANCES:
        KDloss(distance=distance)
    with pytest.raises(ValueError, match=", ".join(schema.DISTANCES)):
        KDloss(distance="l1")
    assert set(SECTION_OF) == set(list_networks())


def test_frozen_and_written_back(tmp_path: Path) -> None:
    config = get_config(opts=["MODEL.SWIN.DEPTHS", "[2, 2, 6, 2]", "MODEL.DROP_PATH_RATE", "0.1", "TEST.OVERLAP", "0"])
    with pytest.raises(AttributeError):
        config.seed = 3  # type: ignore[misc]
    file = tmp_path / "config.yaml"
    file.write_text(config_text(config, {"torch": "1", "processor": "any"}))
    assert get_config(file) == config
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["ENVIRONMENT"]["torch"] == "1"


def test_the_configuration_of_an_earlier_run_loads() -> None:
    saved = {"DATA": {"START_METHOD": "", "IMG_SIZE": 96}, "MODEL": {"PRETRAIN_CKPT": "", "TYPE": "unet"}}
    config = get_config(saved | {"ENVIRONMENT": {"torch": "2"}})
    assert (config.data.img_size, config.model.pretrain_ckpt) == ((96, 96), ())


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_yaml_builds_and_holds_only_what_differs(file: Path) -> None:
    config = get_config(file)
    network_of(config)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
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
    default = default_tree()
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
    (["AUG.ROTATE", "1.5"], "AUG.ROTATE is 1.5; expected 1 at most"),
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
    (["MODEL.TYPE", "transunet", "MODEL.TRANSUNET.HIDDEN_SIZE", "1000000"], "expected 4096 at most"),
    (["MODEL.TYPE", "pvt_cascade", "MODEL.PVT_CASCADE.DROP_PATH_RATE", "1.5"], "expected 1 at most"),
    (["MODEL.TYPE", "resnet18"], "expected one of hiformer_b, hiformer_l, hiformer_s, pvt_cascade, swin_unet"),
]


@pytest.mark.parametrize("opts, expected", BAD_VALUES)
def test_bad_values(opts: list[str], expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        get_config(opts=opts)
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
        ("{" + ",".join(f"{number:x}" for number in range(12000)) + "}", "more than 5000 keys and values"),
        ("SEED: " + "[" * 3000, "not a yaml file"),
        ("SEED: !!bool x", "not a yaml file"),
        ("#" * 70000, "more than 64 KiB"),
        ("TRAIN.MOMENTUM: .nan", "TRAIN.MOMENTUM is nan"),
        ("TRAIN.MOMENTUM: 1" + "0" * 400, "TRAIN.MOMENTUM is inf"),
        ("TRAIN.EPOCHS: 1" + "0" * 30, "expected 2147483647 at most (--max_epochs)"),
        ("DATA.WINDOW: [-.inf, .inf]", "expected [low, high], finite"),
        ("DATA.NUM_WORKERS: 1000000", "expected 256 at most (--workers)"),
        ("MODEL.SWIN.DEPTHS: [2, 2, 1000000, 2]", "MODEL.SWIN.DEPTHS is [2, 2, 1000000, 2]; expected 4096 at most"),
        ("MODEL.SWIN.NUM_HEADS: []", "MODEL.SWIN.NUM_HEADS is []; expected a finite number"),
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
    check_continues(get_config(), to_dict(get_config(opts=["TRAIN.EPOCHS", "3"])), "last.pth")
    with pytest.raises(ValueError, match="last.pth: SEED is 1234 but the run was begun with 5"):
        check_continues(get_config(), to_dict(get_config(opts=["SEED", "5"])), "last.pth")


def test_a_run_of_the_same_configuration(tmp_path: Path) -> None:
    def asked(*opts: str) -> bool:
        return is_of(get_config(opts=opts), tmp_path)

    assert not asked()
    (tmp_path / "config.yaml").write_text(config_text(get_config(opts=["DATA.INTENSITY", "window"]), {}))
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


def test_what_is_printed_or_logged_moves_no_cursor(capsys: pytest.CaptureFixture) -> None:
    def command() -> int:
        with utils.logging_session("train.py"):
            logging.getLogger("train.py").info("case \x1b[2J\u202eL\u00e9on \u00df\n")
            print("a\tb \x9b\udcff\r")
            tqdm.write("c\x07")
        return 0

    assert arguments.run_guarded("train.py", command) == 0
    assert capsys.readouterr().out == "case \\x1b[2J\\u202eL\u00e9on \u00df\n\na\tb \\x9b\\udcff\\r\nc\\x07\n"
    assert not isinstance(sys.stdout, arguments._Visible)


def test_a_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match="absent.yaml: no such configuration"):
        get_config("absent.yaml")


def test_flags_of_a_folder_of_one_s_own() -> None:
    words = "--class_names liver spleen --mask_threshold 128 --label_suffix _lab --num_classes 3".split()
    config = get_config(overrides=overrides_of(train_parser().parse_args(words[:3] + words[-4:])))
    assert (config.data.class_names, config.data.label_suffix) == (("liver", "spleen"), "_lab")
    config = complete(config, {"DATA.LABEL_VALUES": [0, 1, 2]})
    assert config.data.class_names == ("liver", "spleen")
    with pytest.raises(ValueError, match="DATA.CLASS_NAMES has 2 names for 2 classes"):
        complete(get_config(overrides={"DATA.CLASS_NAMES": ["liver", "spleen"], "MODEL.NUM_CLASSES": 2}))
    with pytest.raises(ValueError, match="DATA.MASK_THRESHOLD gives two classes"):
        get_config(overrides={"DATA.MASK_THRESHOLD": 128, "DATA.LABEL_VALUES": [0, 1, 2]})
    facts = {"DATA.IGNORE_LABEL": 3, "DATA.CLASS_NAMES": ["anterior", "posterior"], "MODEL.NUM_CLASSES": 3}
    filled = complete(get_config(overrides={"DATA.DATASET": "Folder"}), facts).data
    assert (filled.ignore_label, filled.class_names) == (3, ("anterior", "posterior"))
