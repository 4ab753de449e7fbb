"""The defaults that belong to a network or to a data set; all others are in configs/schema.py."""

from __future__ import annotations

_R50_VIT = {
    "HIDDEN_SIZE": 768,
    "NUM_HEADS": 12,
    "NUM_LAYERS": 12,
    "MLP_DIM": 3072,
    "CNN_WIDTH": 64,
    "CNN_UNITS": [3, 4, 9],
    "NORM_GROUPS": 32,
    "DROPOUT_RATE": 0.1,
    "ATTENTION_DROPOUT_RATE": 0.0,
}

# The options of each network, as sections of MODEL.
NETWORK_OPTIONS: dict[str, dict[str, object]] = {
    "SWIN": {
        "PATCH_SIZE": 4,
        "IN_CHANS": 3,  # published key; the stem has three channels and repeats one to three
        "EMBED_DIM": 96,
        "DEPTHS": [2, 2, 2, 2],
        "DECODER_DEPTHS": [2, 2, 2, 1],  # published key that nothing reads: the decoder takes DEPTHS
        "NUM_HEADS": [3, 6, 12, 24],
        "WINDOW_SIZE": 7,
        "MLP_RATIO": 4.0,
        "QKV_BIAS": True,
        "FINAL_UPSAMPLE": "expand_first",  # published key; the only form there is
    },
    "UNET": {"BILINEAR": True, "WIDTH": 64},
    "UCTRANSNET": {
        "BASE_CHANNEL": 64,
        "NUM_LAYERS": 4,
        "NUM_HEADS": 4,
        "EXPAND_RATIO": 4,
        "EMBEDDINGS_DROPOUT_RATE": 0.1,
        "ATTENTION_DROPOUT_RATE": 0.1,
        "DROPOUT_RATE": 0.0,
    },
    "HIFORMER": {
        "USE_FUSION": False,  # the published code computes its cross-scale fusion and discards it
        "EMBED_DIM": 96,
        "SWIN_DEPTHS": [2, 2, 6],
        "NUM_HEADS": [3, 6, 12],
        "WINDOW_SIZE": 7,
        "CNN_WIDTH": 64,
        "CNN_DEPTHS": [3, 4, 6],
        "FUSION_HEADS": [6, 12],
        "DECODER_WIDTH": 128,
        "DROP_RATE": 0.0,
        "DROP_PATH_RATE": 0.1,
    },
    "TRANSUNET": {**_R50_VIT, "HEAD_CHANNELS": 512, "DECODER_CHANNELS": [256, 128, 64, 16]},
    "TRANS_CASCADE": {
        **_R50_VIT,
        "RECREATE_EMBEDDINGS": False,  # published fault: fresh random embeddings in every forward pass
    },
    "PVT_CASCADE": {
        "EMBED_DIMS": [64, 128, 320, 512],
        "DEPTHS": [3, 4, 6, 3],
        "NUM_HEADS": [1, 2, 5, 8],
        "MLP_RATIOS": [8.0, 8.0, 4.0, 4.0],
        "DROP_RATE": 0.0,
        "ATTN_DROP_RATE": 0.0,
        "DROP_PATH_RATE": 0.1,
    },
}
UNUSED_OPTIONS = ("IN_CHANS", "DECODER_DEPTHS", "FINAL_UPSAMPLE")  # published keys of SWIN

# The section of MODEL that a network's options are in, by MODEL.TYPE.
SECTION_OF = {
    "hiformer_b": "HIFORMER",
    "hiformer_l": "HIFORMER",
    "hiformer_s": "HIFORMER",
    "pvt_cascade": "PVT_CASCADE",
    "swin_unet": "SWIN",
    "trans_cascade": "TRANS_CASCADE",
    "transunet": "TRANSUNET",
    "uctransnet": "UCTRANSNET",
    "unet": "UNET",
}

_WINDOW: dict[str, object] = {"DATA.WINDOW": [-125.0, 275.0]}
_CT: dict[str, object] = {
    "MODEL.NUM_CLASSES": 9,
    "MODEL.IN_CHANNELS": 1,
    "DATA.INTENSITY": "window",
    "DATA.AXIS_ORDER": "zxy",
    **_WINDOW,
}
_HISTOLOGY: dict[str, object] = {
    "MODEL.NUM_CLASSES": 2,
    "MODEL.IN_CHANNELS": 3,
    "DATA.INTENSITY": "range",
    "DATA.AXIS_ORDER": "zyx",
    "DATA.LABEL_VALUES": [0, 255],
    **_WINDOW,
}
# What an empty key means for a data set, unless its files say otherwise; the files of a Folder always do.
DATASET_DEFAULTS: dict[str, dict[str, object]] = {
    "Synapse": _CT,
    "Phantom": _CT,
    "ACDC": {**_CT, "MODEL.NUM_CLASSES": 4, "DATA.INTENSITY": "percentile"},
    "GlaS": _HISTOLOGY,
    "MoNuSeg": _HISTOLOGY,
    "Folder": _WINDOW,
}
